--TEST--
The limit in the middle of nested calls, generators, fibers and destructors
--EXTENSIONS--
rqmalloc
--INI--
memory_limit=8M
display_errors=1
html_errors=0
--FILE--
<?php
class Noisy
{
    public function __destruct()
    {
        echo "never: PHP runs no destructors after a fatal error\n";
    }
}
function numbers()
{
    $noisy = new Noisy;
    $list = [];
    for ($i = 0; $i < 1000000; $i++) {
        $list[] = "number $i";
        yield $i;
    }
}
$fiber = new Fiber(function () {
    try {
        foreach (numbers() as $number) {
            if ($number % 1000 === 0) {
                Fiber::suspend($number);
            }
        }
    } finally {
        echo "never: nor finally blocks\n";
    }
});
$fiber->start();
while (!$fiber->isTerminated()) {
    $fiber->resume();
}
echo "no limit\n";
?>
--EXPECTF--
Fatal error: Allowed memory size of 8388608 bytes exhausted (tried to allocate %d bytes) in %s on line %d
