<?php
set_error_handler(function (int $level, string $message): bool {
    echo "handled $level: $message\n";
    return true;
});
echo $undefined, [] . '', "\n";
restore_error_handler();
function thrower(int $depth): never
{
    $local = str_repeat("depth $depth", 50);
    try {
        if ($depth === 0) {
            throw new DomainException('bottom', 7, new LogicException('cause'));
        }
        thrower($depth - 1);
    } finally {
        echo strlen($local), ' ';
    }
}
try {
    thrower(5);
} catch (InvalidArgumentException | DomainException $error) {
    echo get_class($error), ' ', $error->getMessage(), ' ', $error->getPrevious()->getMessage(), ' ', count($error->getTrace()), "\n";
}
foreach (['1 +', 'throw new Exception("e");', 'return 7;'] as $code) {
    try {
        var_dump(eval($code));
    } catch (Throwable $error) {
        echo get_class($error), ': ', $error->getMessage(), "\n";
    }
}
try {
    strlen();
} catch (ArgumentCountError $error) {
    echo $error->getMessage(), "\n";
}
try {
    (function (int ...$numbers) {
    })('x');
} catch (TypeError $error) {
    echo preg_replace('/, called.*/', '', $error->getMessage()), "\n";
}
try {
    str_repeat('x', -1);
} catch (Error $error) {
    echo $error->getMessage(), "\n";
}
register_shutdown_function(function () {
    $error = error_get_last();
    echo 'shutdown: ', $error['type'], ' ', $error['message'] === '' ? 'nothing' : strtok($error['message'], "\n"), "\n";
});
ob_start(fn($text) => strtoupper($text));
echo "buffered\n";
(function () {
    $left = range(1, 1000);
    (null)->method();
})();
