<?php
$list = [];
for ($i = 0; $i < 3000; $i++) {
    $list["key" . $i * 7919 % 3001] = [$i, 'x' => str_repeat(chr(97 + $i % 26), $i % 90)];
}
foreach (array_keys($list) as $number => $key) {
    if ($number % 3 === 0) {
        unset($list[$key]);
    }
}
ksort($list, SORT_NATURAL);
echo count($list), ' ', md5(json_encode($list)), "\n";
$copy = $list;
foreach ($copy as &$entry) {
    $entry['x'] .= '!';
}
unset($entry);
echo md5(serialize($list)), ' ', md5(serialize($copy)), "\n";
echo implode(',', array_slice(array_map(fn($a, $b) => $a[0] . $b, $list, range(1, count($list))), 0, 5)), "\n";
usort($copy, fn($a, $b) => [$b['x'], $b[0]] <=> [$a['x'], $a[0]]);
echo md5(json_encode(array_column($copy, 'x'))), "\n";
$deep = [];
for ($i = 0, $at = &$deep; $i < 500; $i++) {
    $at['next'] = ['value' => $i];
    $at = &$at['next'];
}
unset($at);
echo strlen(json_encode($deep, 0, 600)), "\n";
print_r(array_count_values(array_map(strlen(...), array_column($list, 'x')))[10] ?? 'none');
echo "\n", array_sum(array_merge(...array_map(fn($i) => range(0, $i), range(1, 100)))), "\n";
var_dump(array_filter(['a' => 1, 'b' => null, 'c' => [], 'd' => 'x']));
