#!/usr/bin/env python3
"""Writes requests.jsonl, the input of the `requests` example: one JSON document a line.

    python3 examples/make_requests.py > examples/requests.jsonl

The same seed always gives the same bytes. There are eight shapes of request, in shuffled order, with
sizes as a server sees them: many small, a few near 60 KB. Two lines are malformed on purpose.
"""

import argparse
import json
import random
import sys

# How many requests of each shape; `SHAPES` below says what makes them.
MIX = {
    "session": 200,
    "order": 120,
    "search": 75,
    "events": 65,
    "config": 40,
    "article": 40,
    "graph": 30,
    "matrix": 30,
}

# What a client sends that dies, or that writes JSON by hand. Line numbers in the file, from 1.
MALFORMED = {
    173: '{"kind":"order","id":"A-20417","customer":{"name":"Ines Duarte","email":"ines@exa',
    402: '{"kind":"search","query":"late delivery",limit:10,"documents":[]}',
}

WORDS = """
account advance afternoon answer archive autumn balance bicycle border bridge budget cabinet candle canvas
capital carbon careful carpet castle ceiling century channel chapter charter circle citizen climate coastal
coffee column comfort common compass concert copper corner cotton council country courage crystal current
curtain danger decade decent deliver department desert detail dialect dinner direct distant doctor domestic
double dragon drawing driver eastern economy edition effort electric element engine evening evidence example
factor family famous farmer fashion festival fiction filter finance finger forest formal fortune forward
foundation fountain freedom gallery garden general gentle glass golden grammar granite gravity harbour harvest
history holiday honest horizon hospital humble hundred iceberg image industry insect island journal journey
justice kitchen ladder language lantern lecture legend letter library limestone liquid listen machine magnet
manual margin market marble meadow medicine memory mercury message method middle mineral minister mirror
modern moment monsoon morning motion mountain museum native nature needle neutral northern notice novel number
object ocean office opera orchard order organic origin outline oxygen packet palace paper parcel partner
pattern pencil people permit picture pilot planet plastic pocket poetry portrait practice prairie prince
printer private problem profit project promise public puzzle quarter quiet railway random record region
relief remote reply report request reserve result return ribbon river rocket rubber sample school science
season second secret section sensor series service shadow signal silver simple sister sketch society soldier
source southern spirit spring station stream student summer supply surface symbol system tablet talent target
teacher temple theatre thunder timber ticket tissue traffic travel treaty tunnel twelve umbrella uniform
union valley vehicle velvet version village vintage violin vision volume voyage wagon water weather western
whisper window winter wisdom wonder yellow
""".split()

NAMES = [
    "Ada Brandt", "Amélie Roux", "Björn Ek", "Chidi Okafor", "Dana Whitfield", "Elif Yılmaz", "Farah Haddad",
    "George Osei", "Hanna Kowalska", "Ines Duarte", "João Pereira", "Kenji Mori", "Lena Fischer", "Mateo Ríos",
    "Nadia Petrova", "Olu Adeyemi", "Priya Nair", "Quentin Marsh", "Rosa Jiménez", "Søren Holm", "Tomás Silva",
    "Uma Krishnan", "Viktor Novák", "Wei Zhang", "Yara Mansour", "Zoë Clarke",
]
TAGS = ["books", "fragile", "garden", "gift", "import", "kitchen", "music", "office", "outdoor", "sale", "tools"]
CITIES = ["Aarhus", "Bilbao", "Cork", "Dresden", "Évora", "Gdańsk", "Kyoto", "Lagos", "Lima", "Oslo", "Porto"]
PATHS = ["/", "/login", "/cart", "/search", "/api/orders", "/api/stock", "/img/logo.svg", "/feed", "/health"]
LEVELS = ["debug", "info", "info", "info", "info", "warn", "error"]


def words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def sentence(rng):
    text = words(rng, rng.randint(6, 18)).capitalize()
    # Now and then, something that a template has to escape.
    if rng.random() < 0.08:
        text += rng.choice([" & sons", " <em>now</em>", ' "so to speak"', " it's said"])
    return text + rng.choice([".", ".", ".", "?", "!"])


def paragraph(rng):
    return " ".join(sentence(rng) for _ in range(rng.randint(3, 8)))


def skewed(rng, low, high, power=5.0):
    """Returns an integer from `low` to `high`, small ones far more often."""
    return low + int((high - low) * rng.random() ** power)


def session(rng):
    user = rng.randint(1, 400)
    return {
        "user": f"u{user:05}",
        "token": f"{rng.getrandbits(128):032x}",
        "seen": rng.randint(1_760_000_000, 1_769_999_999),
        "flags": {name: rng.random() < 0.5 for name in rng.sample(WORDS, rng.randint(0, 6))},
        "trail": [rng.choice(PATHS) for _ in range(skewed(rng, 0, 60, 3))],
    }


def order(rng):
    name = rng.choice(NAMES)
    items = [
        {
            "sku": f"{rng.choice('ABCDEFGH')}{rng.randint(1000, 99999)}",
            "title": words(rng, rng.randint(1, 5)).title(),
            "quantity": skewed(rng, 1, 40, 4),
            "price_cents": rng.randint(95, 60000),
            "tags": rng.sample(TAGS, rng.randint(0, 4)),
        }
        for _ in range(skewed(rng, 1, 260, 8))
    ]
    return {
        "id": f"A-{rng.randint(10000, 99999)}",
        "customer": {"name": name, "email": name.split()[0].lower() + "@example.org", "vip": rng.random() < 0.1},
        "ship_to": {"street": f"{rng.randint(1, 240)} {words(rng, 1).title()} Street", "city": rng.choice(CITIES)},
        "coupon": rng.choice([None, None, None, "SPRING10", "WELCOME5"]),
        "items": items,
    }


def search(rng):
    documents = [
        {"id": rng.randint(1, 10**7), "title": words(rng, rng.randint(2, 6)).title(), "body": paragraph(rng)}
        for _ in range(skewed(rng, 2, 90, 9))
    ]
    return {"query": words(rng, rng.randint(1, 4)), "limit": rng.choice([5, 10, 20]), "documents": documents}


def events(rng):
    clock = rng.randint(1_760_000_000_000, 1_769_999_999_999)
    batch = []
    for _ in range(skewed(rng, 4, 420, 9)):
        clock += rng.randint(0, 900)
        batch.append(
            {
                "at": clock,
                "level": rng.choice(LEVELS),
                "host": f"web-{rng.randint(1, 24):02}",
                "path": rng.choice(PATHS),
                "status": rng.choice([200, 200, 200, 200, 204, 301, 404, 500]),
                "micros": skewed(rng, 80, 900_000),
                "message": words(rng, rng.randint(2, 7)),
            }
        )
    return {"service": rng.choice(["shop", "billing", "stock"]), "events": batch}


def tree(rng, depth):
    """Returns a nested object with scalars and short lists as leaves."""
    node = {}
    for name in rng.sample(WORDS, rng.randint(2, 5)):
        roll = rng.random()
        if depth and roll < 0.55:
            node[name] = tree(rng, depth - 1)
        elif roll < 0.7:
            node[name] = [rng.randint(0, 65535) for _ in range(rng.randint(1, 5))]
        else:
            node[name] = rng.choice([True, False, None, rng.randint(1, 10**6), words(rng, 3), rng.randint(1, 9) / 4])
    return node


def overlay(rng, base):
    """Returns part of `base`, with some leaves replaced and some added."""
    changed = {}
    for name, value in base.items():
        if isinstance(value, dict):
            if rng.random() < 0.7:
                changed[name] = overlay(rng, value)
        elif rng.random() < 0.3:
            changed[name] = words(rng, 2)
    if rng.random() < 0.3:
        changed[rng.choice(WORDS)] = rng.randint(0, 100)
    return changed


def config(rng):
    base = tree(rng, skewed(rng, 2, 6, 2))
    return {"base": base, "overlays": [overlay(rng, base) for _ in range(rng.randint(1, 4))]}


def comment(rng, depth):
    replies = rng.randint(0, 2) if depth else 0
    return {"by": rng.choice(NAMES), "text": sentence(rng), "replies": [comment(rng, depth - 1) for _ in range(replies)]}


def article(rng):
    number = rng.randint(1, 200)
    return {
        "slug": f"{rng.choice(WORDS)}-{number}",
        "title": words(rng, rng.randint(3, 7)).title(),
        "author": rng.choice(NAMES),
        "paragraphs": [paragraph(rng) for _ in range(skewed(rng, 3, 110, 9))],
        "comments": [comment(rng, 3) for _ in range(rng.randint(0, 6))],
    }


def graph(rng):
    nodes = skewed(rng, 8, 420, 3)
    # A ring keeps it connected; the chords make the shortest paths interesting.
    edges = [[node, (node + 1) % nodes, rng.randint(1, 100)] for node in range(nodes)]
    edges += [[rng.randrange(nodes), rng.randrange(nodes), rng.randint(1, 300)] for _ in range(nodes * 2)]
    return {"nodes": nodes, "start": rng.randrange(nodes), "edges": edges}


def matrix(rng):
    size = skewed(rng, 4, 48, 2)
    return {"rows": [[round(rng.uniform(-100, 100), 3) for _ in range(size)] for _ in range(size)]}


SHAPES = {
    "session": session,
    "order": order,
    "search": search,
    "events": events,
    "config": config,
    "article": article,
    "graph": graph,
    "matrix": matrix,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=20_250, help="default: %(default)s, the shipped file's")
    rng = random.Random(parser.parse_args().seed)

    kinds = [kind for kind, count in MIX.items() for _ in range(count)]
    rng.shuffle(kinds)
    lines = [
        json.dumps({"kind": kind, **SHAPES[kind](rng)}, ensure_ascii=False, separators=(",", ":")) for kind in kinds
    ]
    for number, text in sorted(MALFORMED.items()):
        lines.insert(number - 1, text)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
