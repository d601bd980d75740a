<?php
/* What requests.py requests over and over: prints the state of the process as a line of JSON, then
   ends in one of the ways to end a request. */
ini_set('display_errors', '1');
$status = file_get_contents('/proc/self/status');
preg_match('/^VmRSS:\s+(\d+) kB$/m', $status, $resident);
echo json_encode(['pid' => getmypid(), 'resident_kib' => (int) $resident[1]] + rqmalloc_usage()), "\n";

class Record
{
    public array $list = [];
    public ?Record $self = null;
}

function nested(int $depth, callable $last)
{
    /* Alive when `$last` leaves: PHP unwinds it, or a fatal error drops it. */
    $record = new Record;
    $record->list = range(1, 50);
    $record->self = $record;
    $text = str_repeat("depth $depth ", 20);
    if ($depth > 0) {
        return nested($depth - 1, $last) . $text;
    }
    return $last();
}

$kind = $_GET['kind'] ?? $_SERVER['REQUEST_KIND'] ?? 'clean';
switch ($kind) {
    case 'clean':
        nested(5, fn() => 'done');
        break;
    case 'leak':
        for ($i = 0; $i < 10; $i++) {
            rqmalloc_leak(1000);
        }
        break;
    case 'exception':
        nested(5, fn() => throw new RuntimeException('on purpose'));
        break;
    case 'error':
        nested(5, fn() => trigger_error('on purpose', E_USER_ERROR));
        break;
    case 'limit':
        ini_set('memory_limit', '4M');
        nested(5, function () {
            for ($list = []; count($list) < 1000;) {
                $list[] = str_repeat('x', 100000);
            }
            return "no limit\n";
        });
        break;
    case 'exit':
        nested(5, fn() => exit("left\n"));
        break;
    default:
        echo "no kind '$kind'\n";
}
