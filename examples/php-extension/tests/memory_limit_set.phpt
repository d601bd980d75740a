--TEST--
ini_set("memory_limit") reaches rqmalloc, in both directions
--EXTENSIONS--
rqmalloc
--INI--
memory_limit=16M
--FILE--
<?php
$text = str_repeat('x', 10 << 20);
var_dump(ini_set('memory_limit', '64M'));
$more = str_repeat('x', 40 << 20);
var_dump(@ini_set('memory_limit', '32M'), ini_get('memory_limit'));
echo preg_replace('/\d+ bytes\)/', '.. bytes)', error_get_last()['message']), "\n";
unset($more);
var_dump(ini_set('memory_limit', '32M'), ini_get('memory_limit'));
var_dump(ini_set('memory_limit', '-1'));
$more = str_repeat('x', 100 << 20);
echo strlen($more), "\n";
?>
--EXPECT--
string(3) "16M"
bool(false)
string(3) "64M"
Failed to set memory limit to 33554432 bytes (Current memory usage is .. bytes)
string(3) "64M"
string(3) "32M"
string(3) "32M"
104857600
