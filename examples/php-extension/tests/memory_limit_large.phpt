--TEST--
One block beyond the limit, and another one in a shutdown function
--EXTENSIONS--
rqmalloc
--INI--
memory_limit=8M
display_errors=1
html_errors=0
--FILE--
<?php
register_shutdown_function(function () {
    echo "shutdown\n";
    echo strlen(str_repeat('y', 200 << 20)), "\n";
});
echo strlen(str_repeat('x', 100 << 20)), "\n";
?>
--EXPECTF--
Fatal error: Allowed memory size of 8388608 bytes exhausted (tried to allocate %d bytes) in %s on line %d
shutdown

Fatal error: Allowed memory size of 8388608 bytes exhausted (tried to allocate %d bytes) in %s on line %d
