"""Run the Python blocks of sections of docs/training.md in this process, and print as JSON what they came to.

Arguments: the document, then sections as TITLE=PACKAGE; a section whose package is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import sys
from pathlib import Path

COMMON = "What all have in common"


def blocks_of(document: str, title: str) -> list[str]:
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", document, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"```python\n(.*?)```", section[1], flags=re.DOTALL)


def pretend_a_launcher() -> None:
    """Set what the launcher of DeepSpeed or torchrun sets, for one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def main(document: str, sections: dict[str, str]) -> dict[str, list[float]]:
    results = {}
    for title, package in sections.items():
        if importlib.util.find_spec(package) is None:
            continue
        if package == "deepspeed":
            pretend_a_launcher()
        names = {"__name__": "document"}
        for number, block in enumerate([*blocks_of(document, COMMON), *blocks_of(document, title)]):
            exec(compile(block, f"{title}, block {number}", "exec"), names)
        results[title] = [names["in_one_go"], names["resumed"]]
    return results


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    found = main(text, dict(argument.split("=") for argument in sys.argv[2:]))
    print("\nRESULT", json.dumps(found))
