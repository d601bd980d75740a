#!/usr/bin/env python3
"""Sends requests to one PHP process, as a web server does, and watches its memory.

    requests.py --extension PATH/rqmalloc.so [--requests 10000] [--fpm php-fpm] [--cgi php-cgi]
                [--opcache]

The kinds of request are clean, leak, or are left by an error or by exit() in the middle of nested
calls. The process is FPM's, or php-cgi's without --fpm; it listens on a Unix socket in a directory
of its own. For each kind and each heap (rqmalloc, PHP's own, and malloc, which frees nothing that
leaks), prints what the process had resident after the first tenth of the requests and after all of
them. With rqmalloc, it fails unless

 - every request begins with as much memory as the others of its kind: bytes of live blocks and
   bytes of pages;
 - the end of a leaking request frees what it leaked;
 - resident memory grows by no more than 2 % and 256 KiB;

and it fails if the leak does not show with malloc: then the test would prove nothing.
"""

import argparse
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "requests.php"
# How a request is left, and what it must print.
KINDS = {
    "clean": r"$",
    "leak": r"$",
    "exception": r"Uncaught RuntimeException: on purpose",
    "error": r"Fatal error.*: +on purpose",
    "limit": r"Allowed memory size of 4194304 bytes exhausted",
    "exit": r"left$",
}
LEAKED_BLOCKS, LEAKED_BYTES = 10, 10000
START_SECONDS, ANSWER_SECONDS = 10, 30

BEGIN_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT, STDERR = 1, 3, 4, 5, 6, 7
RESPONDER, KEEP_CONNECTION = 1, 1


def record(kind, content):
    return struct.pack("!BBHHBx", 1, kind, 1, len(content), 0) + content


def parameter(name, value):
    name, value = name.encode(), value.encode()
    # Lengths below 128 take one byte.
    lengths = b"".join(
        bytes([len(part)]) if len(part) < 128 else struct.pack("!I", len(part) | 1 << 31) for part in (name, value)
    )
    return lengths + name + value


class Connection:
    """FastCGI, as far as one request at a time needs it."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(ANSWER_SECONDS)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rb")

    def get(self, kind):
        """Returns the body of the answer."""
        parameters = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_FILENAME": str(SCRIPT),
            "SCRIPT_NAME": "/requests.php",
            "QUERY_STRING": f"kind={kind}",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REDIRECT_STATUS": "200",
        }
        self.socket.sendall(
            record(BEGIN_REQUEST, struct.pack("!HB5x", RESPONDER, KEEP_CONNECTION))
            + record(PARAMS, b"".join(parameter(*pair) for pair in parameters.items()))
            + record(PARAMS, b"")
            + record(STDIN, b"")
        )
        output = b""
        while True:
            header = self.stream.read(8)
            if len(header) < 8:
                raise ConnectionError(f"the process is gone; it printed {output!r}")
            _, answer, _, length, padding = struct.unpack("!BBHHBx", header)
            content = self.stream.read(length + padding)[:length]
            if answer == STDOUT:
                output += content
            if answer == END_REQUEST:
                return output.partition(b"\r\n\r\n")[2].decode()


class Server:
    """One PHP process that answers on a socket."""

    def __init__(self, options, heap, directory):
        self.path = os.path.join(directory, "socket")
        settings = {"memory_limit": "128M", "log_errors": "0", "html_errors": "0", "display_errors": "1"}
        if options.opcache:
            settings["zend_extension"] = "opcache"
        settings["extension"] = options.extension
        settings["rqmalloc.enabled"] = "1" if heap == "rqmalloc" else "0"
        environment = {**os.environ, "PHP_FCGI_CHILDREN": "0", "PHP_FCGI_MAX_REQUESTS": "0"}
        environment.pop("USE_ZEND_ALLOC", None)
        if heap == "malloc":
            environment["USE_ZEND_ALLOC"] = "0"
        arguments = [text for setting in settings.items() for text in ("-d", "=".join(setting))]
        if options.fpm:
            configuration = os.path.join(directory, "fpm.conf")
            with open(configuration, "w") as file:
                file.write(
                    f"[global]\ndaemonize = no\nerror_log = {directory}/fpm.log\n"
                    f"[www]\nlisten = {self.path}\npm = static\npm.max_children = 1\nuser = {os.getuid()}\n"
                    f"group = {os.getgid()}\n"
                )
            root = ["--allow-to-run-as-root"] if os.getuid() == 0 else []
            line = [options.fpm, "-n", "-F", *root, "-y", configuration, *arguments]
        else:
            line = [options.cgi, "-n", "-b", self.path, *arguments]
        self.log = open(os.path.join(directory, "server.log"), "w+")
        self.process = subprocess.Popen(line, env=environment, stdout=self.log, stderr=self.log)

    def connect(self):
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                return Connection(self.path)
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"requests.py: {self.process.args[0]} does not answer\n{self.said()}")
                time.sleep(0.02)

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def judge(kind, number, state, first):
    """Returns what is wrong with the state a request begins in; `first` is that of request 21."""
    if state["request"] != first["request"] + number - 20:
        return f"it has the number {state['request']}, request 21 has {first['request']}"
    if (state["live_bytes"], state["page_bytes"]) != (first["live_bytes"], first["page_bytes"]):
        return f"it begins with {state}, request 21 with {first}"
    previous = state["previous"]
    if previous["surviving_blocks"] != 0:
        return f"blocks survived the one before: {previous}"
    if kind == "leak" and (previous["freed_blocks"] < LEAKED_BLOCKS or previous["freed_bytes"] < LEAKED_BYTES):
        return f"the end of the one before found {previous}"
    return None


def watch(options, heap, kind):
    """Sends the requests; returns the states after a tenth and at the end, and what was wrong."""
    faults = []
    with tempfile.TemporaryDirectory() as directory:
        server = Server(options, heap, directory)
        try:
            connection = server.connect()
            first = early = state = None
            for number in range(options.requests):
                body = connection.get(kind)
                line, _, rest = body.partition("\n")
                state = json.loads(line)
                if not re.search(KINDS[kind], rest.strip(), re.DOTALL):
                    faults.append(f"{kind} on {heap}, request {number + 1} printed {rest!r}")
                    break
                if heap == "rqmalloc":
                    # The first requests fill caches: opcache's, and that of compiled regular
                    # expressions.
                    if number == 20:
                        first = state
                    if number > 20:
                        fault = judge(kind, number, state, first)
                        if fault:
                            faults.append(f"{kind}, request {number + 1}: {fault}")
                            break
                if number == options.requests // 10:
                    early = state
        except (ConnectionError, json.JSONDecodeError, TimeoutError) as error:
            faults.append(f"{kind} on {heap}: {error}\n{server.said()}")
        finally:
            server.stop()
    return (None, None, faults) if faults else (early, state, faults)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--extension", required=True)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--fpm", default="")
    parser.add_argument("--cgi", default="php-cgi")
    parser.add_argument("--opcache", action="store_true")
    options = parser.parse_args()
    options.extension = os.path.abspath(options.extension)

    faults, sent = [], 0
    print(f"{options.requests} requests of each kind, resident KiB of the process early -> at the end")
    print("| kind | rqmalloc | PHP's own | malloc | blocks the end freed |\n|---|---:|---:|---:|---:|")
    for kind in KINDS:
        cells, freed = [], ""
        for heap in ("rqmalloc", "php", "malloc"):
            # malloc has no limit to reach.
            if (heap, kind) == ("malloc", "limit"):
                cells.append("-")
                continue
            early, late, found = watch(options, heap, kind)
            faults += found
            if not early or not late:
                cells.append("-")
                continue
            sent += options.requests
            before, after = early["resident_kib"], late["resident_kib"]
            cells.append(f"{before} -> {after}")
            if heap == "rqmalloc":
                freed = late["previous"]["freed_blocks"]
                if after > before * 1.02 + 256:
                    faults.append(f"{kind}: resident memory grew from {before} to {after} KiB")
            leaked_kib = options.requests * LEAKED_BYTES // 1024
            if heap == "malloc" and kind == "leak" and after - before < leaked_kib // 2:
                faults.append(f"leak: with malloc resident memory grew from {before} to {after} KiB only")
        print(f"| {kind} | {' | '.join(cells)} | {freed} |", flush=True)
    for fault in faults:
        print(f"requests.py: {fault}", file=sys.stderr)
    if sent == 0:
        sys.exit("requests.py: no request was answered")
    sys.exit(1 if faults else 0)


main()
