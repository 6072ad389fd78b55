"""Runs in a lab node for `mosix.lab.drive`: asks that node's mosd what `mosps` and `migrate` ask.

One process that stays, because starting Python twice for each question would disturb what is
measured and take most of a test's time. A line of JSON on standard input is a question
(["jobs"], ["migrate", PID, TARGET] or ["failpoints", SPEC]), a line on standard output the answer:
{"result": …} or {"code": …, "message": …, "hint": …}. Ends with its input.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
from mosix.config import Paths
from mosix.errors import MosixError
from mosix.node import requests
from mosix.node.client import ask


def answer(question: list[Any]) -> Any:
    if question[0] == "jobs":
        rows = ask(Paths.choose(), requests.Processes(), requests.ProcessList).rows
        return msgspec.to_builtins(rows)
    if question[0] == "failpoints":
        ask(Paths.choose(), requests.Failpoints(spec=question[1]), requests.Armed)
        return None
    _, pid, target = question
    order = requests.Migrate(pid=pid, target=target, wait=True)
    moved = ask(Paths.choose(), order, requests.Migrated, timeout_s=None)
    return {"freeze_ns": moved.freeze_ns, "page_bytes": moved.page_bytes}


def main() -> None:
    for line in sys.stdin:
        try:
            said = {"result": answer(json.loads(line))}
        except MosixError as error:
            said = {"code": error.code, "message": error.message, "hint": error.hint}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
