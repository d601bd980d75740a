<?php
$text = '';
for ($i = 0; $i < 20000; $i++) {
    $text .= chr(33 + $i * 31 % 90);
}
echo md5($text), ' ', strlen(strrev($text) . strtoupper($text) . ucwords($text)), "\n";
echo md5(str_replace(['a', 'b', '"'], ['xx', '', '\\'], $text)), "\n";
echo md5(wordwrap(chunk_split($text, 17), 40, "\n", true)), "\n";
echo vsprintf("%05d|%-10s|%'*12.3f|%x|%b\n", [42, 'left', 3.14159, 255, 10]);
echo md5(implode('-', str_split($text, 13))), ' ', substr_count($text, 'A'), ' ', similar_text('World', 'Word'), ' ', levenshtein('kitten', 'sitting'), "\n";
echo md5(base64_encode(gzip($text))), ' ', crc32(bin2hex($text)), "\n";
function gzip(string $text): string
{
    return strtr(convert($text), 'abc', 'xyz');
}
function convert(string $text): string
{
    return html_entity_decode(htmlspecialchars($text, ENT_QUOTES));
}
for ($size = 1, $sum = 0; $size < 3_000_000; $size = intdiv($size * 5, 4) + 1) {
    $piece = str_repeat('ab', $size);
    $piece[$size] = 'c';
    $sum += strpos($piece, 'c') + strlen(trim($piece, 'a'));
}
echo $sum, "\n";
parse_str('a[]=1&a[]=2&b[x][y]=z&c=%20+', $parsed);
echo json_encode($parsed), ' ', http_build_query($parsed), "\n";
echo json_encode(sscanf('age: 25 name: Tom', 'age: %d name: %s')), "\n";
