--TEST--
rqmalloc_usage() and the functions of PHP that report the same figures
--EXTENSIONS--
rqmalloc
--FILE--
<?php
$before = rqmalloc_usage();
var_dump($before['enabled'], $before['request'] > 0, $before['previous']);
$text = str_repeat('x', 300000);
$after = rqmalloc_usage();
$grown = $after['live_bytes'] - $before['live_bytes'];
var_dump($grown >= 300000 && $grown < 400000);
var_dump($after['page_bytes'] >= $after['live_bytes'], $after['peak_bytes'] >= $after['page_bytes']);
var_dump(memory_get_usage() === rqmalloc_usage()['live_bytes'] || abs(memory_get_usage() - $after['live_bytes']) < 4096);
var_dump(memory_get_usage(true) === $after['page_bytes']);
var_dump(memory_get_peak_usage(true) === memory_get_peak_usage());
unset($text);
var_dump(memory_get_usage() < $after['live_bytes'] - 290000);
memory_reset_peak_usage();
var_dump(memory_get_peak_usage(true) <= $after['peak_bytes']);
var_dump(gc_mem_caches() >= 0);
?>
--EXPECT--
bool(true)
bool(true)
NULL
bool(true)
bool(true)
bool(true)
bool(true)
bool(true)
bool(true)
bool(true)
bool(true)
bool(true)
