<?php
/* Code that is compiled at run time, and classes that depend on each other. */
$directory = sys_get_temp_dir() . '/rqmalloc-' . getmypid();
mkdir($directory);
try {
    for ($i = 0; $i < 30; $i++) {
        file_put_contents("$directory/part$i.php", "<?php\nnamespace Part$i;\ninterface Named { const N = $i; }\ntrait Says { public function say() { static \$n = 0; return static::class . ++\$n; } }\n"
            . "class Thing implements Named { use Says; public array \$list = [1, self::N, 'x' => [self::N => 'y']]; }\nfunction make(): Thing { return new Thing; }\nreturn make();\n");
    }
    $things = [];
    for ($i = 0; $i < 30; $i++) {
        $things[] = require "$directory/part$i.php";
    }
    foreach ($things as $thing) {
        $thing->say();
        echo $thing->say(), $thing->list[1], ' ';
    }
    echo "\n", (@include "$directory/none.php") === false ? 'none' : 'some', "\n";
    file_put_contents("$directory/broken.php", "<?php function broken( {\n");
    try {
        include "$directory/broken.php";
    } catch (ParseError $error) {
        echo $error->getMessage(), "\n";
    }
} finally {
    array_map(unlink(...), glob("$directory/*"));
    rmdir($directory);
}
echo md5(highlight_string('<?php echo "x"; // comment', true)), ' ', count(array_filter(get_included_files(), fn($file) => str_contains($file, 'part'))), "\n";
