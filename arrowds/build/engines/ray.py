"""Items as Ray tasks, or in a pool of Ray actors: only they and their numbers travel; data is read where it is used."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from arrowds.build.engines.base import Engine, Item, Work, use_device
from arrowds.build.engines.processes import UnloadableTaskError, call
from arrowds.errors import ConfigError, MissingExtraError, WorkerDiedError

logger = logging.getLogger(__name__)

_IN_FLIGHT = 1000
"""Tasks that Ray knows of at a time: enough for any cluster, and for an autoscaler to see the demand."""


class RayEngine(Engine):
    """A Ray cluster: the one that this process is connected to, the one at ``address``, or a local one.

    Every part of the map and every bucket of the reduce is a task, which returns its number. Dataset and metrics are
    put into the object store once. A worker process or a node that is lost costs the items that it was busy with: they
    are run again elsewhere. All nodes must see the index, and the data, at the same path or URL.

    Args:
        address: as for ``ray.init``: None for ``RAY_ADDRESS``, a cluster that runs on this machine, or else a local one
            that ends with the build.
        num_cpus: processors that an item needs.
        num_gpus: GPUs that a part needs, also a fraction; the reduce needs none.
        max_in_flight: items that are handed to Ray at a time.
        actors: None to run parts as tasks; a number for that many actors, each a process that does one part after the
            other, so that a model is loaded once in each of them.
        max_retries: how often an item is run again when its worker died or its node was lost; errors of a metric are
            not retried.
        runtime_env: as for Ray's tasks, for instance ``{"py_modules": [...]}`` for code that workers lack.

    Raises:
        ConfigError: for numbers out of range.
        MissingExtraError: when ray is not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        max_in_flight: int | None = None,
        actors: int | None = None,
        max_retries: int = 3,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        for name, number, least in (
            ("num_cpus", num_cpus, 0),
            ("num_gpus", num_gpus, 0),
            ("max_in_flight", max_in_flight, 1),
            ("actors", actors, 1),
            ("max_retries", max_retries, 0),
        ):
            if number is not None and number < least:
                raise ConfigError(f"{name} must be at least {least}; got {number}")
        _ray()
        self._address = address
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._most = max_in_flight or _IN_FLIGHT
        self._actors = actors
        self._max_retries = max_retries
        self._runtime_env = dict(runtime_env or {})
        self._pool: list[Any] = []
        self._has_started_ray = False

    def run(self, work: Work, items: Sequence[Item]) -> Generator[Item, None, None]:
        if not items:
            return
        ray = self._connected()
        try:
            function = ray.put(work.function)
        except Exception as error:
            raise UnloadableTaskError(f"the dataset or a metric can't be pickled ({error})") from error
        if self._actors is not None and work.runs_metrics:
            yield from self._in_actors(work, items, function)
        else:
            self._end_actors()  # tasks may need the processors that these hold
            yield from self._in_tasks(work, items, function)

    def close(self, error: BaseException | None = None) -> None:
        """End the actors, and the connection to Ray if this engine has made it."""
        self._end_actors()
        if self._has_started_ray:
            _ray().shutdown()
        self._has_started_ray = False

    def _end_actors(self) -> None:
        ray = _ray()
        while self._pool:
            actor = self._pool.pop()
            if ray.is_initialized():
                ray.kill(actor)

    def _connected(self) -> Any:
        ray = _ray()
        if not ray.is_initialized():
            try:
                ray.init(address=self._address, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                where = self._address or "its default address"
                raise ConfigError(f"can't connect to Ray at {where}: {error}") from error
            self._has_started_ray = True
        return ray

    def _options(self, work: Work) -> dict[str, Any]:
        return {
            "num_cpus": self._num_cpus,
            "num_gpus": self._num_gpus if work.runs_metrics else 0,
            "runtime_env": self._runtime_env or None,
            "scheduling_strategy": "SPREAD",
        }

    def _setting(self, work: Work) -> _Setting:
        return _Setting("cuda:0" if self._num_gpus and work.runs_metrics else "cpu", max(1, int(self._num_cpus)))

    def _in_tasks(self, work: Work, items: Sequence[Item], function: Any) -> Generator[Item, None, None]:
        ray = _ray()
        task = ray.remote(_do).options(
            **self._options(work), name=f"arrowds {work.name}", max_retries=self._max_retries, retry_exceptions=False
        )
        setting = self._setting(work)
        waiting = deque(range(len(items)))
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._most:
                    number = waiting.popleft()
                    running[task.remote([function], setting, number, items[number])] = number
                for reference in _finished(list(running)):
                    number = running.pop(reference)
                    try:
                        ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        raise _cause_of(error) from error
                    except ray.exceptions.RayError as error:
                        raise self._dead(work, items[number], error) from error
                    yield items[number]
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _in_actors(self, work: Work, items: Sequence[Item], function: Any) -> Generator[Item, None, None]:
        """Do items in actors, one at a time in each; one that dies is replaced, and its item tried again.

        An actor gets items only once it runs: after the loss of a node there may be no room for all of them.
        """
        ray = _ray()
        waiting = deque(range(len(items)))
        deaths: Counter[int | None] = Counter()
        setting = self._setting(work)
        self._pool += [self._new_actor(work) for _ in range(len(self._pool), min(self._actors or 1, len(items)))]
        busy: dict[Any, tuple[Any, int | None]] = {
            actor.load.remote([function], setting): (actor, None) for actor in self._pool
        }
        idle: list[Any] = []
        while waiting or any(number is not None for _, number in busy.values()):
            for reference in _finished(list(busy)):
                actor, number = busy.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _cause_of(error) from error
                except ray.exceptions.RayError as error:
                    deaths[number] += 1
                    if deaths[number] > self._max_retries:
                        raise self._dead(work, None if number is None else items[number], error) from error
                    self._pool.remove(actor)
                    ray.kill(actor)
                    if number is not None:
                        logger.warning("an actor died on %s; trying them once more", work.label(items[number]))
                        waiting.appendleft(number)
                    self._pool.append(fresh := self._new_actor(work))
                    busy[fresh.load.remote([function], setting)] = fresh, None
                else:
                    idle.append(actor)
                    if number is not None:
                        yield items[number]
            while waiting and idle:
                actor, number = idle.pop(), waiting.popleft()
                busy[actor.do.remote(number, items[number])] = actor, number

    def _new_actor(self, work: Work) -> Any:
        ray = _ray()
        return ray.remote(_Holder).options(**self._options(work), max_restarts=0, max_task_retries=0).remote()

    def _dead(self, work: Work, item: object | None, error: Exception) -> WorkerDiedError:
        where = "before its first part" if item is None else f"on {work.label(item)}"
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return WorkerDiedError(
            f"a Ray worker died {where}, {self._max_retries + 1} times ({reason.strip()}); if memory ran out, ask for "
            "more num_cpus or use smaller batches. Finished work is kept: run again to resume"
        )


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    return ray


def _finished(references: list[Any]) -> list[Any]:
    """Wait for one of the references, and return all that are ready then."""
    ray = _ray()
    ray.wait(references, num_returns=1, fetch_local=False)
    ready: list[Any]
    ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
    return ready


def _cause_of(error: Any) -> BaseException:
    cause = error.cause
    return cause if isinstance(cause, BaseException) else error


# What follows runs in Ray's workers.


class _Setting:
    """What a task tells its process: the device of its metrics, and how many threads Polars may use."""

    def __init__(self, device: str, threads: int) -> None:
        self.device = device
        self.threads = threads

    def apply(self) -> None:
        use_device(self.device)
        os.environ.setdefault("POLARS_MAX_THREADS", str(self.threads))  # read when Polars starts its threads


_loaded: tuple[str, Callable[[Any], None]] | None = None


def _load(reference: Any) -> Callable[[Any], None]:
    """Return the function of some work, rebuilt once in each process."""
    global _loaded  # noqa: PLW0603  # a process does one work at a time
    key = reference.hex()
    if _loaded is None or _loaded[0] != key:
        try:
            _loaded = key, _ray().get(reference)
        except Exception as error:
            raise UnloadableTaskError(
                f"a Ray worker can't rebuild the dataset or a metric ({type(error).__name__}: {error}); where code is "
                "missing there, pass RayEngine(runtime_env=...)"
            ) from error
    return _loaded[1]


def _do(function: list[Any], setting: _Setting, number: int, item: Any) -> int:
    setting.apply()
    call(_load(function[0]), item)
    return number


class _Holder:
    """An actor: a process that keeps what metrics have loaded."""

    def load(self, function: list[Any], setting: _Setting) -> None:
        setting.apply()
        self._function = _load(function[0])

    def do(self, number: int, item: Any) -> int:
        call(self._function, item)
        return number
