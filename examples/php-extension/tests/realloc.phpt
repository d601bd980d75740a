--TEST--
Blocks that grow and shrink keep their bytes, at every size class and beyond
--EXTENSIONS--
rqmalloc
--FILE--
<?php
mt_srand(7);
$text = '';
$hash = hash_init('crc32b');
for ($i = 0; $i < 3000; $i++) {
    $piece = chr(97 + $i % 26);
    $piece = str_repeat($piece, 1 + $i % 997);
    $text .= $piece;
    hash_update($hash, $piece);
    if ($i % 500 === 0) {
        $keep[] = $text;
    }
}
var_dump(hash_final($hash) === hash('crc32b', $text), strlen($text));
foreach ($keep as $old) {
    if (strncmp($text, $old, strlen($old)) !== 0) {
        echo "changed\n";
    }
}
$list = [];
for ($i = 0; $i < 100000; $i++) {
    $list[] = $i;
}
while (count($list) > 10) {
    array_splice($list, intdiv(count($list), 2));
}
var_dump(array_sum($list));
?>
--EXPECT--
bool(true)
int(1492554)
int(15)
