"""What the record of a run says of its batches, its ranks, and the samples that it drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from arrowds.index import Index
from arrowds.index.looking import values_of
from arrowds.pipeline.config import PipelineConfig, sql_expression

_MOST_POINTS = 200
_MOST_DRAWN, _MOST_CATEGORIES = 24, 6
_MOST_SAMPLES = 2_000_000
_MOST_GROUPS = 8
_OTHERS = "all others"
OF_THE_MIXTURE = "groups of the mixture"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFacts:
    """What the record of a run says.

    Attributes:
        samples: how many were handed out; repeated steps count each time.
        distinct: how many different ones.
        steps: how many steps, from ``first`` to ``last``.
        first: the first step.
        last: the last step.
        ranks: how many ranks.
        batches: ``step``, ``samples`` of a step; of several ranks ``balance``, their mean work divided by that of the
            rank that has most; where lengths are known ``fill``, the tokens of a microbatch divided by the budget, or
            else by those of the largest, and ``unpadded``, the share of tokens that is no padding where a microbatch is
            padded to its longest sample.
        drawn: of each number ``step``, ``p10``, ``p50``, ``p90`` of the samples that were drawn; of a bool ``step``
            and ``true``, the share for which it is true.
        groups: of each category, and of the groups of the configuration: ``step``, ``group``, ``share``.
        hardest: id, step and loss of the samples with the largest losses; empty without losses.
        has_budget: whether ``fill`` is of the budget of the configuration.
        notes: what is to be known of these figures.
    """

    samples: int
    distinct: int
    steps: int
    first: int
    last: int
    ranks: int
    batches: pl.DataFrame
    drawn: dict[str, pl.DataFrame]
    groups: dict[str, pl.DataFrame]
    hardest: list[tuple[int, int, float]]
    has_budget: bool
    notes: list[str]


def record_facts(
    records: pl.DataFrame, index: Index, names: Sequence[str], *, config: PipelineConfig | None, extremes: int
) -> RecordFacts:
    """Return the facts of a record.

    Args:
        records: what :func:`arrowds.curriculum.trace.read_records` returned.
        index: the index that the samples are of.
        names: the metrics that the report shows.
        config: the configuration of the run, for its groups and its budget of tokens.
        extremes: how many of the samples with the largest losses.
    """
    rows, notes = _some_steps(records)
    values = _values_of(rows["sample_id"], index, [*names, *_used_by(config)])
    if values is None:
        notes.append("The record has ids that this index does not have, so that nothing is known of its samples.")
        values = pl.DataFrame()
    lengths, budget = ("seqlen", None) if config is None else (config.batches.lengths, config.batches.max_tokens)
    numbers = [name for name in names if name in values.columns and values[name].dtype != pl.String]
    categories = [name for name in values.columns if values[name].dtype == pl.String]
    groups = _mixture_groups(config, values) | {name: values[name] for name in categories[:_MOST_CATEGORIES]}
    return RecordFacts(
        samples=records.height,
        distinct=records["sample_id"].n_unique(),
        steps=records["step"].n_unique(),
        first=_ends(records)[0],
        last=_ends(records)[1],
        ranks=records["rank"].n_unique(),
        batches=_batches(
            rows,
            values[lengths] if lengths in values.columns and lengths not in categories else None,
            budget,
        ),
        drawn={name: _spread(rows, values[name]) for name in numbers[:_MOST_DRAWN]},
        groups={name: _shares(rows, group) for name, group in groups.items()},
        hardest=_hardest(records, extremes),
        has_budget=budget is not None,
        notes=notes,
    )


def together(steps: pl.DataFrame) -> pl.Expr:
    """Return the step that stands for some steps which are drawn as one point: the first of them."""
    first, last = _ends(steps)
    width = -(-(last - first + 1) // _MOST_POINTS)
    return (first + (pl.col("step") - first) // width * width).alias("step")


def _ends(steps: pl.DataFrame) -> tuple[int, int]:
    return steps.select(pl.col("step").min(), last=pl.col("step").max()).row(0)


def _some_steps(records: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Return the rows of evenly spread steps, so that they are not too many, each once; and say what is left out."""
    notes = []
    every = -(-records.height // _MOST_SAMPLES)
    chosen = records
    if every > 1:
        chosen = records.filter((pl.col("step") - _ends(records)[0]) % every == 0)
        notes.append(f"Batches and what was drawn are those of one step in {every}: {chosen.height:,} samples.")
    once = chosen.unique(["step", "micro_batch", "rank", "sample_id"], keep="any", maintain_order=True)
    if once.height < chosen.height:
        notes.append("Steps that a resumed run repeated count once in the charts of batches and of what was drawn.")
    return once, notes


def _used_by(config: PipelineConfig | None) -> list[str]:
    """The metrics that batches and groups need."""
    if config is None:
        return ["seqlen"]
    groups = None if config.mixture is None else config.mixture.groups
    if isinstance(groups, Mapping):
        used = [name for sql in groups.values() for name in sql_expression(sql, "mixture.groups").meta.root_names()]
    else:
        used = [groups] if groups else []
    return [config.batches.lengths, *used]


def _values_of(ids: pl.Series, index: Index, names: Sequence[str]) -> pl.DataFrame | None:
    """The values of those metrics that an index has; None where it does not have the samples."""
    if ids.max() >= index.num_samples:  # type: ignore[operator]  # a record is not empty
        return None
    known = [name for name in dict.fromkeys(names) if name in index]
    return pl.DataFrame([values_of(index[name], ids.to_numpy()) for name in known])


def _batches(rows: pl.DataFrame, lengths: pl.Series | None, budget: int | None) -> pl.DataFrame:
    work = pl.lit(1.0) if lengths is None else lengths.cast(pl.Float64).alias("work")
    micro = (
        rows.select("step", "micro_batch", "rank", work=work)
        .group_by("step", "micro_batch", "rank")
        .agg(pl.len().alias("samples"), pl.col("work").sum(), padded=pl.col("work").max() * pl.len())
    )
    largest = pl.col("work").max() if budget is None else pl.lit(float(budget))
    steps = (
        micro.with_columns(fill=pl.col("work") / largest)
        .group_by("step", "rank")
        .agg(pl.col("samples", "work", "padded").sum(), pl.col("fill").mean())
        .group_by("step")
        .agg(
            pl.col("samples").sum(),
            balance=pl.col("work").mean() / pl.col("work").max(),
            fill=pl.col("fill").mean(),
            unpadded=pl.col("work").sum() / pl.col("padded").sum(),
        )
    )
    kept = ["samples"]
    kept += ["balance"] if rows["rank"].n_unique() > 1 else []
    kept += [] if lengths is None else ["fill", "unpadded"]
    return steps.group_by(together(steps)).agg(pl.col(kept).mean()).sort("step")


def _spread(rows: pl.DataFrame, values: pl.Series) -> pl.DataFrame:
    value = pl.col("value").cast(pl.Float64)
    if values.dtype == pl.Boolean:
        return rows.select(together(rows), value=values).group_by("step").agg(true=value.mean()).sort("step")
    levels = {f"p{share}": value.quantile(share / 100, "nearest") for share in (10, 50, 90)}
    return rows.select(together(rows), value=values).group_by("step").agg(**levels).sort("step")


def _mixture_groups(config: PipelineConfig | None, values: pl.DataFrame) -> dict[str, pl.Series]:
    """The group of each sample by the conditions of the configuration; of several that are true the first."""
    mixture = None if config is None else config.mixture
    if mixture is None or isinstance(mixture.groups, str) or values.is_empty():
        return {}
    conditions = {name: sql_expression(sql, f"mixture.groups.{name}") for name, sql in mixture.groups.items()}
    chosen = [pl.when(condition).then(pl.lit(name)) for name, condition in conditions.items()]
    rest = "in no group" if mixture.rest in ("raise", "leave") else mixture.rest
    return {OF_THE_MIXTURE: values.select(group=pl.coalesce(*chosen, pl.lit(rest))).to_series()}


def _shares(rows: pl.DataFrame, group: pl.Series) -> pl.DataFrame:
    """The share of the samples of each group at each step; the smallest groups are one."""
    most = group.drop_nulls().value_counts(sort=True).head(_MOST_GROUPS).to_series().to_list()
    named = pl.when(group.is_in(most)).then(group).otherwise(pl.lit(_OTHERS)).alias("group")
    counted = rows.select(together(rows), named).group_by("step", "group").len()
    share = (pl.col("len") / pl.col("len").sum().over("step")).alias("share")
    return counted.select("step", "group", share).sort("step", "group")


def _hardest(records: pl.DataFrame, most: int) -> list[tuple[int, int, float]]:
    lossy = records.select("sample_id", "step", "loss").filter(pl.col("loss").is_finite())
    return lossy.top_k(most, by="loss").sort("loss", descending=True).rows()
