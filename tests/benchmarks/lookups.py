"""What the benchmarks ask of indexes that hold the same values, to be compared with one another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from measure import alternating

import arrowds

Action = Callable[[], object]


def lookups(path: str, version: int | None = None) -> dict[str, tuple[Action, int]]:
    """Lookups of one snapshot by name, each with how often it is repeated in a round."""
    index = arrowds.open_index(path, version=version)
    m = index["m"]
    random = np.random.default_rng(0)
    ids = random.integers(0, len(m), 100_000)
    bounds = iter(np.tile(random.integers(0, 50_000, 1000), 10_000).tolist())
    return {
        "open": (lambda: arrowds.open_index(path, version=version), 20),
        "one id": (lambda: m[777], 10_000),
        "100,000 random ids": (lambda: m[ids], 10),
        "ids of a range of values": (lambda: m.sample_ids(above=next(bounds), up_to=50_000), 500),
        "ids between percentiles": (lambda: m.sample_ids_between_percentiles(10.5, 60), 500),
        "quantile": (lambda: m.quantile(0.9), 500),
        "histogram of 50 bins": (m.histogram, 1),
    }


def compare(contenders: dict[str, dict[str, tuple[Action, int]]], *, rounds: int) -> None:
    """Print the median of each lookup in microseconds, the contenders in turn, and the ratios to the last one."""
    names = list(contenders)
    print(f"{'microseconds':44}" + "".join(f"{name:>16}" for name in names) + f"   over {names[-1]}")
    for lookup in contenders[names[0]]:
        rivals = {name: found[lookup] for name, found in contenders.items() if lookup in found}
        repeats = next(iter(rivals.values()))[1]
        for action, _ in rivals.values():
            action()  # what is read once, and kept
        times = alternating({name: action for name, (action, _) in rivals.items()}, rounds=rounds, repeats=repeats)
        columns = "".join(f"{1e6 * times[name]:16.3f}" if name in times else f"{'':16}" for name in names)
        last = times.get(names[-1])
        ratios = ", ".join(f"{times[name] / last:.2f}" for name in names[:-1] if name in times) if last else ""
        print(f"{lookup:44}{columns}   {ratios}")
