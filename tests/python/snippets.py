"""Runs the httpx programs of web/docs/http.md against a broker, in `open` mode and with a key.

    tests/python/snippets.py URL [--key KEY --page TOKEN...]

The pages are played here: each polls the session of a user, and answers what it is asked to the topic `answers`. Without
tokens a page names its session, and it answers under that name; with them it is known by its user.
"""

import argparse
import os
import subprocess
import sys
import threading
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
from docs import blocks_of  # noqa: E402

PAGE = "web/docs/http.md"
# What the programs print, by the session or the user that answers.
SYNC = """stored in 1 mailbox
sessions of lee: ['S7']
{lee} answers {{'size': 'S7'}}
"""
ASYNC = """stored: [1, 1]
{mia} answers {{'size': 'of-mia'}}
{noa} answers {{'size': 'of-noa'}}
"""


class Page(threading.Thread):
    """Answers each question that comes to a session."""

    def __init__(self, url, session, token, stop):
        super().__init__()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.broker = httpx.Client(base_url=url, headers=headers, timeout=90)
        self.query, self.session, self.stop = ({} if token else {"session": session}), session, stop

    def run(self):
        position = {}
        while not self.stop.is_set():
            answer = self.broker.get("/v1/messages", params={**self.query, **position, "wait": 1})
            if answer.status_code in (401, 404):  # The session is not registered yet, or has ended.
                self.stop.wait(0.05)
                continue
            polled = answer.raise_for_status().json()
            position = {"after": polled["seq"], "epoch": polled["epoch"]}
            for message in polled["messages"]:
                reply = {"to": {"topic": "answers"}, "payload": {message["payload"]["ask"]: self.session}}
                self.broker.post("/v1/messages", params=self.query, json=reply).raise_for_status()


def check(text, url, key, sessions, tokens, expected):
    """Runs a program while these sessions answer; compares what it prints."""
    stop = threading.Event()
    pages = [Page(url, session, tokens.get(user), stop) for user, session in sessions.items()]
    for page in pages:
        page.start()
    environment = {**os.environ, "BROKER": url, **({"BROKER_KEY": key} if key else {})}
    try:
        program = subprocess.run([sys.executable, "-c", text], env=environment, text=True, capture_output=True, timeout=120)
    finally:
        stop.set()
        for page in pages:
            page.join()
    assert program.returncode == 0, program.stderr
    names = {user: user if tokens else session for user, session in sessions.items()}
    assert program.stdout == expected.format(**names), program.stdout


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--key")
    parser.add_argument("--page", action="append", default=[], help="a user and its token: USER=TOKEN")
    args = parser.parse_args()
    tokens = dict(page.split("=", 1) for page in args.page)
    blocks = [block for block in blocks_of(PAGE, (ROOT / PAGE).read_text()) if block.language == "python" and "import httpx" in block.text]
    assert len(blocks) == 2, blocks
    expected = [({"lee": "S7"}, SYNC), ({"mia": "of-mia", "noa": "of-noa"}, ASYNC)]
    for block, (sessions, output) in zip(blocks, expected, strict=True):
        check(block.text, args.url, args.key, sessions, tokens, output)
        print(f"ok  {block}, {'with a key' if args.key else 'open'}")


main()
