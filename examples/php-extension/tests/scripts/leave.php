<?php
class Noisy
{
    public function __construct(private string $name)
    {
    }
    public function __destruct()
    {
        echo "destroyed {$this->name}\n";
    }
}
function deep(int $depth, Noisy $noisy)
{
    $list = array_fill(0, 100, "depth $depth");
    return $depth ? deep($depth - 1, new Noisy("depth $depth")) : array_map(function ($text) {
        ob_start();
        echo 'buffered ';
        exit("left\n");
    }, $list);
}
$global = new Noisy('global');
register_shutdown_function(fn() => print("shutdown\n"));
deep(3, new Noisy('first'));
