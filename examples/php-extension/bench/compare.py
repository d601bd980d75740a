#!/usr/bin/env python3
"""Times PHP programs on three heaps: rqmalloc, PHP's own, and the C library's (USE_ZEND_ALLOC=0).

    compare.py --extension PATH/rqmalloc.so [--rounds 5] [--scale 4] [--opcache] [--only NAME,..]
               [--php .. --cgi ..]

Every program of bench.php runs in a process of its own, the heaps in turn, round after round; the
medians count. php-cgi runs the pages, many requests in one process: there the end of a request is
part of the time. Prints a table; a ratio below 1 means that rqmalloc takes less time. Fails if the
heaps disagree about what a program computed, or if none ran.
"""

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEAPS = ("rqmalloc", "php", "malloc")
PAGES = {"hello": 4000, "page": 2000, "large": 200}
LIMIT_SECONDS = 300


def command(options, heap, program):
    """Returns the command line and the environment that run `program` on `heap`."""
    line = [program, "-n", "-d", "memory_limit=2G"]
    if options.opcache:
        line += ["-d", "zend_extension=opcache", "-d", "opcache.enable_cli=1"]
    if heap == "rqmalloc":
        line += ["-d", f"extension={options.extension}"]
    environment = dict(os.environ)
    environment.pop("USE_ZEND_ALLOC", None)
    if heap == "malloc":
        environment["USE_ZEND_ALLOC"] = "0"
    return line, environment


def run(line, environment):
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if done.returncode != 0:
        sys.exit(f"compare.py: {' '.join(line)} failed\n{done.stdout}{done.stderr}")
    return done.stdout


def program_time(options, heap, name):
    """Returns the milliseconds that the program reports, and its checksum."""
    line, environment = command(options, heap, options.php)
    output = run(line + [str(HERE / "bench.php"), name, str(options.scale)], environment)
    said, milliseconds, check = output.split(maxsplit=2)
    if said != name:
        sys.exit(f"compare.py: {name} printed {output!r}")
    return float(milliseconds), check.strip()


def page_time(options, heap, name):
    """Returns the milliseconds for one request, and what it printed."""
    line, environment = command(options, heap, options.cgi)
    count = PAGES[name]
    begin = time.perf_counter()
    output = run(line + ["-q", "-T", str(count), str(HERE / "pages" / f"{name}.php")], environment)
    milliseconds = (time.perf_counter() - begin) * 1000 / count
    lines = re.findall(r"^.+$", output, re.MULTILINE)
    if len(lines) != count or len(set(lines)) != 1:
        sys.exit(f"compare.py: page {name} printed {len(lines)} lines of {len(set(lines))} kinds, not {count} of one")
    return milliseconds, lines[0]


def geometric_mean(values):
    return math.exp(statistics.fmean(math.log(value) for value in values))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--extension", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--opcache", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--php", default="php")
    parser.add_argument("--cgi", default="php-cgi")
    options = parser.parse_args()
    options.extension = os.path.abspath(options.extension)

    line, environment = command(options, "php", options.php)
    programs = run(line + [str(HERE / "bench.php"), "list"], environment).split()
    measured = [(name, program_time) for name in programs] + [(f"page: {name}", page_time) for name in PAGES]
    if options.only:
        wanted = options.only.split(",")
        measured = [(name, measure) for name, measure in measured if name.removeprefix("page: ") in wanted]
    if not measured:
        sys.exit("compare.py: no program ran")

    times = {(name, heap): [] for name, _ in measured for heap in HEAPS}
    checks = {}
    for _ in range(options.rounds):
        for name, measure in measured:
            for heap in HEAPS:
                milliseconds, check = measure(options, heap, name.removeprefix("page: "))
                times[name, heap].append(milliseconds)
                if checks.setdefault(name, check) != check:
                    sys.exit(f"compare.py: {name} on {heap} computed {check}, not {checks[name]}")

    print("| program | rqmalloc, ms | / PHP's own | / malloc |\n|---|---:|---:|---:|")
    ratios = {heap: [] for heap in HEAPS[1:]}
    for name, _ in measured:
        ours = statistics.median(times[name, "rqmalloc"])
        row = [f"{ours:.3f}" if ours < 10 else f"{ours:.0f}"]
        for heap in HEAPS[1:]:
            ratio = ours / statistics.median(times[name, heap])
            ratios[heap].append(ratio)
            row.append(f"{ratio:.2f}")
        print(f"| {name} | {' | '.join(row)} |")
    means = [f"{geometric_mean(ratios[heap]):.2f}" for heap in HEAPS[1:]]
    print(f"| geometric mean of {len(measured)} | | {' | '.join(means)} |")


main()
