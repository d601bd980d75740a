--TEST--
rqmalloc.report_leaks names what a request never freed
--EXTENSIONS--
rqmalloc
--INI--
rqmalloc.report_leaks=1
--FILE--
<?php
/* In a process of its own: the report goes to standard error after the output is closed. */
$command = [PHP_BINARY, '-n', '-d', 'extension_dir=' . ini_get('extension_dir'), '-d', 'extension=rqmalloc',
    '-d', 'rqmalloc.report_leaks=1', '-r'];
foreach (['rqmalloc_leak(5000); rqmalloc_leak(5000);', '$list = range(1, 1000);', 'trigger_error("x", E_USER_ERROR);'] as $code) {
    $process = proc_open([...$command, $code], [1 => ['file', '/dev/null', 'w'], 2 => ['pipe', 'w']], $pipes);
    echo preg_replace('/\(\d+ bytes\)/', '(.. bytes)', stream_get_contents($pipes[2])) ?: "nothing\n";
    proc_close($process);
}
?>
--EXPECT--
rqmalloc: request 1: 2 blocks (.. bytes) were never freed
nothing
nothing
