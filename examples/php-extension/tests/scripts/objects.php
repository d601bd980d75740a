<?php
interface Shape
{
    public function area(): float;
}
abstract class Base implements Shape, JsonSerializable, IteratorAggregate, ArrayAccess, Countable
{
    protected array $data = [];
    private static int $made = 0;
    public function __construct(protected readonly string $name)
    {
        self::$made++;
    }
    public static function made(): int
    {
        return self::$made;
    }
    public function __get(string $name): mixed
    {
        return "magic $name";
    }
    public function __call(string $name, array $arguments): string
    {
        return $name . count($arguments);
    }
    public function jsonSerialize(): array
    {
        return ['name' => $this->name, 'area' => round($this->area(), 2), 'data' => $this->data];
    }
    public function getIterator(): Iterator
    {
        yield from $this->data;
    }
    public function offsetExists(mixed $at): bool
    {
        return isset($this->data[$at]);
    }
    public function offsetGet(mixed $at): mixed
    {
        return $this->data[$at] ?? null;
    }
    public function offsetSet(mixed $at, mixed $value): void
    {
        $at === null ? $this->data[] = $value : $this->data[$at] = $value;
    }
    public function offsetUnset(mixed $at): void
    {
        unset($this->data[$at]);
    }
    public function count(): int
    {
        return count($this->data);
    }
    public function __destruct()
    {
        if ($this->name === 'last') {
            echo "destroyed {$this->name}\n";
        }
    }
}
final class Circle extends Base
{
    public function __construct(string $name, private float $radius)
    {
        parent::__construct($name);
    }
    public function area(): float
    {
        return M_PI * $this->radius ** 2;
    }
    public function __clone()
    {
        $this->radius *= 2;
    }
}
enum Suit: string
{
    case Hearts = 'h';
    case Spades = 's';
    const Wild = self::Spades;
    public function label(): string
    {
        return ucfirst(strtolower($this->name));
    }
}
$circles = [];
for ($i = 0; $i < 500; $i++) {
    $circle = new Circle("circle $i", $i);
    $circle[] = $i;
    $circle['twice'] = clone $circle;
    $circle['self'] = $circle;
    $circles[] = $circle;
    unset($circle['self']);
}
echo md5(json_encode($circles)), ' ', count($circles[3]), ' ', $circles[0]->nothing, ' ', $circles[0]->anything(1, 2), ' ', Base::made(), "\n";
foreach ($circles[1] as $key => $value) {
    echo $key, ' => ', is_object($value) ? $value::class : $value, "\n";
}
echo Suit::from('h')->label(), ' ', Suit::tryFrom('x')?->label() ?? 'none', ' ', Suit::Wild->name, ' ', count(Suit::cases()), "\n";
$map = new WeakMap;
$key = new stdClass;
$map[$key] = new ArrayObject([1, 2, 3]);
echo count($map), ' ';
unset($key);
echo count($map), "\n";
$weak = WeakReference::create($circles[0]);
$circles = null;
gc_collect_cycles();
var_dump($weak->get());
$anonymous = new class (7) {
    public function __construct(public int $value)
    {
    }
};
echo (new ReflectionClass($anonymous))->isAnonymous() ? 'anonymous' : 'named', ' ', $anonymous->value, "\n";
try {
    (function () {
        $this->name = 'x';
    })->call(new Circle('fixed', 1));
} catch (Error $error) {
    echo $error->getMessage(), "\n";
}
$cycle = new Circle('last', 1);
$cycle['me'] = $cycle;
