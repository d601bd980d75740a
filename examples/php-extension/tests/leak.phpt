--TEST--
rqmalloc_leak() leaks a block of the request, and refuses nonsense
--EXTENSIONS--
rqmalloc
--FILE--
<?php
$before = memory_get_usage();
rqmalloc_leak(10000);
var_dump(memory_get_usage() - $before >= 10000);
rqmalloc_leak(0);
try {
    rqmalloc_leak(-1);
} catch (ValueError $error) {
    echo $error->getMessage(), "\n";
}
?>
--EXPECT--
bool(true)
rqmalloc_leak(): Argument #1 ($bytes) must be greater than or equal to 0
