--TEST--
A block that had to go beyond the limit does not lift it for what comes later
--EXTENSIONS--
rqmalloc
--INI--
memory_limit=16M
display_errors=1
html_errors=0
--FILE--
<?php
register_shutdown_function(function () {
    global $text;
    $text = null;
    for ($list = []; count($list) < 40;) {
        $list[] = str_repeat('y', 1 << 20);
        if (count($list) % 10 === 0) {
            echo count($list), " MiB\n";
        }
    }
});
$text = str_repeat('a', 6 << 20);
/* Makes a copy three times as long, and cannot do without it. */
echo strlen(rawurlencode($text)), "\n";
?>
--EXPECTF--
Fatal error: Allowed memory size of 16777216 bytes exhausted (tried to allocate %d bytes) in %s on line %d

Fatal error: Allowed memory size of 16777216 bytes exhausted (tried to allocate %d bytes) in %s on line %d
