"""MixtureSampler: batches from groups of samples, in proportions that may change at a step."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.config import Curriculum, curriculum_digest, parse_curriculum
from arrowds.curriculum.group_weights import GroupWeights, Weights, WeightSchedule
from arrowds.curriculum.metric_values import (
    MetricSource,
    check_known,
    evaluate,
    find_metric,
    fingerprint_of,
    joined,
    valid_rows,
)
from arrowds.curriculum.ranks import whole_number
from arrowds.curriculum.sampler import GroupSampler, SamplerOptions, Source, allowed_by, check_index, checked_ids
from arrowds.curriculum.stream import OnNewData
from arrowds.curriculum.token_steps import TokenShareDraws
from arrowds.errors import ConfigError, StateMismatchError
from arrowds.index.view import codes_in
from arrowds.states import count_in

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

Int64 = npt.NDArray[np.int64]
Groups = Mapping[str, "pl.Expr"] | str

_MOST_GROUPS = 1 << 16


class MixtureSampler(GroupSampler):
    """Yield the sample ids of one rank's microbatches, drawn from groups of samples in given proportions.

    The groups are parts of one index, or several indexes. Ids of several indexes are those of the datasets one after
    another, as ``torch.utils.data.ConcatDataset`` counts them: ``offsets[name] + id``. A group is drawn through before
    a sample of it comes up again.

    Args:
        indexes: an open index, or open indexes by the name of their group; the offsets follow their sequence.
        weights: the share of each group (any positive scale), or a list of (first step, shares), the first at 1.
        groups: of one index: by name, a Polars expression over metrics that is true for the samples of the group; or
            a metric, each of whose values is the name of a group.
        unit: what the weights are shares of. "samples": their numbers, any step at once. "tokens": after every step
            each group is within one sample's tokens of its share; the steps since the last mark are drawn again to
            find one. ``lengths`` names the metric that counts tokens.
        overlap: "raise" refuses samples that are in several groups; "first" leaves them to the first of these.
        rest: "raise" refuses samples that are in no group; "leave" never draws them; any other name makes a group of
            them.
        curricula: for each group a curriculum; groups without one are shuffled.
        where: a Polars expression over metrics; only samples for which it is true are drawn.
        exclude_ids: samples that are never drawn.
        options: all others of :class:`CurriculumSampler`.

    Raises:
        ConfigError: for invalid groups and weights, and as :class:`CurriculumSampler` raises.

    >>> import tempfile
    >>> import arrowds
    >>> import polars as pl
    >>> folder = tempfile.TemporaryDirectory()
    >>> lengths = pl.DataFrame({"seqlen": [1 + i % 64 for i in range(1000)]})
    >>> seqlen = arrowds.metrics.expr("seqlen", pl.col("seqlen"))
    >>> index = arrowds.analyze(lengths, [seqlen], folder.name + "/index", workers=1, progress=False)
    >>> groups = {"short": pl.col("seqlen") <= 32, "long": pl.col("seqlen") > 32}
    >>> sampler = MixtureSampler(index, {"short": 3, "long": 1}, groups=groups, micro_batch_size=8)
    >>> sorted(sampler.trace(1)["group"].to_pylist())
    ['long', 'long', 'short', 'short', 'short', 'short', 'short', 'short']
    >>> sampler.set_weights(11, {"short": 1, "long": 1})
    >>> [int((index["seqlen"].values[sampler.global_batch_at(step)] > 32).sum()) for step in (1, 10, 11, 50)]
    [2, 2, 4, 4]
    >>> folder.cleanup()
    """

    _kind = "MixtureSampler"

    def __init__(
        self,
        indexes: MetricSource | Mapping[str, MetricSource],
        weights: WeightSchedule,
        *,
        groups: Groups | None = None,
        unit: Literal["samples", "tokens"] = "samples",
        overlap: Literal["raise", "first"] = "raise",
        rest: str = "raise",
        curricula: Mapping[str, Curriculum] | None = None,
        where: pl.Expr | None = None,
        exclude_ids: Iterable[int] | None = None,
        **options: Unpack[SamplerOptions],
    ) -> None:
        if unit not in ("samples", "tokens"):
            raise ConfigError(f"unit must be 'samples' or 'tokens', got {unit!r}")
        if options.get("order", "stateless") != "stateless":
            raise ConfigError(f"a mixture needs the order 'stateless', got {options['order']!r}")
        curricula = dict(curricula or {})
        self._where, self._groups = where, groups
        if isinstance(indexes, Mapping):
            names, sources = self._of_indexes(indexes, groups, curricula, exclude_ids)
        else:
            self.index = indexes
            names, sources = self._of_groups(indexes, groups, curricula, exclude_ids, overlap=overlap, rest=rest)
        self._given = GroupWeights.of(weights, names)
        self._changes: list[tuple[int, dict[str, float]]] = []
        self._sizes = np.zeros(len(names), np.int64)
        for source in sources:
            self._sizes[source.groups] = source.sizes
        self._given.check_servable(self._sizes)
        super().__init__(sources, self._given, unit=unit, **options)

    def _of_indexes(
        self,
        indexes: Mapping[str, MetricSource],
        groups: Groups | None,
        curricula: Mapping[str, Curriculum],
        exclude_ids: Iterable[int] | None,
    ) -> tuple[list[str], list[Source]]:
        """Return the names of groups that are an index each, and their sources."""
        names = list(indexes)
        unknown = set(curricula) - set(names)
        if unknown or not names:
            raise ConfigError(f"curricula name {sorted(unknown)}, but the sources are {names}")
        if groups is not None:
            raise ConfigError("groups are those of one index: pass it alone, or leave groups out")
        for index in indexes.values():
            check_index(index)
        bounds = list(itertools.accumulate((index.num_samples for index in indexes.values()), initial=0))
        self.offsets = dict(zip(names, bounds, strict=False))
        self.num_samples = bounds[-1]
        excluded = checked_ids(exclude_ids, self.num_samples)
        sources = [
            Source(
                index=index,
                groups=np.array([number]),
                metrics=parse_curriculum(curricula.get(name, {})),
                allowed=None if self._where is None else allowed_by(index, self._where),
                exclude_ids=excluded[(excluded >= start) & (excluded < stop)] - start,
                offset=start,
            )
            for number, ((name, index), start, stop) in enumerate(
                zip(indexes.items(), bounds, bounds[1:], strict=False)
            )
        ]
        return names, sources

    def _of_groups(
        self,
        index: MetricSource,
        groups: Groups | None,
        curricula: Mapping[str, Curriculum],
        exclude_ids: Iterable[int] | None,
        *,
        overlap: str,
        rest: str,
    ) -> tuple[list[str], list[Source]]:
        """Return the names of the groups of an index, and their sources: those without a curriculum are one."""
        check_index(index)
        if groups is None:
            raise ConfigError("a mixture of one index needs groups: expressions by name, or a metric that names them")
        self.offsets, self.num_samples = {"": 0}, index.num_samples
        excluded = checked_ids(exclude_ids, index.num_samples)
        drawn = np.ones(index.num_samples, np.bool_) if self._where is None else allowed_by(index, self._where).copy()
        drawn[excluded] = False
        names, codes = group_samples(index, groups, drawn, overlap=overlap, rest=rest)
        if self._where is not None:
            codes[~drawn] = -1
        self._codes = codes
        if unknown := set(curricula) - set(names):
            raise ConfigError(f"curricula name {sorted(unknown)}, but the groups are {names!s:.200}")
        with_one = [number for number, name in enumerate(names) if curricula.get(name)]
        sources = [
            Source(
                index=index,
                groups=np.array([number]),
                metrics=parse_curriculum(curricula[names[number]]),
                allowed=codes == number,
                exclude_ids=excluded,
            )
            for number in with_one
        ]
        plain = np.setdiff1d(np.arange(len(names)), with_one)
        if len(plain):
            others = codes if not with_one else np.where(np.isin(codes, plain), codes, -1)
            sources.append(Source(index=index, groups=plain, codes=others, exclude_ids=excluded))
        return names, sources

    @property
    def groups(self) -> dict[str, int]:
        """How many samples of each group may be drawn."""
        return dict(zip(self._weights.names, self._sizes.tolist(), strict=True))

    def set_weights(self, from_step: int, weights: Weights) -> None:
        """Draw with other weights from a step on, in place of all that were set for it and later steps.

        They are kept in the saved state, so a sampler made with the first weights resumes exactly.

        Raises:
            ConfigError: for invalid weights, and where the step is drawn already, or, under a token budget, filled
                together with one that is.
        """
        from_step = whole_number("from_step", from_step, least=1)
        drawn = self._drawn_until(self._position)
        if from_step <= drawn:
            raise ConfigError(f"steps up to {drawn} are drawn already: set weights from step {drawn + 1} on, or later")
        changed = self._weights.changed(from_step, weights)
        changed.check_servable(self._sizes)
        given = {name: float(value) for name, value in weights.items()}
        self._changes = [change for change in self._changes if change[0] < from_step] + [(from_step, given)]
        self._use(changed, from_step)

    def _use(self, weights: GroupWeights, from_step: int) -> None:
        """Draw with weights that differ from a step on; what is known of the steps before it stays known."""
        steps, draws = self.__dict__.get("_steps"), self.__dict__.get("_draws")
        parts, source_phases = self.__dict__.get("_parts"), self.__dict__.get("_source_phases")
        self._weights = weights
        self._draw_again()
        if parts is not None and source_phases is not None:
            self._parts, self._source_phases = parts, source_phases
        if steps is not None and self._steps is not None:
            self._steps.remember([mark for mark in steps.marks if mark.step < from_step])
        if isinstance(draws, TokenShareDraws) and isinstance(self._draws, TokenShareDraws):
            self._draws.marks = [mark for mark in draws.marks if mark[0] <= from_step]

    def _drawn_until(self, position: int) -> int:
        """Return the last step that can't change any more once a position is reached."""
        step = self._step_of(position)
        return step if self._steps is None or not step else self._steps.end_of_block(step)

    def locate(self, ids: npt.ArrayLike) -> tuple[npt.NDArray[np.str_], Int64]:
        """Return the group of each id, and the id within its index; the group is ``""`` where it has none.

        Raises:
            ConfigError: for an id of no sample.
        """
        array = np.asarray(ids, np.int64)
        if array.size and not (array.min() >= 0 and array.max() < self.num_samples):
            raise ConfigError(f"ids must lie within 0 to {self.num_samples - 1}; got {array.min()} to {array.max()}")
        if self._groups is not None:
            return np.array([*self._weights.names, ""])[self._codes[array]], array
        offsets = np.array(list(self.offsets.values()))
        number = np.searchsorted(offsets, array, side="right") - 1
        return np.array(self._weights.names)[number], array - offsets[number]

    def identity(self) -> dict[str, Any]:
        """Return what a saved state must agree in. Weights of later steps may change."""
        own: dict[str, Any] = {
            "order": "mixture",
            "unit": self._unit_of_weights,
            "where": None if self._where is None else str(self._where),
        }
        if self._groups is None:
            own["indexes"] = {
                name: fingerprint_of(source.index, self._names(source))
                for name, source in zip(self._weights.names, self._sources, strict=True)
            }
        else:
            own["index"] = fingerprint_of(self._sources[0].index, [n for s in self._sources for n in self._names(s)])
            own["groups"] = self._digest_of_groups
        own["curricula"] = {
            self._weights.names[source.groups[0]]: curriculum_digest(source.metrics, None)
            for source in self._sources
            if source.codes is None
        }
        return super().identity() | own

    @cached_property
    def _digest_of_groups(self) -> str:
        digest = hashlib.blake2b(json.dumps(self._weights.names).encode(), digest_size=8)
        digest.update(self._codes.tobytes())
        return digest.hexdigest()

    def _names(self, source: Source) -> list[str]:
        expressions = [] if self._where is None else [self._where]
        if isinstance(self._groups, Mapping):
            expressions += self._groups.values()
        named = [name for expression in expressions for name in expression.meta.root_names()]
        return self._names_of(source) + named + ([self._groups] if isinstance(self._groups, str) else [])

    def state_at(self, position: int) -> dict[str, Any]:
        """Return the position, the identity of the stream and the changes of weights: JSON-serialisable values."""
        until = self._drawn_until(position)
        return super().state_at(position) | {
            "weights": {"until": until, "digest": self._weights.digest(until)},
            "weight_changes": [[step, weights] for step, weights in self._changes],
        }

    def checked_position(self, state: Mapping[str, Any], on_new_data: OnNewData = "refuse") -> int:
        """Return the position of a saved state that fits, the weights up to it included; take its changes of weights.

        Raises:
            StateMismatchError: naming everything in which the state differs.
        """
        before = self._weights, self._changes
        try:
            self._take_weights(state)
            return super().checked_position(state, on_new_data)
        except StateMismatchError:
            if self._weights is not before[0]:
                self._use(before[0], 1)
                self._changes = before[1]
            raise

    def _take_weights(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or state.get("order") != "mixture":
            return  # it is refused for that
        saved, changes = state.get("weights"), state.get("weight_changes")
        if not isinstance(saved, Mapping) or not isinstance(changes, list):
            raise StateMismatchError("the saved state is damaged: it has no weights")
        weights, taken = self._given, []
        try:
            for step, row in changes:
                weights = weights.changed(whole_number("from_step", step, least=1), row)
                taken.append((step, dict(row)))
            weights.check_servable(self._sizes)
        except (ConfigError, TypeError, ValueError) as error:
            raise StateMismatchError(f"the saved state has changes of weights that do not fit: {error}") from error
        until = count_in(saved, "until")
        if until < count_in(state, "curriculum_step") or saved.get("digest") != weights.digest(until):
            raise StateMismatchError(
                f"the saved run had other weights up to step {until}; pass those that it was started with. Weights of "
                "later steps may differ"
            )
        if taken != self._changes:
            self._use(weights, 1)
            self._changes = taken

    def trace(self, steps: int | Iterable[int]) -> pa.Table:
        """Return the samples of steps over all ranks, as :meth:`CurriculumSampler.trace` does, with their ``group``."""
        import pyarrow as pa

        table = super().trace(steps)
        group, _ = self.locate(table["sample_id"].to_numpy())
        return table.add_column(4, "group", pa.array(group, pa.string()))

    def _traced(self) -> dict[str, Any]:
        derived = {
            f"{self._prefix(source)}{name}": values
            for source in self._sources
            if self._groups is not None
            for name, values in source.derived.items()
        }
        indexes = list(self._indexes.values())
        names = [name for name in indexes[0].metrics if all(name in index.metrics for index in indexes)]
        if len(indexes) == 1:
            return {name: indexes[0][name] for name in names} | derived
        return {name: _Joined([index[name] for index in indexes], list(self._indexes)) for name in names}


class _Joined:
    """The values of a metric that several indexes have, by the ids of the mixture."""

    def __init__(self, metrics: list[Any], offsets: list[int]) -> None:
        names_of = [getattr(metric, "names", ()) for metric in metrics]
        self.names = sorted(set().union(*names_of))
        values = [metric.values for metric in metrics]
        if self.names:
            pairs = zip(values, names_of, strict=True)
            values = [
                np.ma.MaskedArray(codes_in(self.names, names)[np.ma.getdata(codes)], mask=np.ma.getmask(codes))
                for codes, names in pairs
            ]
        self._gather = joined(values, offsets)

    @property
    def values(self) -> Any:
        return self

    def __getitem__(self, ids: Int64) -> np.ndarray:
        return self._gather(ids)


def group_samples(
    index: MetricSource,
    groups: Groups,
    drawn: npt.NDArray[np.bool_],
    *,
    overlap: str = "raise",
    rest: str = "raise",
) -> tuple[list[str], Int64]:
    """Return the names of groups of an index, and the number of the group of each sample: -1 where it has none.

    Args:
        index: where the metrics are.
        groups: expressions by name, or a metric whose values are the names.
        drawn: which samples have to be in a group.
        overlap: what becomes of samples in several groups.
        rest: what becomes of samples in none.

    Raises:
        ConfigError: for samples in several groups, or in none, unless it is said what becomes of them.
    """
    if overlap not in ("raise", "first"):
        raise ConfigError(f"overlap must be 'raise' or 'first', got {overlap!r}")
    if not isinstance(rest, str):
        raise ConfigError(f"rest must be 'raise', 'leave' or the name of a group, got {rest!r}")
    names, codes = _by_value(index, groups) if isinstance(groups, str) else _by_expression(index, groups, overlap)
    missing = (codes < 0) & drawn
    if rest == "raise" and missing.any():
        raise ConfigError(
            f"{int(missing.sum())} samples are in no group, the first is sample {int(missing.argmax())}: pass "
            "rest='leave', which never draws them, or rest='NAME', which makes a group of them"
        )
    if rest not in ("raise", "leave"):
        if rest in names:
            raise ConfigError(f"rest={rest!r} is a group already; choose another name")
        codes[codes < 0] = len(names)
        names = [*names, rest]
    return names, codes


def _by_expression(index: MetricSource, groups: Mapping[str, pl.Expr], overlap: str) -> tuple[list[str], Int64]:
    if not groups or not isinstance(groups, Mapping):
        raise ConfigError(f"groups must be expressions by name, or the name of a metric, got {groups!r:.60}")
    codes, twice, pair = np.full(index.num_samples, -1, np.int64), 0, ("", "", 0)
    for number, (name, expression) in enumerate(groups.items()):
        values = evaluate(index, expression)
        if values.dtype != np.bool_:
            raise ConfigError(f"the group {name!r} must be true or false for each sample, but gives {values.dtype}")
        mine = np.flatnonzero(np.ma.filled(values, False))
        again = mine[codes[mine] >= 0]
        if len(again) and not twice:
            pair = (list(groups)[codes[again[0]]], name, int(again[0]))
        twice += len(again)
        codes[mine[codes[mine] < 0]] = number
    if twice and overlap == "raise":
        raise ConfigError(
            f"{twice} samples are in several groups, such as sample {pair[2]}, in {pair[0]!r} and {pair[1]!r}: "
            "change the expressions, or pass overlap='first', which leaves each to the first of its groups"
        )
    return list(groups), codes


def _by_value(index: MetricSource, metric: str) -> tuple[list[str], Int64]:
    """Return a group for each value of a metric, by ascending value."""
    check_known(index, metric)
    values = index[metric].values
    if names := getattr(index[metric], "names", ()):  # of a categorical metric, whose values are their places
        return list(names), np.where(np.ma.getmaskarray(values), -1, np.ma.getdata(values).astype(np.int64))
    valid = valid_rows(values)
    plain = np.ma.getdata(values)
    distinct, code = np.unique(plain if valid is None else plain[valid], return_inverse=True)
    if len(distinct) > _MOST_GROUPS:
        raise ConfigError(
            f"{metric!r} has {len(distinct)} distinct values, more than {_MOST_GROUPS} groups: group by expressions"
        )
    codes = np.full(len(plain), -1, np.int64)
    codes[slice(None) if valid is None else valid] = code.reshape(-1)
    return [str(value) for value in distinct.tolist()], codes


def quantile_groups(index: MetricSource, metric: str, quantiles: Iterable[float]) -> dict[str, pl.Expr]:
    """Return groups of samples by quantiles of a metric, for an upsampling curve: shares by quality, for instance.

    Each group has the samples above the value at the quantile before and up to that at its own, so samples of one value
    stay together. Samples without a value are in no group.

    Args:
        index: where the metric is.
        metric: its name.
        quantiles: where groups end, ascending, from above 0 to 1.

    Raises:
        ConfigError: for other quantiles, and for two that have the same value.

    >>> import tempfile
    >>> import arrowds
    >>> import polars as pl
    >>> folder = tempfile.TemporaryDirectory()
    >>> quality = arrowds.metrics.expr("quality", pl.col("quality"))
    >>> data = pl.DataFrame({"quality": [number / 1000 for number in range(1000)]})
    >>> index = arrowds.analyze(data, [quality], folder.name + "/index", workers=1, progress=False)
    >>> groups = quantile_groups(index, "quality", [0.5, 0.9, 1])
    >>> sampler = MixtureSampler(index, {"0-50%": 1, "50-90%": 2, "90-100%": 1}, groups=groups, micro_batch_size=8)
    >>> sampler.groups
    {'0-50%': 500, '50-90%': 400, '90-100%': 100}
    >>> folder.cleanup()
    """
    import polars as pl

    bounds = [float(quantile) for quantile in quantiles]
    if not bounds or bounds[-1] != 1 or any(b <= a for a, b in itertools.pairwise([0.0, *bounds])):
        raise ConfigError(f"quantiles must ascend from above 0 to 1, got {bounds}")
    values = find_metric(index, metric)
    count = len(values.order)
    if not count:
        raise ConfigError(f"no sample has a value of {metric!r}")
    ends = [values.values[int(values.order[max(0, math.ceil(round(count * bound, 6)) - 1)])].item() for bound in bounds]
    if any(b <= a for a, b in itertools.pairwise(ends)):
        raise ConfigError(f"quantiles {bounds} of {metric!r} have the values {ends}: choose some that differ")
    groups, start, low = {}, None, 0.0
    for bound, end in zip(bounds, ends, strict=True):
        inside = pl.col(metric) <= end if start is None else (pl.col(metric) > start) & (pl.col(metric) <= end)
        groups[f"{low * 100:g}-{bound * 100:g}%"] = inside
        start, low = end, bound
    return groups
