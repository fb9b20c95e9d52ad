"""Processes that race to create objects: prints a line with the process id and the names that it has created for each.

python creating_process.py URL OPTIONS_JSON PROCESSES COUNT
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys

from arrowds.store import ObjectStore


def create(url: str, options: str, count: int, barrier: multiprocessing.Barrier) -> None:
    store = ObjectStore(url, json.loads(options))
    mine = str(os.getpid()).encode()
    barrier.wait()
    won = [name for name in map("{:03}".format, range(count)) if store.create(name, mine)]
    os.write(1, json.dumps([os.getpid(), won]).encode() + b"\n")


def main(url: str, options: str, processes: str, count: str) -> None:
    # Forked before anything has opened the store: its threads would not survive.
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(int(processes))
    racing = [context.Process(target=create, args=(url, options, int(count), barrier)) for _ in range(int(processes))]
    for process in racing:
        process.start()
    for process in racing:
        process.join()
    sys.exit(max(process.exitcode or 0 for process in racing))


if __name__ == "__main__":
    main(*sys.argv[1:])
