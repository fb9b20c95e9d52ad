"""The metrics of a curriculum in DeepSpeed's JSON: from indexes of arrowds, or the files of DeepSpeed's analyzer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from arrowds.curriculum.metric_values import DerivedMetric, MetricSource, MetricValues
from arrowds.curriculum.schedule import METRIC_KEYS, check_keys
from arrowds.errors import ConfigError, UnreadableFileError
from arrowds.index import open_index
from arrowds.integrations.deepspeed.import_legacy import open_analyzer_file

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class NamedMetrics:
    """Metrics by name, from several indexes or from files: what a sampler needs of an index."""

    num_samples: int
    fingerprint: str
    by_name: Mapping[str, MetricValues]

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics."""
        return list(self.by_name)

    def __getitem__(self, name: str) -> MetricValues:
        return self.by_name[name]


def open_curriculum_metrics(curriculum: Mapping[str, Settings], num_samples: int) -> MetricSource:
    """Open the indexes or files of the metrics of ``curriculum_metrics``.

    Each metric has an ``index_path``, the folder of an index, or DeepSpeed's ``index_to_sample_path`` and, for
    difficulties by value, ``index_to_metric_path``. A ``single_cluster`` metric needs neither. If one index has them
    all, the result is that index, so that a saved state also fits a sampler over the index.

    Args:
        curriculum: the settings by metric.
        num_samples: samples of the dataset.

    Raises:
        ConfigError: for a metric without paths, or a number of samples that differs from the dataset's.
        UnreadableFileError: for files of DeepSpeed's analyzer that are missing, damaged or of another dataset.
    """
    for name, settings in curriculum.items():
        check_keys(settings, METRIC_KEYS, where=f"the curriculum of {name!r}")
    paths = {str(settings["index_path"]) for settings in curriculum.values() if "index_path" in settings}
    indexes = {path: open_index(path) for path in paths}
    for path, index in indexes.items():
        _check_samples(f"the index {path}", index.num_samples, num_samples)
    if len(indexes) == 1 and not any(_reads_files(settings) for settings in curriculum.values()):
        return next(iter(indexes.values()))
    by_name: dict[str, MetricValues] = {}
    digests: list[str] = []
    for name, settings in curriculum.items():
        if "index_path" in settings:
            index = indexes[str(settings["index_path"])]
            if name not in index.metrics and settings.get("clustering_type") != "single_cluster":
                known = ", ".join(index.metrics) or "none"
                raise ConfigError(f"the index {index.path} has no metric {name!r}; it has {known}")
            by_name[name] = index[name]
            digests.append(index.fingerprint)
        elif _reads_files(settings):
            values = _read_files(name, settings)
            _check_samples(f"{settings['index_to_sample_path']}", len(values), num_samples)
            by_name[name] = DerivedMetric(values)
            digests.append(xxhash.xxh3_128_hexdigest(values.tobytes()))
    fingerprint = xxhash.xxh3_128_hexdigest(" ".join([str(num_samples), *by_name, *digests]).encode())
    return NamedMetrics(num_samples=num_samples, fingerprint=fingerprint, by_name=by_name)


def _reads_files(settings: Settings) -> bool:
    return "index_path" not in settings and settings.get("clustering_type") != "single_cluster"


def _check_samples(where: str, num_samples: int, expected: int) -> None:
    if num_samples != expected:
        raise ConfigError(
            f"{where} has {num_samples} samples but the dataset {expected}; index the dataset that you train on"
        )


def _read_files(name: str, settings: Settings) -> npt.NDArray[Any]:
    """Return one value per sample; for percentiles its place in the order is enough."""
    by_value = settings.get("difficulty_type", "value") == "value"
    needed = ["index_to_sample_path"] + (["index_to_metric_path"] if by_value else [])
    if missing := [key for key in needed if not settings.get(key)]:
        raise ConfigError(
            f"the curriculum of {name!r} has neither 'index_path', the folder of an index, nor "
            f"{' and '.join(missing)}, files of DeepSpeed's analyzer"
        )
    rows = open_analyzer_file(settings["index_to_sample_path"])
    ids = rows.tokens.astype(np.int64)
    if not np.array_equal(np.sort(ids), np.arange(len(ids))):
        raise UnreadableFileError(
            f"{rows.prefix} does not contain each sample from 0 to {len(ids) - 1} once; analyze the dataset again"
        )
    ordered = np.arange(len(ids))
    if by_value:
        distinct = open_analyzer_file(settings["index_to_metric_path"])
        if len(distinct.tokens) != len(rows):
            raise UnreadableFileError(
                f"{rows.prefix} has {len(rows)} rows and {distinct.prefix} {len(distinct.tokens)} values; "
                "these files do not match"
            )
        ordered = np.repeat(distinct.tokens, rows.sizes)
    values = np.empty_like(ordered)
    values[ids] = ordered
    return values
