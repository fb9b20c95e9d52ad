"""What importing costs, in fresh processes, beside the import of the two packages that arrowds is made of.

python tests/benchmarks/bench_import.py [--rounds 15]

`import arrowds` loads nothing until a name of it is used; the lines below it use one. Compiled modules must be kept, as
an installation does: PYTHONDONTWRITEBYTECODE must not be set.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from tempfile import TemporaryDirectory

from measure import alternating

PEER = "import polars, pyarrow"
STATEMENTS = [
    "import arrowds",
    "import arrowds; arrowds.metrics",
    "import arrowds; arrowds.open_index",
    "import arrowds; arrowds.analyze",
    "import arrowds; arrowds.CurriculumSampler",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    with TemporaryDirectory() as compiled:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = compiled

        def run(statement: str) -> None:
            subprocess.run([sys.executable, "-c", statement], env=environment, check=True)

        for statement in (*STATEMENTS, PEER):
            run(statement)  # compiles
        contenders = {statement: partial(run, statement) for statement in (*STATEMENTS, PEER)}
        times = alternating(contenders, rounds=given.rounds)
    for statement, seconds in times.items():
        print(f"{statement:44}{1e3 * seconds:8.0f} ms   {seconds / times[PEER]:.2f}")


if __name__ == "__main__":
    main()
