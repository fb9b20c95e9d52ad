"""Gather what a page shows: the facts of an index and of a run, and the charts of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from arrowds.index import Index
from arrowds.report import charts, step_charts
from arrowds.report.facts import Duplicates, MetricFacts, TotalFacts, duplicates, index_facts, metric_facts, total_facts
from arrowds.report.relations import by_category, drawn_samples, spearman, strongest
from arrowds.report.rows import Rows, read_rows
from arrowds.report.training import RunFacts

EXTREMES = 5
"""How many samples are shown of the lowest, the highest, and of those with the largest losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that the template shows.

    Attributes:
        index: what :func:`arrowds.report.facts.index_facts` says.
        metrics: those with a section of their own.
        left_out: metrics without one, as there are too many.
        rows: of the data, of all samples that are shown.
        drawn: how many samples the correlations and medians are of; 0 where none could be looked up.
        means: of these, for metrics whose values are too many to add up.
        strongest: pairs of metrics with their correlation, the strongest first.
        medians: by category; see :func:`arrowds.report.relations.by_category`.
        duplicates: what the metric ``cluster_size`` says; None where there is none.
        totals: of the index.
        run: the run; None where none was asked for.
        charts: Vega-Lite specifications by the id of their place on the page.
    """

    index: dict[str, Any]
    metrics: list[MetricFacts]
    left_out: int
    rows: Rows
    drawn: int
    means: dict[str, float]
    strongest: list[tuple[str, str, float]]
    medians: dict[str, pl.DataFrame]
    duplicates: Duplicates | None
    totals: list[TotalFacts]
    run: RunFacts | None
    charts: dict[str, charts.Spec]


def gathered(
    index: Index,
    names: Sequence[str],
    columns: Sequence[str] | None,
    sample: int,
    run: RunFacts | None,
    *,
    left_out: int,
) -> Report:
    """Return all that the template shows of some metrics, and of a run; so many metrics are left out."""
    facts = index_facts(index)
    described = {row["name"]: row for row in facts["metrics"]}
    shown = [metric_facts(index[name], described[name], EXTREMES) for name in names]
    totals = [total_facts(index, row) for row in facts["totals"]]
    alike = duplicates(index)
    ids = [sample_id for metric in shown for sample_id, _ in (*metric.lowest, *metric.highest)]
    ids += [sample_id for _, _, sample_id in alike.largest] if alike else []
    ids += [sample_id for sample_id, _, _ in run.record.hardest] if run and run.record else []
    drawn = drawn_samples(index, names, sample)
    numbers = [metric.name for metric in shown if not metric.is_categorical and metric.row["samples"]]
    named = {metric.name: [name for name, _ in metric.counts] for metric in shown if metric.is_categorical}
    specs = _charts_of_index(shown, totals)
    matrix = np.zeros((0, 0))
    if drawn is not None and len(numbers) > 1:
        matrix = spearman(drawn.select(numbers))
        specs["correlations"] = charts.correlations(numbers, matrix)
    return Report(
        index=facts,
        metrics=shown,
        left_out=left_out,
        rows=read_rows(index, [sample_id for sample_id in ids if sample_id < index.num_samples], columns),
        drawn=0 if drawn is None else drawn.height,
        strongest=strongest(numbers, matrix),
        means={} if drawn is None else _means(drawn, shown),
        medians={name: by_category(drawn, name, numbers, listed) for name, listed in named.items()}
        if drawn is not None and numbers
        else {},
        duplicates=alike,
        totals=totals,
        run=run,
        charts=specs | (_charts_of_run(run) if run else {}),
    )


def _means(drawn: pl.DataFrame, shown: Sequence[MetricFacts]) -> dict[str, float]:
    """The means of the samples that were drawn, for numbers whose own is not known."""
    unknown = [metric.name for metric in shown if metric.mean is None and metric.levels]
    means = drawn.select(pl.col(unknown).cast(pl.Float64).mean()).row(0) if unknown else ()
    return {name: mean for name, mean in zip(unknown, means, strict=True) if mean is not None}


def _charts_of_index(shown: Sequence[MetricFacts], totals: Sequence[TotalFacts]) -> dict[str, charts.Spec]:
    specs = {}
    for place, metric in enumerate(shown):
        if metric.counts:
            specs[f"metric-{place}"] = charts.counts(metric.counts, metric.uncounted, metric.row["samples"])
        elif metric.bars is not None:
            specs[f"metric-{place}"] = charts.histogram(metric.bars, metric.shares, metric.name)
    for place, total in enumerate(totals):
        if len(total.curve) > 1:
            specs[f"total-{place}"] = charts.curve(total.curve, "rank", total.row["name"])
    return specs


def _charts_of_run(run: RunFacts) -> dict[str, charts.Spec]:
    specs = {}
    if run.losses is not None:
        band = ("low", "high") if "low" in run.losses.columns else None
        specs["run-loss"] = step_charts.column(run.losses, "loss", "loss", band=band)
        for name, title in (("lr", "learning rate"), ("tokens", "tokens of a step")):
            if name in run.losses.columns:
                specs[f"run-{name}"] = step_charts.column(run.losses, name, title)
    if run.difficulties is not None:
        for place, ((metric,), rows) in enumerate(run.difficulties.partition_by("metric", as_dict=True).items()):
            specs[f"run-difficulty-{place}"] = step_charts.column(
                rows, "difficulty", f"difficulty of {metric}", stepped=True
            )
    if run.record is not None:
        batches = run.record.batches
        specs["run-samples"] = step_charts.column(batches, "samples", "samples of a step")
        titles = {"fill": "fill", "unpadded": "not padding", "balance": "balance of the ranks"}
        recorded = {name: title for name, title in titles.items() if name in batches.columns}
        if recorded:
            specs["run-batches"] = step_charts.shares(batches, recorded)
        for place, (name, frame) in enumerate(run.record.drawn.items()):
            if "true" in frame.columns:
                specs[f"run-drawn-{place}"] = step_charts.shares(frame, {"true": name})
            else:
                specs[f"run-drawn-{place}"] = step_charts.column(frame, "p50", name, band=("p10", "p90"))
        for place, frame in enumerate(run.record.groups.values()):
            specs[f"run-group-{place}"] = step_charts.groups(frame)
    return specs
