"""Where parts are computed: in this process, in threads, in workers; and what becomes of workers that die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numbers_dataset import ROWS, Numbers, collate, numbers

import arrowds
from arrowds.build import map as mapping
from arrowds.build.engines import LocalEngine, Work, local
from arrowds.errors import ConfigError, MetricFailedError, SourceError, WorkerDiedError
from arrowds.sources import TorchSource

function = arrowds.metrics.function


def analyze(path: Path, fn, source=None, *, workers: int | None = 2, **options) -> arrowds.Index:
    metric = function("m", fn, dtype="int64")
    return arrowds.analyze(source or numbers(), metric, path, workers=workers, progress=False, **options)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"processes {alive} are still there"
        time.sleep(0.05)


def test_a_worker_that_is_killed_is_replaced_once(tmp_path, caplog):
    flag = tmp_path / "killed"

    def killed_once(batch):
        if batch["id"][0] == 1200 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch["x"]

    index = analyze(tmp_path / "index", killed_once)
    assert flag.exists()
    assert index["m"].values.tolist() == [i * 7919 % 1000 for i in range(ROWS)]
    assert "a worker was killed by signal 9 (SIGKILL) on samples 1100 to 2199; trying them once more" in caplog.text
    assert list((tmp_path / "index").rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was killed by signal 9 \(SIGKILL\)"),
        (lambda: sys.exit(3), "ended with exit status 3"),
    ],
    ids=["killed", "exits"],
)
def test_a_worker_that_ends_twice_is_reported_and_finished_parts_are_kept(tmp_path, end, how):
    def deadly(batch):
        if batch["id"][0] == 4400:
            end()
        return batch["x"]

    message = rf"a worker {how} on samples 4400 to 4999, 2 times; if memory ran out, .*Finished work is kept"
    with pytest.raises(WorkerDiedError, match=message):
        analyze(tmp_path / "index", deadly)
    names = [path.name for path in (tmp_path / "index").glob("builds/*/runs/m/*")]
    assert sorted(names) == [f"{number:05d}.arrow" for number in range(4)]
    assert not (tmp_path / "index" / "manifests").exists()


def test_a_death_is_not_held_against_the_parts_of_other_workers(tmp_path, caplog):
    """Two parts are at work at any time, and one of them kills its worker: the other is neither lost nor blamed."""

    def deadly(batch):
        if batch["id"][0] == 0:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(0.2)
        return batch["x"]

    with pytest.raises(WorkerDiedError, match=r"killed by signal 11 \(SIGSEGV\) on samples 0 to 1099, 2 times"):
        analyze(tmp_path / "index", deadly)
    assert {record.args[1] for record in caplog.records if "once more" in record.msg} == {"samples 0 to 1099"}


def test_a_worker_that_grows_is_not_taken_for_a_leak(tmp_path):
    """A memory-mapped dataset that is read page by page makes a process grow as well; loky restarts such workers."""

    def grows(batch):
        import loky.process_executor

        loky.process_executor._MEMORY_LEAK_CHECK_DELAY = 0.0
        if batch["id"][0] % 1100 == 0:
            kept = loky.process_executor.__dict__.setdefault("kept_by_the_test", [])
            kept.append(np.ones(45_000_000))
        return np.full(len(batch["x"]), os.getpid())

    values = analyze(tmp_path / "index", grows)["m"].values
    assert len(set(values.tolist())) == 2


def test_an_error_in_a_worker_names_the_sample_and_keeps_the_traceback(tmp_path):
    def broken_metric(batch):
        if 3333 in batch["id"]:
            raise ZeroDivisionError("on purpose")
        return batch["x"]

    with pytest.raises(
        MetricFailedError, match="metric 'm' raised ZeroDivisionError on sample 3333: on purpose"
    ) as caught:
        analyze(tmp_path / "index", broken_metric)
    assert "in broken_metric" in str(caught.value.__cause__)
    assert "ZeroDivisionError: on purpose" in str(caught.value.__cause__)


class Unpicklable(Numbers):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Unloadable(Numbers):
    def __setstate__(self, state):
        raise RuntimeError("can't be rebuilt")


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        (Unpicklable, "the dataset or a metric can't be pickled .*lock"),
        (Unloadable, "a worker process can't rebuild the dataset or a metric .RuntimeError: can't be rebuilt"),
    ],
)
def test_what_can_not_travel_is_computed_here_and_the_log_says_so(tmp_path, caplog, dataset, why):
    source = TorchSource(dataset(), batch_size=100, collate_fn=collate)
    index = analyze(tmp_path / "index", lambda batch: np.full(len(batch["x"]), os.getpid()), source)
    assert set(index["m"].values.tolist()) == {os.getpid()}
    assert "running in this process instead of 2 workers" in caplog.text
    assert re.search(why, caplog.text)


SCRIPT = """
import os, sys
import numpy as np
import arrowds
from arrowds.sources import TorchSource

class Squares:
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        return i * i

def closure(by):
    def multiplied(batch):
        return np.asarray(batch) * by + OFFSET
    return multiplied

OFFSET = 4
fn = arrowds.metrics.function
chosen = [
    fn("lambda", lambda batch: np.asarray(batch) + 1),
    fn("closure", closure(3)),
    fn("pid", lambda batch: np.full(len(batch), os.getpid())),
]
source = TorchSource(Squares(3000), collate_fn=lambda samples: np.array(samples))
index = arrowds.analyze(source, chosen, sys.argv[1], workers=2, progress=False)
assert index["lambda"].values.tolist() == [i * i + 1 for i in range(3000)]
assert index["closure"].values.tolist() == [i * i * 3 + 4 for i in range(3000)]
assert os.getpid() not in index["pid"].values
print("ran once")
"""


def test_a_script_needs_no_main_guard(tmp_path):
    """Lambdas, closures and the dataset's class live in the main module; workers must not run it again."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(path), "relative/index"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "ran once\n"), done.stderr
    assert done.stderr == ""
    assert arrowds.open_index(tmp_path / "relative/index", verify=True).num_samples == 3000


ISOLATED = """
import os, sys
import numpy as np
import arrowds
import beside_the_script
from numbers_dataset import numbers

def measured(batch):
    assert "PYTHONSAFEPATH" not in os.environ  # programs that a metric starts see the environment of the run
    return beside_the_script.doubled(batch["x"]) + 0 * os.getpid()

metric = arrowds.metrics.function("m", measured)
index = arrowds.analyze(numbers(), metric, sys.argv[1], workers=2, progress=False)
print(int(index["m"].values.sum()))
"""


def test_workers_run_nothing_from_the_current_folder_and_import_what_lies_beside_the_script(tmp_path):
    (scripts := tmp_path / "scripts").mkdir()
    (scripts / "script.py").write_text(ISOLATED)
    (scripts / "beside_the_script.py").write_text("def doubled(x):\n    return 2 * x\n")
    (here := tmp_path / "here").mkdir()
    for name in ("queue", "selectors", "signal", "loky", "arrowds", "numpy"):
        (here / f"{name}.py").write_text("print('executed', __name__)\nraise SystemExit(1)\n")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[3])])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, str(scripts / "script.py"), str(tmp_path / "index")]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False, timeout=100)
    expected = sum(2 * (i * 7919 % 1000) for i in range(ROWS))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")


ENDLESS = """
import os, signal, sys, time
from pathlib import Path
import arrowds
from numbers_dataset import numbers

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it runs in the background

def endless(batch):
    (Path(sys.argv[2]) / str(os.getpid())).touch()
    time.sleep(100)

arrowds.analyze(numbers(), arrowds.metrics.function("m", endless), sys.argv[1], workers=2, progress=False)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
def test_no_worker_outlives_its_run(tmp_path, how):
    """A worker that a killed run left would keep on computing, for nobody."""
    path, pids = tmp_path / "script.py", tmp_path / "pids"
    path.write_text(ENDLESS.replace("sys.argv[2]", repr(str(pids))))
    pids.mkdir()
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[3])])
    command = [sys.executable, str(path), str(tmp_path / "index")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 60
        while len(list(pids.iterdir())) < 2:
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.05)
        workers = [int(path.name) for path in pids.iterdir()]
        assert run.pid not in workers
        run.send_signal(how)
        run.wait(30)
    wait_until_gone(workers)


def test_an_error_while_parts_come_in_stops_the_workers_at_once(tmp_path):
    """Though the traceback, and with it the frames of the run, is still held."""
    (pids := tmp_path / "pids").mkdir()

    def noted(batch):
        (pids / str(os.getpid())).touch()
        return batch["x"]

    def refuse(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough") as caught:
        arrowds.analyze(numbers(), function("m", noted), tmp_path / "index", workers=2, progress=refuse)
    workers = [int(path.name) for path in pids.iterdir()]
    assert workers
    assert os.getpid() not in workers
    wait_until_gone(workers, seconds=2)
    assert caught.tb is not None


def test_small_jobs_stay_in_this_process_and_long_ones_move_to_workers(tmp_path, monkeypatch):
    def pids(batch):
        return np.full(len(batch["x"]), os.getpid())

    assert set(analyze(tmp_path / "small", pids, workers=None)["m"].values.tolist()) == {os.getpid()}
    assert set(analyze(tmp_path / "one", pids, workers=1)["m"].values.tolist()) == {os.getpid()}
    monkeypatch.setattr(local, "_STARTUP_SECONDS", 0.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    values = analyze(tmp_path / "long", pids, workers=None)["m"].values.tolist()
    assert values[0] == os.getpid()  # the first part tells how long the rest would take
    assert os.getpid() not in values[-1000:]


def test_threads_serve_what_works_outside_the_interpreter_lock(tmp_path, monkeypatch):
    table = pa.table({"x": [[1]] * 4000})
    threads = []
    done = mapping.map_part
    monkeypatch.setattr(
        mapping, "map_part", lambda task, part: (threads.append(threading.get_ident()), done(task, part))
    )
    arrowds.analyze(table, arrowds.metrics.seqlen("x"), tmp_path / "index", workers=3, progress=False)
    assert len(threads) == 4
    assert threading.get_ident() not in threads


def test_an_error_in_a_thread_is_the_error_of_the_run(tmp_path):
    table = pa.table({"x": pa.array([[1]] * 3000 + [None] + [[1]] * 99, pa.list_(pa.int8()))})
    with pytest.raises(arrowds.errors.MetricValueError, match="sample 3000"):
        arrowds.analyze(table, arrowds.metrics.seqlen("x"), tmp_path / "index", workers=2, progress=False)


def test_a_dataset_that_raises_in_a_worker_names_the_sample(tmp_path):
    class Broken(Numbers):
        def __getitem__(self, i):
            if i == 4321:
                raise OSError("bad block")
            return super().__getitem__(i)

    source = TorchSource(Broken(), batch_size=100, collate_fn=collate, fingerprint="broken")
    with pytest.raises(SourceError, match=r"sample 4321: .*Broken.*\[4321\] raised OSError: bad block"):
        analyze(tmp_path / "index", lambda batch: batch["x"], source)


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_at_all_are_refused(tmp_path, workers):
    with pytest.raises(ConfigError, match=f"workers must be at least 1; got {workers}"):
        analyze(tmp_path / "index", lambda batch: batch["x"], workers=workers)
    assert not (tmp_path / "index").exists()


def test_threads_stop_at_their_next_batch_when_a_run_is_interrupted(tmp_path):
    batches = 0

    class Slow(arrowds.metrics.SeqLen):
        in_threads = True

        def compute(self, batch, totals):
            nonlocal batches
            batches += 1
            time.sleep(0.002)
            return super().compute(batch, totals)

    class Rows(arrowds.sources.Source):
        """A source of batches of one row, of which two parts are read at a time."""

        schema = pa.schema({"x": pa.list_(pa.int8())})
        description = "rows"
        concurrent = True

        def __len__(self):
            return 3 * 1024

        def fingerprint(self):
            return "0" * 32

        def part_boundaries(self, target_rows):
            return [0, 2, 1536, 3072]

        def read(self, start, stop, columns=None):
            for _ in range(start, stop):
                yield pa.record_batch([pa.array([[1]], self.schema.field(0).type)], schema=self.schema)

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    metric = Slow(name="m", column="x", dtype=pa.int64())
    with pytest.raises(KeyboardInterrupt):
        arrowds.analyze(Rows(), metric, tmp_path / "index", workers=2, progress=interrupt)
    assert batches < 1000  # and not the 3072 of all parts


def test_a_thread_that_does_not_stop_is_waited_for_no_longer_than_the_limit(monkeypatch):
    monkeypatch.setattr(local, "_STOPPING_SECONDS", 0.05)
    begun, hung = threading.Event(), threading.Event()

    def do(item):
        if item:
            begun.set()
        (hung if item else begun).wait(60)

    running = LocalEngine(2).run(Work(do, releases_gil=True, name="item"), [0, 1])
    assert next(running) == 0
    running.close()
    assert not hung.is_set() and threading.active_count() > 1  # it was not waited for
    hung.set()
