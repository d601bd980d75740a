--TEST--
rqmalloc.enabled=0 leaves PHP's heap alone
--EXTENSIONS--
rqmalloc
--INI--
rqmalloc.enabled=0
--FILE--
<?php
$usage = rqmalloc_usage();
var_dump($usage['enabled'], $usage['request'], $usage['page_bytes'] === memory_get_usage(true), $usage['previous']);
rqmalloc_leak(100);
?>
--EXPECT--
bool(false)
int(0)
bool(true)
NULL
