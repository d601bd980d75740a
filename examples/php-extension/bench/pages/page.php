<?php
/* A small page: a few classes, some rows, a template. */
final class Row
{
    public array $tags;

    public function __construct(public int $id, public string $title)
    {
        $this->tags = ['new', "tag$id"];
    }
}

final class Page
{
    private array $rows = [];

    public function add(Row $row): void
    {
        $this->rows[$row->title] = $row;
    }

    public function show(): string
    {
        ksort($this->rows);
        $lines = [];
        foreach ($this->rows as $title => $row) {
            $lines[] = sprintf('<li id="%d">%s (%s)</li>', $row->id, htmlspecialchars($title), implode(', ', $row->tags));
        }
        return "<ul>\n" . implode("\n", $lines) . "\n</ul>\n";
    }
}

$page = new Page;
for ($i = 0; $i < 150; $i++) {
    $page->add(new Row($i, 'Title & number ' . $i * 7919 % 1000));
}
echo strlen($page->show()), ' ', strlen(json_encode(['page' => $page->show(), 'user' => ['name' => 'x', 'id' => 7]])), "\n";
