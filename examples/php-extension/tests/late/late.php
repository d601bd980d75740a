<?php
/* Takes several chunks of the compiler's arena; the first one marks the end. */
$methods = array_map(fn($number) => "function f$number(\$x) { return [\$x, $number]; }", range(1, 500));
eval('class Late { ' . implode(' ', $methods) . ' }');
echo rqmalloc_usage()['request'], ' ', count((new Late)->f500(1)), "\n";
