--TEST--
rqmalloc.check_owner: the owner of every block is looked up
--EXTENSIONS--
rqmalloc
--INI--
rqmalloc.check_owner=1
--FILE--
<?php
$list = [];
for ($i = 0; $i < 2000; $i++) {
    $list[$i] = str_repeat('x', $i * 7 % 5000);
    $list[$i] .= 'y';
    if ($i % 3 === 0) {
        unset($list[$i >> 1]);
    }
}
echo count($list), ' ', md5(implode($list)), "\n";
?>
--EXPECT--
1333 4da285c7beb4d01be9703764c813626d
