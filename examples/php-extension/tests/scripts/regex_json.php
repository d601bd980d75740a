<?php
$text = '';
for ($i = 0; $i < 2000; $i++) {
    $text .= "user$i@example" . $i % 7 . ".org, \u{e9}t\u{e9} $i; ";
}
echo preg_match_all('/(?<user>\w+)@(?<host>[\w.]+)/u', $text, $matches), ' ', md5(json_encode($matches)), "\n";
echo md5(preg_replace('/\d+/', '<$0>', $text)), ' ', md5(preg_replace_callback('/t(.)/u', fn($m) => bin2hex($m[1]), $text)), "\n";
echo count(preg_split('/[,;]\s*/', $text, -1, PREG_SPLIT_NO_EMPTY)), ' ', preg_last_error_msg(), ' ', preg_quote('a.b*c'), "\n";
for ($i = 0; $i < 300; $i++) {
    preg_match("/^pattern$i(x+)$/", "pattern{$i}xx", $m);
}
echo $m[1], "\n";
$value = ['int' => 1, 'float' => 0.1, 'text' => "q\"\\/\u{20ac}\n", 'list' => [true, null, []], 'object' => new ArrayObject(['a' => 1])];
foreach ([0, JSON_PRETTY_PRINT, JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES] as $flags) {
    echo $encoded = json_encode($value, $flags), "\n";
}
var_dump(json_decode($encoded) == json_decode(json_encode($value)));
try {
    json_decode('{"a":', flags: JSON_THROW_ON_ERROR);
} catch (JsonException $error) {
    echo $error->getMessage(), "\n";
}
echo json_encode(json_decode(str_repeat('[', 400) . str_repeat(']', 400), true, 500)) === str_repeat('[', 400) . str_repeat(']', 400) ? 'same' : 'other', "\n";
$round = unserialize(serialize([$value, new SplObjectStorage, new DateTimeImmutable('2020-02-29 12:00:00 UTC')]));
echo $round[2]->modify('+1 year')->format(DATE_ATOM), ' ', $round[0]['object']['a'], "\n";
