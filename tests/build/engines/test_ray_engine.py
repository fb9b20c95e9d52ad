"""Parts and buckets as Ray tasks and in Ray actors, on three nodes of this machine, one of which is lost on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from index_files import assert_same, contents
from numbers_dataset import ROWS, metrics_of_numbers, numbers

import arrowds
from arrowds.build.engines import RayEngine, device
from arrowds.build.engines.processes import UnloadableTaskError
from arrowds.errors import ConfigError, MetricFailedError, MissingExtraError, WorkerDiedError

# Ray's own modules warn of what will change in Ray and of sockets that its processes leave open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TESTS = Path(__file__).parents[2]
STARTS = [0, 1100, 2200, 3300, 4400]  # of the parts of the numbers

function = arrowds.metrics.function


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[object]:
    """Three nodes of one processor each; this process is connected to them."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        options = {"num_cpus": 1, "object_store_memory": 80 << 20}
        nodes = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
        for _ in range(2):
            nodes.add_node(**options)
        nodes.wait_for_nodes()
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    """The index of the numbers that one process makes."""
    path = tmp_path_factory.mktemp("local") / "index"
    arrowds.analyze(numbers(), metrics_of_numbers(), path, workers=1, progress=False)
    return path


def analyze(path: Path, fn, **options) -> arrowds.Index:
    metric = function("m", fn, dtype="int64")
    return arrowds.analyze(numbers(), metric, path, engine=RayEngine(**options), progress=False)


@pytest.mark.parametrize("options", [{}, {"max_in_flight": 1}, {"actors": 2}], ids=["tasks", "one at a time", "actors"])
def test_the_files_are_those_of_one_process(cluster, expected, tmp_path, options):
    engine = RayEngine(**options)
    done = []
    chosen = metrics_of_numbers()
    arrowds.analyze(
        numbers(), chosen, tmp_path / "index", engine=engine, progress=lambda rows, total: done.append((rows, total))
    )
    assert_same(tmp_path / "index", expected)
    assert done[-1] == (2 * ROWS, 2 * ROWS)  # vocab_rarity takes a second pass
    assert len(done) == 2 * len(STARTS)
    import ray

    assert ray.is_initialized()  # the engine has not made the connection, so it does not end it


def test_an_actor_loads_a_model_once_and_does_many_parts(cluster, tmp_path):
    (loaded := tmp_path / "loaded").mkdir()
    (measured := tmp_path / "measured").mkdir()

    class Model:
        def __init__(self) -> None:
            self.weights = None

        def __call__(self, batch):
            if self.weights is None:
                self.weights = 3
                (loaded / str(os.getpid())).touch()
            (measured / f"{batch['id'][0]} {device()}").touch()
            return batch["x"] * self.weights

        def __reduce__(self):
            return Model, ()

    metric = arrowds.metrics.function("m", Model(), version="a model")
    index = arrowds.analyze(numbers(), metric, tmp_path / "index", engine=RayEngine(actors=2), progress=False)
    assert index["m"].values.tolist() == [i * 7919 % 1000 * 3 for i in range(ROWS)]
    assert 1 <= len(list(loaded.iterdir())) <= 2
    assert {path.name for path in measured.iterdir()} == {f"{start} cpu" for start in range(0, ROWS, 100)}


def test_a_metric_that_fails_names_the_sample_and_is_not_tried_again(cluster, tmp_path):
    (tries := tmp_path / "tries").mkdir()

    def broken_metric(batch):
        if 3333 in batch["id"] and len(batch["id"]) > 1:
            (tries / str(time.monotonic_ns())).touch()
        if 3333 in batch["id"]:
            raise ZeroDivisionError("on purpose")
        return batch["x"]

    with pytest.raises(MetricFailedError, match="'m' raised ZeroDivisionError on sample 3333: on purpose") as caught:
        analyze(tmp_path / "index", broken_metric)
    assert "in broken_metric" in str(caught.value.__cause__)
    once = len(list(tries.iterdir()))  # the part, and the halves of its batch that tell the sample
    with pytest.raises(MetricFailedError, match="on sample 3333: on purpose"):
        analyze(tmp_path / "index", broken_metric, actors=1)
    assert len(list(tries.iterdir())) == 2 * once


@pytest.mark.parametrize("options", [{}, {"actors": 2}], ids=["tasks", "actors"])
def test_a_part_on_which_workers_die_twice_is_named_and_finished_parts_are_kept(cluster, tmp_path, options):
    def deadly(batch):
        if batch["id"][0] == 4400:
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGKILL)
        return batch["x"]

    with pytest.raises(WorkerDiedError, match=r"died on samples 4400 to 4999, 2 times .*Finished work is kept"):
        analyze(tmp_path / "index", deadly, max_retries=1, **options)
    runs = {path.name for path in (tmp_path / "index").rglob("runs/*/*.arrow")}
    assert len(runs) >= 2


def test_what_can_not_travel_is_refused(cluster, tmp_path):
    lock = threading.Lock()
    with pytest.raises(UnloadableTaskError, match="the dataset or a metric can't be pickled"):
        analyze(tmp_path / "index", lambda batch: batch["x"] if lock else None)


DRIVER = """
import sys, time
from pathlib import Path
import arrowds
from arrowds.build.engines import RayEngine
from numbers_dataset import metrics_of_numbers, numbers

def noted(batch):
    if batch["id"][0] % 1100 == 0:
        (Path(sys.argv[2]) / f"{batch['id'][0]}-{time.monotonic_ns()}").touch()
    time.sleep(0.05)
    return batch["x"]

noted_from = sys.argv[2]
arrowds.analyze(numbers(), [*metrics_of_numbers(), arrowds.metrics.function("noted", noted, version="1")],
                sys.argv[1], engine=RayEngine(sys.argv[3], num_cpus=1), progress=False)
""".replace("Path(sys.argv[2])", "Path(noted_from)")


def test_a_driver_that_is_killed_leaves_finished_parts_and_the_next_one_resumes(cluster, tmp_path):
    import ray

    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    (notes := tmp_path / "notes").mkdir()
    (untouched := tmp_path / "other").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, str(script), str(tmp_path / "index"), str(notes), cluster.address]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 120
        while not (finished := list((tmp_path / "index").rglob("runs/noted/*.arrow"))):
            assert time.monotonic() < deadline
            assert driver.poll() is None
            time.sleep(0.02)
        driver.kill()
    kept = {STARTS[int(path.stem)] for path in finished}
    while ray.available_resources().get("CPU", 0) < 3:  # Ray ends the workers of the lost driver
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = len(list(notes.iterdir()))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    again = [int(path.name.partition("-")[0]) for path in sorted(notes.iterdir())]
    assert len(again) > before
    assert all(count == 1 for start, count in Counter(again).items() if start in kept)
    command[2:4] = [str(tmp_path / "whole"), str(untouched)]
    script.write_text(DRIVER.replace("engine=RayEngine(sys.argv[3], num_cpus=1)", "workers=1"))
    assert subprocess.run(command, env=environment, check=False, timeout=120).returncode == 0
    assert_same(tmp_path / "index", tmp_path / "whole")


LOCAL = """
import sys
import ray
import arrowds
from arrowds.build.engines import RayEngine
from numbers_dataset import metrics_of_numbers, numbers

assert "ray" in sys.modules and not ray.is_initialized()
arrowds.analyze(numbers(), metrics_of_numbers(), sys.argv[1], engine=RayEngine("local"), progress=False)
assert not ray.is_initialized()
"""


def test_a_local_cluster_is_started_where_there_is_none_and_ends_with_the_build(tmp_path, expected):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    environment |= {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", LOCAL, str(tmp_path / "index")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "index", expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_gpus": -1}, "num_gpus must be at least 0; got -1"),
        ({"max_in_flight": 0}, "max_in_flight must be at least 1; got 0"),
        ({"actors": 0}, "actors must be at least 1; got 0"),
        ({"max_retries": -1}, "max_retries must be at least 0; got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RayEngine(**options)


def test_without_ray_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"arrowds\[ray\]"):
        arrowds.analyze(numbers(), metrics_of_numbers(), tmp_path / "index", engine="ray")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("options", [{}, {"actors": 3}], ids=["tasks", "actors"])
def test_a_lost_node_costs_the_parts_that_it_was_at(cluster, tmp_path, options):
    """The last tests of this file: the cluster is smaller afterwards, though another node comes."""
    (notes := tmp_path / "notes").mkdir()

    def noted(batch):
        import ray

        if batch["id"][0] % 1100 == 0:
            node = ray.get_runtime_context().get_node_id()
            (notes / f"{batch['id'][0]}-{node}-{time.monotonic_ns()}").touch()
        time.sleep(0.3)
        return batch["x"]

    def began() -> list[tuple[str, str, int]]:
        return [(start, node, int(at)) for start, node, at in (path.name.split("-") for path in notes.iterdir())]

    lost = []

    def lose() -> None:
        """Take away a node, not the one of the cluster's head, that has just begun a part: its worker lives on."""
        while not lost and not done.wait(0.01):
            finished = {str(STARTS[int(path.stem)]) for path in (tmp_path / "index").rglob("runs/noted/*.arrow")}
            busy = {node for start, node, at in began() if start not in finished and time.monotonic_ns() - at < 5e8}
            candidates = [node for node in cluster.worker_nodes if node.node_id in busy]
            if finished and candidates:
                lost.append(candidates[0].node_id)
                cluster.remove_node(candidates[0], allow_graceful=False)

    chosen = [*metrics_of_numbers(), arrowds.metrics.function("noted", noted, version="1")]
    done = threading.Event()
    (loser := threading.Thread(target=lose)).start()
    try:
        arrowds.analyze(numbers(), chosen, tmp_path / "index", engine=RayEngine(**options), progress=False)
    finally:
        done.set()
        loser.join()
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    counts = Counter(start for start, _, _ in began())
    again = {start for start, count in counts.items() if count > 1}
    assert sorted(map(int, counts)) == STARTS
    assert len(again) >= 1
    assert again <= {start for start, node, _ in began() if node in lost}
    assert len(again) <= 2  # what its one worker was at, and what waited for it
    chosen[-1] = arrowds.metrics.function("noted", lambda batch: batch["x"], version="1")
    arrowds.analyze(numbers(), chosen, tmp_path / "whole", workers=1, progress=False)
    assert contents(tmp_path / "index") == contents(tmp_path / "whole")
