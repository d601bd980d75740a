<?php
class Wrapper
{
    public $context;
    private static array $files = [];
    private string $name;
    private int $at = 0;
    public function stream_open(string $path, string $mode): bool
    {
        $this->name = $path;
        if ($mode[0] === 'w') {
            self::$files[$path] = '';
        }
        return isset(self::$files[$path]);
    }
    public function stream_write(string $data): int
    {
        self::$files[$this->name] .= $data;
        return strlen($data);
    }
    public function stream_read(int $count): string
    {
        $data = substr(self::$files[$this->name], $this->at, $count);
        $this->at += strlen($data);
        return $data;
    }
    public function stream_eof(): bool
    {
        return $this->at >= strlen(self::$files[$this->name]);
    }
    public function stream_stat(): array
    {
        return [];
    }
    public function stream_close(): void
    {
        /* Also called when the process is about to end. */
        echo "closed {$this->name}\n";
    }
}
stream_wrapper_register('mem', Wrapper::class);
file_put_contents('mem://one', str_repeat("line of text\n", 1000));
echo md5(file_get_contents('mem://one')), "\n";
$left_open = fopen('mem://two', 'w');
fwrite($left_open, 'x');
$file = fopen('php://temp/maxmemory:1000', 'w+');
for ($i = 0; $i < 500; $i++) {
    fputcsv($file, [$i, "text \"$i\"", $i / 8]);
}
rewind($file);
stream_filter_append($file, 'string.rot13');
$sum = 0;
while (($row = fgetcsv($file)) !== false) {
    $sum += (float) $row[2];
}
echo $sum, "\n";
$heap = new SplPriorityQueue;
$list = new SplDoublyLinkedList;
$fixed = new SplFixedArray(1000);
$storage = new SplObjectStorage;
for ($i = 0; $i < 1000; $i++) {
    $heap->insert("value $i", $i * 37 % 101);
    $list->push("entry $i");
    $fixed[$i] = str_repeat('x', $i % 10);
    $storage[new ArrayIterator([$i])] = $i;
}
echo $heap->extract(), ' ', $list->pop(), ' ', strlen(implode($fixed->toArray())), ' ', count($storage), "\n";
$iterator = new LimitIterator(new CallbackFilterIterator(new RecursiveIteratorIterator(new RecursiveArrayIterator([1, [2, [3, 4]], 5])), fn($x) => $x > 1), 1, 2);
echo implode(',', iterator_to_array($iterator, false)), "\n";
spl_autoload_register(function (string $class) {
    eval("class $class { public \$name = '$class'; }");
});
for ($i = 0; $i < 100; $i++) {
    $class = "Auto$i";
    $name = (new $class)->name;
}
echo $name, "\n";
$global_array = array_fill(0, 1000, str_repeat('y', 100));
$reference = &$global_array[5];
$reference = $global_array;
echo count($reference), "\n";
