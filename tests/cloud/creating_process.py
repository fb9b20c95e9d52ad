"""One of several processes that race to create objects: prints the names that it has created.

python creating_process.py URL OPTIONS_JSON COUNT
"""

from __future__ import annotations

import json
import os
import sys

from arrowds.store import ObjectStore


def main(url: str, options: str, count: str) -> None:
    store = ObjectStore(url, json.loads(options))
    print("ready", flush=True)
    sys.stdin.readline()
    mine = str(os.getpid()).encode()
    print(json.dumps([name for name in map("{:03}".format, range(int(count))) if store.create(name, mine)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
