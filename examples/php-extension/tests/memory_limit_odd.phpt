--TEST--
A limit that is not a whole number of pages, reached by small blocks
--EXTENSIONS--
rqmalloc
--INI--
memory_limit=8000001
display_errors=1
html_errors=0
--FILE--
<?php
$list = [];
while (count($list) < 1000000) {
    $list[] = new stdClass;
}
echo "no limit\n";
?>
--EXPECTF--
Fatal error: Allowed memory size of 8000001 bytes exhausted (tried to allocate %d bytes) in %s on line %d
