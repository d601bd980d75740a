<?php
function numbers(int $from, int $to): Generator
{
    try {
        for ($i = $from; $i <= $to; $i++) {
            $sent = yield $i => $i * $i;
            if ($sent) {
                echo "got $sent\n";
            }
        }
        return 'done';
    } finally {
        echo "closed $from\n";
    }
}
$generator = numbers(1, 3);
foreach ($generator as $key => $value) {
    echo "$key: $value\n";
}
echo $generator->getReturn(), "\n";
$generator = numbers(10, 20);
$generator->current();
$generator->send('hello');
unset($generator);
$left = numbers(100, 200);
$left->current();
$make = function (int $start) use (&$total) {
    static $calls = 0;
    $calls++;
    return function (int $add) use ($start, &$total, $calls) {
        return $total += $start + $add + $calls;
    };
};
for ($i = 0; $i < 1000; $i++) {
    $add = $make($i);
    $add($i);
}
echo $total, "\n";
$compose = fn(callable ...$all) => fn($x) => array_reduce($all, fn($value, $one) => $one($value), $x);
echo $compose(strrev(...), 'strtoupper', fn($text) => $text . '!')('abc'), "\n";
function lazy(iterable $source): Generator
{
    foreach ($source as $value) {
        yield $value;
    }
}
$source = range(1, 5);
for ($i = 0; $i < 50; $i++) {
    $source = lazy($source);
}
echo implode(',', iterator_to_array($source, false)), "\n";
$fibers = [];
for ($i = 0; $i < 20; $i++) {
    $fiber = new Fiber(function (int $number): string {
        $text = str_repeat("$number", 100);
        $got = Fiber::suspend(strlen($text));
        return $text[0] . $got;
    });
    $fibers[] = [$fiber, $fiber->start($i)];
}
foreach ($fibers as [$fiber, $length]) {
    $fiber->resume($length);
    echo $fiber->getReturn(), ' ';
}
echo "\n";
$open = new Fiber(function () {
    try {
        Fiber::suspend();
    } finally {
        echo "fiber closed\n";
    }
});
$open->start();
