<?php
/* Much of this is still alive when the page is done. */
$list = [];
for ($i = 0; $i < 20000; $i++) {
    $list[] = ['id' => $i, 'text' => "text $i"];
}
echo count($list), "\n";
