#!/usr/bin/env python3
"""Runs the commands in README.md, CONTRIBUTING.md and web/docs/*.md.

    tests/docs.py [--binary FILE] [PAGE...]

Each `sh` block runs in a shell, a directory, a home and (where the system allows it) a network of its own, so nothing
of another block or broker is there. `x0-msg-server` on its PATH is the binary of the dev profile, which other tests use
too. `nats-server` is the one that X0_MSG_NATS_SERVER names, or that of the system. `cargo run --release` runs the same binary: a build of the release profile takes minutes and tests no command. A
block fails if a command fails, if it takes longer than two minutes, or if it leaves a process running.

An `output` block holds what the block before it prints to standard output; `…` stands for any text, and line ends and
the width of spaces do not count. A `python` block runs beside a broker on 127.0.0.1:8080. `js`, `json` and `toml`
blocks are parsed. All `sh` blocks of a page also run one after the other in one shell, as somebody pastes them.

A comment before a block changes this:

    <!-- not run: REASON -->        it cannot run here. A `sh` block is checked for its syntax, and for the
                                    scripts and cargo targets that it names
    <!-- runs until stopped -->     it serves; it is stopped as by Ctrl-C once the broker answers

A block in another language must be marked.
"""

import argparse
import fcntl
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
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 120
PYTHON_BLOCK = """
x0-msg-server 2>broker.log &
broker=$!
until x0-msg-server health --ready >/dev/null 2>&1; do sleep 0.1; done
python3 block.py
kill $broker
wait $broker
"""
CARGO_RUN = """#!/bin/sh
test "$*" = "run --release" || { echo "cargo $*: only cargo run --release is run here" >&2; exit 1; }
exec x0-msg-server
"""


@dataclass
class Block:
    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    serves: bool = False
    output: str | None = None

    def __str__(self):
        return f"{self.page}:{self.line} {self.language or 'no language'}"


def blocks_of(page, text):
    """The fenced blocks of a page. An `output` block belongs to the block before it."""
    blocks, comment, lines = [], "", iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        fence = re.match(r"(```+)(\S*)", line)
        if fence:
            body = []
            for _, inner in lines:
                if inner.startswith(fence[1]):
                    break
                body.append(inner)
            not_run = re.fullmatch(r"<!-- not run: (\S.*) -->", comment)
            blocks.append(
                Block(page, number, fence[2], "\n".join(body) + "\n", not_run and not_run[1], comment == "<!-- runs until stopped -->")
            )
        if line.strip():
            comment = line.strip() if line.startswith("<!--") else ""
    kept = []
    for block in blocks:
        if block.language == "output" and kept and kept[-1].language in ("sh", "python") and kept[-1].output is None:
            kept[-1].output = block.text
        else:
            kept.append(block)
    return kept


def matches(expected, actual):
    lines = [r"\s+".join(re.escape(word).replace("…", ".*?") for word in line.split()) for line in expected.strip().splitlines()]
    pattern = r"\s*".join(lines)
    return re.fullmatch(pattern, actual.strip(), re.DOTALL) is not None


class Runner:
    def __init__(self, binary):
        self.work = tempfile.TemporaryDirectory(prefix="x0-docs-")
        self.bin = Path(self.work.name, "bin")
        self.bin.mkdir()
        (self.bin / "x0-msg-server").symlink_to(binary)
        if server := os.environ.get("X0_MSG_NATS_SERVER"):
            (self.bin / "nats-server").symlink_to(Path(server).resolve())
        self.script("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self.script("cargo", CARGO_RUN)
        self.isolation = self.find_isolation()

    def script(self, name, text):
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    @staticmethod
    def find_isolation():
        """The command that gives a block a network of its own."""
        for command in (["unshare", "--net"], ["unshare", "--net", "--map-root-user"]):
            try:
                if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                    return command
            except FileNotFoundError:
                pass
        return []

    def environment(self, home):
        return {"HOME": str(home), "LANG": "C.UTF-8", "PATH": f"{self.bin}:{os.environ['PATH']}"}

    def run(self, script, *, serves=False, files=()):
        """Runs a script on a fresh machine's state. Returns what is wrong (or None) and its standard output."""
        if not self.isolation:
            for port in (8080, 8081):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind(("127.0.0.1", port))
                    except OSError:
                        return f"port {port} is in use, and this machine gives no network of its own", ""
        with tempfile.TemporaryDirectory(prefix="block-", dir=self.work.name) as home:
            directory = Path(home, "directory")
            directory.mkdir()
            for name, text in files:
                (directory / name).write_text(text)
            mode = ["--serve"] if serves else ["--enter"]
            command = [*self.isolation, sys.executable, __file__, *mode, script]
            with open(Path(home, "out"), "w+") as out, open(Path(home, "err"), "w+") as err:
                process = subprocess.Popen(
                    command, cwd=directory, env=self.environment(home), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                    start_new_session=True,
                )  # fmt: skip
                try:
                    status = process.wait(TIMEOUT)
                    wrong = f"exit status {status}" if status else None
                except subprocess.TimeoutExpired:
                    wrong = f"not finished after {TIMEOUT} s"
                left = end_session(process.pid)
                process.wait()
                if left and not wrong:
                    wrong = f"leaves running: {', '.join(left)}"
                out.seek(0), err.seek(0)
                printed = out.read()
                if wrong:
                    wrong += f"\n--- standard output\n{printed}--- standard error\n{err.read()}"
                return wrong, printed


def session(leader):
    """The living processes of a session: number and name."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, fields = re.fullmatch(r"\d+ \((.*)\) (.*)", (entry / "stat").read_text().strip(), re.DOTALL).groups()
            except (OSError, AttributeError):
                continue
            state, _, _, of = fields.split()[:4]
            if int(of) == leader and state not in "ZX":
                yield int(entry.name), name


def end_session(leader):
    """Ends the processes that a block left, and only those. Returns their names."""
    gone(leader, 1)  # A process that is ending was not left.
    left = [name for _, name in session(leader)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid, _ in session(leader):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        gone(leader, 15)
    return left


def gone(leader, seconds):
    """Waits until a session has no processes, at most so many seconds."""
    until = time.monotonic() + seconds
    while list(session(leader)) and time.monotonic() < until:
        time.sleep(0.02)


def loopback_up():
    """A new network has a loopback interface that is down."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, 0x8913, request))[1]
        if not flags & 1:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))


SHELL = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c"]


def enter(script):
    """Runs inside the network of a block, and becomes its shell."""
    loopback_up()
    os.execvp(SHELL[0], [*SHELL, script])


def serve(script):
    """Runs inside the network of a block that serves. Stops it as Ctrl-C does when the broker answers."""
    loopback_up()
    process = subprocess.Popen([*SHELL, script], process_group=0)
    while subprocess.run(["x0-msg-server", "health"], capture_output=True).returncode:
        if process.poll() is not None:
            sys.exit(f"ended with status {process.returncode} before the broker answered")
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    process.wait()


def check(block, runner):
    """What is wrong with a block, or None."""
    if block.language == "sh":
        if block.not_run:
            syntax = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
            return syntax.stderr if syntax.returncode else missing(block.text)
        wrong, printed = runner.run(block.text, serves=block.serves)
    elif block.not_run:
        return None
    elif block.language == "python":
        wrong, printed = runner.run(PYTHON_BLOCK, files=[("block.py", block.text)])
    elif block.language in ("js", "json", "toml"):
        return parse(block)
    else:
        return "neither runs nor is marked; write <!-- not run: REASON --> before it"
    if not wrong and block.output is not None and not matches(block.output, printed):
        wrong = f"expected\n{block.output}but it printed\n{printed}"
    return wrong


def missing(script):
    """A script or cargo target that a block names and that does not exist."""
    for path in re.findall(r"(?<![\w/-])(?:docker|tests)/[\w./-]+", script):
        if not (ROOT / path).exists():
            return f"there is no {path}"
    for kind, name in re.findall(r"cargo (?:test|bench) --(bench|test) (\w+)", script):
        if (kind, name) not in cargo_targets():
            return f"there is no cargo target for --{kind} {name}"


def parse(block):
    try:
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        else:
            with tempfile.NamedTemporaryFile("w", suffix=".mjs") as file:
                file.write(block.text)
                file.flush()
                syntax = subprocess.run(["node", "--check", file.name], text=True, capture_output=True)
            return syntax.stderr if syntax.returncode else None
    except ValueError as error:
        return str(error)


def check_all(pages, runner):
    """Checks all blocks of pages, given as name and text. Returns how many ran, are marked and failed."""
    blocks = [block for page, text in pages for block in blocks_of(page, text)]
    jobs = [(str(block), lambda block=block: check(block, runner)) for block in blocks]
    for page, _ in pages:
        pasted = [block.text for block in blocks if block.page == page and block.language == "sh" and not (block.not_run or block.serves)]
        if len(pasted) > 1:
            jobs.append((f"{page} pasted as a whole", lambda pasted=pasted: runner.run("".join(pasted))[0]))

    def timed(job):
        begun = time.monotonic()
        return job[0], job[1](), time.monotonic() - begun

    failed = 0
    # Blocks that share a network run one after the other.
    with ThreadPoolExecutor(os.cpu_count() if runner.isolation else 1) as pool:
        for name, wrong, seconds in pool.map(timed, jobs):
            failed += wrong is not None
            print(f"{'FAILED' if wrong else 'ok':6} {seconds:5.1f} s  {name}{': ' + wrong if wrong else ''}")
    marked = sum(block.not_run is not None for block in blocks)
    return len(blocks) - marked, marked, failed


@cache
def cargo_targets():
    """Kind and name of all targets of the package."""
    command = ["cargo", "metadata", "--no-deps", "--offline", "--format-version=1", f"--manifest-path={ROOT}/Cargo.toml"]
    [package] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["packages"]
    return [(kind, target["name"]) for target in package["targets"] for kind in target["kind"]]


def check_cargo_run():
    """`cargo run` must run the binary that replaces it here."""
    binaries = [name for kind, name in cargo_targets() if kind == "bin"]
    if binaries != ["x0-msg-server"]:
        sys.exit(f"`cargo run` does not run x0-msg-server alone: there are {binaries}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--binary", type=Path, default=target / "debug/x0-msg-server", help="the server [default: of the dev profile]")
    parser.add_argument("page", nargs="*", type=Path, help="pages to test [default: all]")
    arguments = parser.parse_args()
    binary = arguments.binary.resolve(strict=True)
    paths = arguments.page or [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "web/docs").glob("*.md"))]
    pages = [(os.path.relpath(path, ROOT), path.read_text()) for path in paths]
    runner = Runner(binary)
    check_cargo_run()
    run, marked, failed = check_all(pages, runner)
    where = "a network of their own" if runner.isolation else "the network of this machine"
    print(f"docs: {run} blocks checked in {where}, {marked} marked as not run, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--enter"]:
        enter(sys.argv[2])
    elif sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()
