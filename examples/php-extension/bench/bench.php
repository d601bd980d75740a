<?php
/* Small classic programs, to compare heaps under PHP (compare.py runs them).
 *
 *     php bench.php list            the names
 *     php bench.php NAME [SCALE]    runs one: prints its name, milliseconds and a checksum of what
 *                                   it computed
 *
 * A scale of 1 takes some 50 milliseconds on a common machine.
 */

declare(strict_types=1);

/** Pseudo-random numbers that are the same everywhere. */
final class Lcg
{
    public function __construct(private int $state = 42)
    {
    }

    public function next(int $below): int
    {
        $this->state = ($this->state * 1103515245 + 12345) & 0x7fffffff;
        return ($this->state >> 8) % $below;
    }
}

final class Node
{
    public ?Node $left = null;
    public ?Node $right = null;
    public ?Node $next = null;

    public function __construct(public int $value)
    {
    }

    public function sum(): int
    {
        return $this->value + ($this->left?->sum() ?? 0) + ($this->right?->sum() ?? 0);
    }
}

function tree(int $depth): Node
{
    $node = new Node($depth);
    if ($depth > 0) {
        $node->left = tree($depth - 1);
        $node->right = tree($depth - 1);
    }
    return $node;
}

function words(int $count, int $distinct): array
{
    $random = new Lcg;
    $words = [];
    for ($i = 0; $i < $count; $i++) {
        $words[] = 'word' . $random->next($distinct);
    }
    return $words;
}

function ackermann(int $m, int $n): int
{
    if ($m === 0) {
        return $n + 1;
    }
    return ackermann($m - 1, $n === 0 ? 1 : ackermann($m, $n - 1));
}

function fibonacci(int $n): int
{
    return $n < 2 ? $n : fibonacci($n - 1) + fibonacci($n - 2);
}

function counter(int $until): Generator
{
    for ($i = 0; $i < $until; $i++) {
        yield "key $i" => $i;
    }
}

$programs = [
    'ackermann' => function (int $scale): string {
        return (string) ackermann(2, 600 * $scale);
    },
    'array_append' => function (int $scale): string {
        $sum = 0;
        for ($round = 0; $round < 40 * $scale; $round++) {
            $list = [];
            for ($i = 0; $i < 100000; $i++) {
                $list[] = $i;
            }
            $sum += count($list);
        }
        return (string) $sum;
    },
    'array_small' => function (int $scale): string {
        $sum = 0;
        for ($i = 0; $i < 1500000 * $scale; $i++) {
            $pair = ['left' => $i, 'right' => $i + 1];
            $sum += $pair['right'] - $pair['left'];
        }
        return (string) $sum;
    },
    'binary_trees' => function (int $scale): string {
        $sum = 0;
        for ($round = 0; $round < 30 * $scale; $round++) {
            $sum += tree(13)->sum();
        }
        return (string) $sum;
    },
    'closures' => function (int $scale): string {
        $sum = 0;
        for ($round = 0; $round < 15 * $scale; $round++) {
            $list = array_map(fn(int $x): array => [$x, $x * $x], range(1, 20000));
            $list = array_filter($list, fn(array $pair): bool => $pair[1] % 3 !== 0);
            $sum += array_reduce($list, fn(int $all, array $pair): int => $all + $pair[0], 0);
        }
        return (string) $sum;
    },
    'fannkuch' => function (int $scale): string {
        $n = 8;
        $most = $checksum = 0;
        for ($round = 0; $round < $scale; $round++) {
            $permutation = range(0, $n - 1);
            $count = array_fill(0, $n, 0);
            $number = 0;
            $r = $n;
            while (true) {
                for (; $r > 1; $r--) {
                    $count[$r - 1] = $r;
                }
                $copy = $permutation;
                $flips = 0;
                while (($first = $copy[0]) !== 0) {
                    for ($low = 0, $high = $first; $low < $high; $low++, $high--) {
                        [$copy[$low], $copy[$high]] = [$copy[$high], $copy[$low]];
                    }
                    $flips++;
                }
                $most = max($most, $flips);
                $checksum += $number % 2 === 0 ? $flips : -$flips;
                while (true) {
                    if ($r === $n) {
                        break 2;
                    }
                    $first = $permutation[0];
                    for ($i = 0; $i < $r; $i++) {
                        $permutation[$i] = $permutation[$i + 1];
                    }
                    $permutation[$r] = $first;
                    if (--$count[$r] > 0) {
                        break;
                    }
                    $r++;
                }
                $number++;
            }
        }
        return "$most $checksum";
    },
    'fibonacci' => function (int $scale): string {
        $sum = 0;
        for ($round = 0; $round < $scale; $round++) {
            $sum += fibonacci(29);
        }
        return (string) $sum;
    },
    'generators' => function (int $scale): string {
        $sum = 0;
        foreach (counter(1000000 * $scale) as $key => $value) {
            $sum += strlen($key) + $value % 7;
        }
        return (string) $sum;
    },
    'hash_strings' => function (int $scale): string {
        $sum = 0;
        $words = words(100000, 20000);
        for ($round = 0; $round < 10 * $scale; $round++) {
            $counts = [];
            foreach ($words as $word) {
                $counts[$word . $round] = ($counts[$word . $round] ?? 0) + 1;
            }
            $sum += count($counts);
        }
        return (string) $sum;
    },
    'json' => function (int $scale): string {
        $random = new Lcg;
        $document = [];
        for ($i = 0; $i < 1000; $i++) {
            $document[] = [
                'id' => $i,
                'name' => "name $i",
                'tags' => ['a', "b$i", 'c'],
                'price' => $random->next(1000) / 8,
                'nested' => ['on' => true, 'off' => null, 'list' => range(1, 5)],
            ];
        }
        $length = 0;
        for ($round = 0; $round < 80 * $scale; $round++) {
            $text = json_encode($document);
            $document = json_decode($text, true);
            $length += strlen($text);
        }
        return (string) $length;
    },
    'linked_list' => function (int $scale): string {
        $sum = 0;
        for ($round = 0; $round < 25 * $scale; $round++) {
            $head = null;
            for ($i = 0; $i < 50000; $i++) {
                $node = new Node($i);
                $node->next = $head;
                $head = $node;
            }
            /* Taken apart step by step: freeing a long chain at its head recurses. */
            while ($head !== null) {
                $sum += $head->value;
                $next = $head->next;
                $head->next = null;
                $head = $next;
            }
        }
        return (string) $sum;
    },
    'mandelbrot' => function (int $scale): string {
        $inside = 0;
        for ($y = 0; $y < 120 * $scale; $y++) {
            for ($x = 0; $x < 160; $x++) {
                $cr = 3.0 * $x / 160 - 2.0;
                $ci = 2.0 * $y / (120 * $scale) - 1.0;
                $zr = $zi = 0.0;
                $i = 0;
                while ($i < 100 && $zr * $zr + $zi * $zi < 4.0) {
                    [$zr, $zi] = [$zr * $zr - $zi * $zi + $cr, 2.0 * $zr * $zi + $ci];
                    $i++;
                }
                $inside += $i === 100 ? 1 : 0;
            }
        }
        return (string) $inside;
    },
    'matrix' => function (int $scale): string {
        $n = 110;
        $sum = 0;
        for ($round = 0; $round < 4 * $scale; $round++) {
            $a = $b = $product = [];
            for ($i = 0; $i < $n; $i++) {
                for ($j = 0; $j < $n; $j++) {
                    $a[$i][$j] = $i + $j;
                    $b[$i][$j] = $i - $j;
                }
            }
            for ($i = 0; $i < $n; $i++) {
                for ($j = 0; $j < $n; $j++) {
                    $cell = 0;
                    for ($k = 0; $k < $n; $k++) {
                        $cell += $a[$i][$k] * $b[$k][$j];
                    }
                    $product[$i][$j] = $cell;
                }
            }
            $sum += $product[$n - 1][0];
        }
        return (string) $sum;
    },
    'method_calls' => function (int $scale): string {
        $node = new Node(3);
        $sum = 0;
        for ($i = 0; $i < 5000000 * $scale; $i++) {
            $sum += $node->sum();
        }
        return (string) $sum;
    },
    'nbody' => function (int $scale): string {
        $bodies = [];
        for ($i = 0; $i < 5; $i++) {
            $bodies[] = [
                'x' => $i * 1.5,
                'y' => $i * $i * 0.7,
                'z' => 1.0 / ($i + 1),
                'vx' => 0.1 * $i,
                'vy' => 0.2,
                'vz' => 0.0,
                'mass' => 1.0 / ($i + 1),
            ];
        }
        for ($step = 0; $step < 25000 * $scale; $step++) {
            for ($i = 0; $i < 5; $i++) {
                for ($j = $i + 1; $j < 5; $j++) {
                    $dx = $bodies[$i]['x'] - $bodies[$j]['x'];
                    $dy = $bodies[$i]['y'] - $bodies[$j]['y'];
                    $dz = $bodies[$i]['z'] - $bodies[$j]['z'];
                    $distance = sqrt($dx * $dx + $dy * $dy + $dz * $dz);
                    $pull = 0.001 / ($distance * $distance * $distance);
                    $bodies[$i]['vx'] -= $dx * $bodies[$j]['mass'] * $pull;
                    $bodies[$i]['vy'] -= $dy * $bodies[$j]['mass'] * $pull;
                    $bodies[$i]['vz'] -= $dz * $bodies[$j]['mass'] * $pull;
                    $bodies[$j]['vx'] += $dx * $bodies[$i]['mass'] * $pull;
                    $bodies[$j]['vy'] += $dy * $bodies[$i]['mass'] * $pull;
                    $bodies[$j]['vz'] += $dz * $bodies[$i]['mass'] * $pull;
                }
            }
            foreach ($bodies as &$body) {
                $body['x'] += 0.001 * $body['vx'];
                $body['y'] += 0.001 * $body['vy'];
                $body['z'] += 0.001 * $body['vz'];
            }
            unset($body);
        }
        return sprintf('%.9f', $bodies[0]['x']);
    },
    'objects' => function (int $scale): string {
        $sum = 0;
        for ($i = 0; $i < 3000000 * $scale; $i++) {
            $node = new Node($i);
            $sum += $node->value & 1;
        }
        return (string) $sum;
    },
    'regex' => function (int $scale): string {
        $text = implode(' ', words(20000, 5000));
        $found = 0;
        for ($round = 0; $round < 12 * $scale; $round++) {
            $found += preg_match_all('/\bword(\d)(\d*)7\b/', $text, $matches, PREG_SET_ORDER);
            $next = fn(array $match): string => 'word' . ($match[1] + 1) % 5000;
            $text = preg_replace_callback('/word(\d+)/', $next, $text);
            $found += count(preg_split('/\s+/', $text));
        }
        return (string) $found;
    },
    'serialize' => function (int $scale): string {
        $value = ['tree' => tree(9), 'words' => words(2000, 500)];
        $length = 0;
        for ($round = 0; $round < 90 * $scale; $round++) {
            $text = serialize($value);
            $value = unserialize($text);
            $length += strlen($text);
        }
        return (string) $length;
    },
    'sieve' => function (int $scale): string {
        $primes = 0;
        for ($round = 0; $round < 5 * $scale; $round++) {
            $composite = array_fill(0, 400001, false);
            for ($i = 2; $i <= 400000; $i++) {
                if ($composite[$i]) {
                    continue;
                }
                $primes++;
                for ($k = $i * 2; $k <= 400000; $k += $i) {
                    $composite[$k] = true;
                }
            }
        }
        return (string) $primes;
    },
    'sort' => function (int $scale): string {
        $random = new Lcg;
        $check = 0;
        for ($round = 0; $round < 2 * $scale; $round++) {
            $numbers = $strings = [];
            for ($i = 0; $i < 60000; $i++) {
                $numbers[] = $random->next(1000000);
                $strings["key $i"] = 'value ' . $random->next(1000000);
            }
            sort($numbers);
            asort($strings);
            usort($numbers, fn(int $a, int $b): int => $b <=> $a);
            $check += $numbers[0] + strlen(array_key_first($strings));
        }
        return (string) $check;
    },
    'spectral_norm' => function (int $scale): string {
        $n = 160;
        $multiply = function (array $vector, bool $transposed) use ($n): array {
            $result = [];
            for ($i = 0; $i < $n; $i++) {
                $sum = 0.0;
                for ($j = 0; $j < $n; $j++) {
                    [$row, $column] = $transposed ? [$j, $i] : [$i, $j];
                    $sum += $vector[$j] / (($row + $column) * ($row + $column + 1) / 2 + $row + 1);
                }
                $result[] = $sum;
            }
            return $result;
        };
        $u = array_fill(0, $n, 1.0);
        $v = $u;
        for ($round = 0; $round < 12 * $scale; $round++) {
            $v = $multiply($multiply($u, false), true);
            $u = $multiply($multiply($v, false), true);
            $norm = max($u);
            $u = array_map(fn(float $x): float => $x / $norm, $u);
        }
        return sprintf('%.9f', array_sum($u));
    },
    'string_build' => function (int $scale): string {
        $length = 0;
        for ($round = 0; $round < 60 * $scale; $round++) {
            $text = '';
            for ($i = 0; $i < 50000; $i++) {
                $text .= 'piece ' . $i . ';';
            }
            $length += strlen($text);
        }
        return (string) $length;
    },
    'string_functions' => function (int $scale): string {
        $text = implode(' ', words(5000, 1000));
        $check = 0;
        for ($round = 0; $round < 60 * $scale; $round++) {
            $parts = explode(' ', $text);
            $parts = array_map(ucfirst(...), $parts);
            $changed = str_replace(['Word1', 'Word2'], ['first', 'second'], implode(',', $parts));
            foreach ($parts as $part) {
                $check += strlen(sprintf('%s-%05d', substr($part, 1, 4), $round));
            }
            $check += strlen(strrev(strtoupper($changed)));
        }
        return (string) $check;
    },
    'templates' => function (int $scale): string {
        $rows = [];
        for ($i = 0; $i < 2000; $i++) {
            $rows[] = ['id' => $i, 'title' => "Title <$i> & more", 'tags' => ['one', "tag$i"]];
        }
        $length = 0;
        for ($round = 0; $round < 60 * $scale; $round++) {
            ob_start();
            echo "<table>\n";
            foreach ($rows as ['id' => $id, 'title' => $title, 'tags' => $tags]) {
                echo '<tr id="', $id, '"><td>', htmlspecialchars($title);
                echo '</td><td>', implode(', ', $tags), "</td></tr>\n";
            }
            echo "</table>\n";
            $length += strlen(ob_get_clean());
        }
        return (string) $length;
    },
    'whole_heap' => function (int $scale): string {
        /* Much is alive at the same time, and is freed in another order than it was created in. */
        $random = new Lcg;
        $slots = [];
        for ($i = 0; $i < 1500000 * $scale; $i++) {
            $slot = $random->next(50000);
            $slots[$slot] = str_repeat('x', 10 + $random->next(i_size($i)));
        }
        return (string) count($slots);
    },
];

function i_size(int $i): int
{
    return $i % 50 === 0 ? 2000 : 100;
}

$name = $argv[1] ?? 'list';
if ($name === 'list') {
    echo implode("\n", array_keys($programs)), "\n";
    exit(0);
}
if (!isset($programs[$name])) {
    fwrite(STDERR, "bench.php: no program '$name'\n");
    exit(2);
}
$begin = hrtime(true);
$check = $programs[$name]((int) ($argv[2] ?? 1));
printf("%s %.3f %s\n", $name, (hrtime(true) - $begin) / 1e6, $check);
