"""Parts and buckets on the ranks of torch.distributed: the same bytes, and what becomes of ranks that fail or die."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from index_files import assert_same
from numbers_dataset import ROWS, metrics_of_numbers, numbers

import arrowds
from arrowds.build.engines import TorchEngine, Work
from arrowds.build.engines.torch_ranks import address_of
from arrowds.errors import ConfigError, MissingExtraError

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
STARTS = [0, 1100, 2200, 3300, 4400]

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
import arrowds
from arrowds.build.engines import TorchEngine, device
from numbers_dataset import metrics_of_numbers, numbers

rank = int(os.environ.get("RANK") or os.environ["SLURM_PROCID"])
folder = Path(sys.argv[1])
chosen = metrics_of_numbers()
source = numbers()
options = dict(timeout_s=float(os.environ.get("TIMEOUT", 60)))

def slow(batch):
    if batch["id"][0] % 1100 == 0:
        (folder / f"began-{batch['id'][0]}-{rank}").touch()
    time.sleep(0.05)
    return batch["x"]

def engine():
    return TorchEngine(**options)

def build(metrics, path="index", **more):
    began = time.monotonic()
    try:
        index = arrowds.analyze(source, metrics, folder / path, engine=engine(), progress=False, **more)
        return index
    except BaseException as error:
        told = {"rank": rank, "type": type(error).__name__, "text": str(error), "at": time.time()}
        (folder / f"error-{rank}.json").write_text(json.dumps(told))
        sys.stdout.flush()
        os._exit(1)

#BODY
"""


def environment_of(rank: int, size: int, port: int, **more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **address, **ranks, **more}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def ranks(folder: Path, body: str, size: int, **more: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start ranks with no launcher around them, which would end the others when one dies."""
    script = folder / "script.py"
    script.write_text(SCRIPT.replace("#BODY", body))
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env=environment_of(rank, size, port, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


def torchrun(folder: Path, body: str, size: int, **more: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.replace("#BODY", body))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    environment = environment_of(0, 1, 0, **more)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del environment[name]
    command = [*launcher, str(script), str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=170)


def errors(folder: Path) -> dict[int, dict[str, object]]:
    return {found["rank"]: found for found in (json.loads(path.read_text()) for path in folder.glob("error-*.json"))}


def wait_for(folder: Path, pattern: str, count: int = 1) -> list[Path]:
    deadline = time.monotonic() + 100
    while len(matching := list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return matching


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    """The index of the numbers that one process makes."""
    path = tmp_path_factory.mktemp("local") / "index"
    arrowds.analyze(numbers(), metrics_of_numbers(), path, workers=1, progress=False)
    return path


def test_two_ranks_of_torchrun_write_the_files_of_one_process(tmp_path, expected):
    body = """
seen = []
engine_ = TorchEngine()
index = arrowds.analyze(source, chosen, folder / "index", engine=engine_, progress=lambda *rows: seen.append(rows))
assert seen == [] or rank == 0
assert rank or (seen[-1] == (10000, 10000) and len(seen) == 10), seen  # rank 0 tells what all have done
import torch.distributed
assert not torch.distributed.is_initialized()
assert index.num_samples == index.totals["histogram"].sum() == 5000
more = arrowds.append(source, folder / "index", metrics=chosen, engine=engine_, progress=False)
assert more.num_samples == 10000 and more.version == 2
arrowds.compact(folder / "index", engine="torch")
"""
    done = torchrun(tmp_path, body, 2)
    assert done.returncode == 0, done.stderr
    arrowds.analyze(numbers(), metrics_of_numbers(), tmp_path / "one", workers=1, progress=False)
    arrowds.append(numbers(), tmp_path / "one", metrics=metrics_of_numbers(), workers=1, progress=False)
    arrowds.compact(tmp_path / "one", workers=1)
    assert_same(tmp_path / "index", tmp_path / "one")


def test_three_ranks_of_a_process_group_of_which_one_has_nothing_to_do(tmp_path, expected):
    """Two builds on groups of two ranks, then one on all; more ranks than buckets, and parts that one rank holds up."""
    body = """
import torch.distributed as dist
dist.init_process_group("gloo")
pair = dist.new_group([1, 2])
if rank:
    options["group"] = pair
    build(chosen, "of-a-pair")
options["group"] = None
def waits(batch):
    if rank == 0 and batch["id"][0] == 0:
        time.sleep(3)
    return slow(batch)
build([*chosen, arrowds.metrics.function("waits", waits, version="1")])
dist.barrier()
os._exit(0)  # gloo's threads may abort a process that ends as usual
"""
    with ranks(tmp_path, body, 3) as running:
        for process in running:
            _, told = process.communicate(timeout=150)
            assert process.returncode == 0, told
    assert_same(tmp_path / "of-a-pair", expected)
    by_rank = [path.name.split("-")[2] for path in tmp_path.glob("began-*")]
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("began-*")) == STARTS  # each part once
    assert by_rank.count("0") <= 2  # the others have taken what rank 0 was too late for
    chosen = [*metrics_of_numbers(), arrowds.metrics.function("waits", lambda b: b["x"], version="1")]
    arrowds.analyze(numbers(), chosen, tmp_path / "one", workers=1, progress=False)
    assert_same(tmp_path / "index", tmp_path / "one")


SLOW = 'build([*chosen, arrowds.metrics.function("slow", slow, version="1")])\n'


@pytest.mark.parametrize(
    ("size", "victim", "how"),
    [(3, 2, signal.SIGKILL), (2, 1, signal.SIGSTOP), (2, 0, signal.SIGKILL), (2, 0, signal.SIGSTOP)],
    ids=["killed", "stopped", "the holder of the store is killed", "the holder of the store is stopped"],
)
def test_a_rank_that_dies_or_hangs_ends_the_others_with_its_name_and_the_next_run_resumes(tmp_path, size, victim, how):
    timeout = 3.0
    with ranks(tmp_path, SLOW, size, TIMEOUT=str(timeout)) as running:
        (tmp_path / "index").mkdir()
        wait_for(tmp_path, f"began-*-{victim}")
        finished = wait_for(tmp_path, "index/builds/*/runs/slow/*.arrow")
        running[victim].send_signal(how)
        at = time.time()
        for rank, process in enumerate(running):
            if rank != victim:
                process.communicate(timeout=150)
    told = errors(tmp_path)
    assert sorted(told) == [rank for rank in range(size) if rank != victim]
    for found in told.values():
        assert found["type"] == "WorkerDiedError"
        assert re.search(rf"rank {victim}\b.*(killed|hangs).*Finished work is kept", str(found["text"])), found
        assert float(str(found["at"])) - at < 1.2 * timeout + 12  # the part at hand, on a busy machine
    kept = {STARTS[int(path.stem)] for path in finished}
    before = {path.name for path in tmp_path.glob("began-*")}
    done = torchrun(tmp_path, SLOW, 2)
    assert done.returncode == 0, done.stderr
    again = {int(path.name.split("-")[1]) for path in tmp_path.glob("began-*") if path.name not in before}
    assert not again & kept
    chosen = [*metrics_of_numbers(), arrowds.metrics.function("slow", lambda b: b["x"], version="1")]
    arrowds.analyze(numbers(), chosen, tmp_path / "one", workers=1, progress=False)
    assert_same(tmp_path / "index", tmp_path / "one")


@pytest.mark.parametrize(
    ("body", "kind", "here", "elsewhere"),
    [
        (
            """
def broken(batch):
    if 4450 in batch["id"]:
        raise ZeroDivisionError("on purpose")
    return slow(batch)
build([*chosen, arrowds.metrics.function("broken", broken, version="1")])
""",
            "MetricFailedError",
            r"^metric 'broken' raised ZeroDivisionError on sample 4450: on purpose",
            r"^rank [01]: metric 'broken' raised ZeroDivisionError on sample 4450: on purpose",
        ),
        (
            """
if rank == 1:
    source = "/no/such/shard-7.parquet"
build(chosen)
""",
            "UnreadableFileError",
            r"^(?!rank).*/no/such/shard-7.parquet",
            r"^rank 1: .*/no/such/shard-7.parquet",
        ),
        (
            """
from arrowds.index import manifest
def refused(*args):
    raise OSError("no space")
manifest.commit = refused
build(chosen)
""",
            "OSError|WorkerDiedError",
            "^no space$",
            "^rank 0 failed with OSError: no space",
        ),
    ],
    ids=["metric", "data", "commit"],
)
def test_an_error_of_one_rank_is_raised_on_all(tmp_path, body, kind, here, elsewhere):
    with ranks(tmp_path, body, 2) as running:
        for process in running:
            process.communicate(timeout=150)
    told = errors(tmp_path)
    assert sorted(told) == [0, 1]
    assert all(re.fullmatch(kind, str(found["type"])) for found in told.values()), told
    texts = sorted((str(found["text"]) for found in told.values()), key=lambda text: text.startswith("rank"))
    assert re.search(here, texts[0]), texts
    assert re.search(elsewhere, texts[1]), texts


def test_ranks_that_differ_are_refused_and_named(tmp_path):
    body = """
if rank == 1:
    chosen[0] = arrowds.metrics.function("mod", lambda batch: batch["x"] % 96, dtype="int64")
if rank == 2:
    from numbers_dataset import Numbers, collate
    from arrowds.sources import TorchSource
    source = TorchSource(Numbers(4999), batch_size=100, collate_fn=collate)
    chosen.pop()
build(chosen)
"""
    with ranks(tmp_path, body, 3) as running:
        for process in running:
            process.communicate(timeout=150)
    told = errors(tmp_path)
    assert sorted(told) == [0, 1, 2]
    assert {found["type"] for found in told.values()} == {"ConfigError"}
    assert len({found["text"] for found in told.values()}) == 1
    text = str(told[0]["text"])
    assert re.search(r"rank 1 has another code of the metrics \(mod: ", text), text
    assert re.search(r"rank 2 has another data \(.*4999 samples.*, on rank 0 .*5000 samples", text), text
    assert re.search(r"rank 2 .* and metrics \(mod, tenth.*, on rank 0 .*histogram\)", text), text
    assert not (tmp_path / "index").exists()


def test_a_rank_that_never_comes_is_named(tmp_path):
    body = """
if rank == 1:
    TorchEngine(**options).close()  # it has met the others, but takes no part
    TorchEngine
    time.sleep(100)
first = TorchEngine(**options)
first.close()
build(chosen)
"""
    with ranks(tmp_path, body, 2, TIMEOUT="0.5") as running:
        running[0].communicate(timeout=150)
    assert errors(tmp_path)[0]["type"] == "WorkerDiedError"
    assert re.search("rank 1 of 2 has not come to this build for 5 s", str(errors(tmp_path)[0]["text"]))


def test_metrics_get_the_device_and_slurm_starts_ranks(tmp_path):
    body = """
options["device"] = "meta"
index = build(arrowds.metrics.function("m", lambda batch: np.full(len(batch["x"]), device() == "meta")))
assert index["m"].values.all()
assert device() == "cpu"
"""
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": str(free_port() - 20000), "SLURM_STEP_NODELIST": "localhost"}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("#BODY", body))
    running = []
    for rank in range(2):
        environment = environment_of(rank, 2, 0, **slurm, SLURM_PROCID=str(rank))
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del environment[name]
        command = [sys.executable, str(script), str(tmp_path)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, told = process.communicate(timeout=100)
        assert process.returncode == 0, told


def test_one_rank_in_this_process_does_everything(tmp_path, expected, monkeypatch):
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        arrowds.analyze(numbers(), metrics_of_numbers(), tmp_path / "index", engine="torch", progress=False)
        assert_same(tmp_path / "index", expected)
        engine = TorchEngine()
        with engine:
            done = engine.run(Work(lambda item: None, False, "number"), range(3))
            assert sorted(done) == [0, 1, 2]
            assert list(engine.run(Work(lambda item: None, False, "number"), [])) == []
            assert engine.once(lambda: 7) == 7
        engine.close()
    finally:
        dist.destroy_process_group()


def test_no_ranks_no_torch_and_wrong_numbers_are_refused(tmp_path, monkeypatch):
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"engine='torch' needs ranks: start the script with torchrun"):
        arrowds.analyze(numbers(), metrics_of_numbers(), tmp_path / "index", engine="torch")
    with pytest.raises(ConfigError, match="with engine='torch' the ranks are the workers"):
        arrowds.analyze(numbers(), metrics_of_numbers(), tmp_path / "index", engine="torch", workers=2)
    with pytest.raises(ConfigError, match="timeout_s must be above 0; got 0"):
        TorchEngine(timeout_s=0)
    with pytest.raises(ConfigError, match=r"there is no engine 'dask'; the engines are local, torch, ray"):
        arrowds.analyze(numbers(), metrics_of_numbers(), tmp_path / "index", engine="dask")
    monkeypatch.setitem(sys.modules, "torch.distributed", None)
    with pytest.raises(MissingExtraError, match=r"arrowds\[torch\]"):
        arrowds.analyze(numbers(), metrics_of_numbers(), tmp_path / "index", engine="torch")
    assert not (tmp_path / "index").exists()


def test_torchruns_variables_come_before_those_of_a_job_around_it():
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a"}
    inside = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "b", "MASTER_PORT": "1"}
    assert address_of({**slurm, **inside}) == (3, 4, "env://")
    assert address_of({**slurm, "MASTER_PORT": "5"}) == (0, 1, "tcp://a:5")
    assert ROWS == 5000
