<?php
register_shutdown_function(function () {
    echo "first\n";
    register_shutdown_function(function () {
        echo "second\n";
        trigger_error('in a shutdown function', E_USER_ERROR);
    });
});
class Noisy
{
    public function __destruct()
    {
        echo "never\n";
    }
}
$noisy = new Noisy;
ob_start();
echo "in a buffer\n";
function leave(array $list)
{
    usort($list, function ($a, $b) {
        trigger_error('in a callback', E_USER_ERROR);
    });
}
leave(range(1, 100));
