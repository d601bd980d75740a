--TEST--
A child process goes on with the request it was forked in
--EXTENSIONS--
rqmalloc
pcntl
--FILE--
<?php
$before = range(1, 10000);
$child = pcntl_fork();
if ($child === 0) {
    $more = array_map(fn($number) => "number $number", $before);
    unset($before);
    echo "child: ", count($more), "\n";
    exit(0);
}
pcntl_waitpid($child, $status);
echo "parent: ", count($before), " ", pcntl_wexitstatus($status), "\n";
?>
--EXPECT--
child: 10000
parent: 10000 0
