--TEST--
Once the limit is reached, and before PHP can stop, callers that can take NULL get it again
--EXTENSIONS--
rqmalloc
--INI--
memory_limit=64M
display_errors=1
html_errors=0
--FILE--
<?php
/* One function of PHP that makes many copies, the first three times as large. All of them together
 * would pass the hard limit, too, which ends the process. */
$text = str_repeat('a', 20 << 20);
output_add_rewrite_var($text, $text);
echo "no limit\n";
?>
--EXPECTF--
Fatal error: Allowed memory size of 67108864 bytes exhausted (tried to allocate %d bytes) in %s on line %d
