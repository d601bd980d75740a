--TEST--
At the memory limit PHP raises its own fatal error, and shutdown functions run
--EXTENSIONS--
rqmalloc
--INI--
memory_limit=8M
display_errors=1
html_errors=0
--FILE--
<?php
register_shutdown_function(function () {
    global $list;
    $list = [];
    for ($i = 0; $i < 100; $i++) {
        $list[] = str_repeat('y', 100);
    }
    echo "shutdown: ", count($list), "\n";
});
$list = [];
while (count($list) < 100000) {
    $list[] = str_repeat('x', 1000);
}
echo "no limit\n";
?>
--EXPECTF--
Fatal error: Allowed memory size of 8388608 bytes exhausted (tried to allocate %d bytes) in %s on line %d
shutdown: 100
