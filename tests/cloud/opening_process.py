"""Processes that open the same index at once; each prints its number and a digest of what it sees.

python opening_process.py URL OPTIONS_JSON CACHE PROCESSES
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import xxhash

import arrowds


def opened(url: str, options: str, cache: str) -> str:
    index = arrowds.open_index(url, storage_options=json.loads(options), cache_dir=cache)
    digest = xxhash.xxh3_128()
    for name in index:
        digest.update(memoryview(index[name].values))
        digest.update(memoryview(index[name].order))
    return digest.hexdigest()


def main(url: str, options: str, cache: str, processes: str) -> int:
    if processes == "1":
        print(os.getpid(), opened(url, options, cache), flush=True)
        return 0
    # Forked before anything was opened: 64 interpreters would take minutes to start.
    waiting, go = os.pipe()
    children = []
    for _ in range(int(processes)):
        if (child := os.fork()) == 0:
            os.close(go)
            os.read(waiting, 1)  # returns when the parent closes its end
            try:
                os.write(1, f"{os.getpid()} {opened(url, options, cache)}\n".encode())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
    os.close(go)
    return sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
