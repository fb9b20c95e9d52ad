"""The charts of a report as Vega-Lite specifications; their colours are variables of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from arrowds.plots import Bars

if TYPE_CHECKING:
    import altair as alt

Spec = dict[str, Any]

NUMBER = (
    "abs(datum.value) >= 1e15 || (abs(datum.value) < 1e-4 && datum.value != 0) ? format(datum.value, '~e') : "
    "abs(datum.value) >= 10000 ? format(datum.value, '~s') : format(datum.value, '~g')"
)
"""The label of a tick: 0.25, 100, 25k."""

_MOST_POWERS = 12
_MOST_NUMBERED = 12
"""A heat map of more metrics has no numbers in its cells."""


def histogram(bars: Bars, shares: Sequence[float], title: str) -> Spec:
    """Draw bars and, over them, the share of samples up to each edge."""
    import altair as alt

    edges = bars.edges
    counted = pl.DataFrame({"from": edges[:-1], "to": edges[1:], "samples": bars.counts, "share": list(shares)[1:]})
    curve = pl.DataFrame({"to": edges, "share": list(shares)})
    x = alt.X("from:Q", title=title, scale=_scale(bars), axis=_axis(bars))
    tooltip = [
        alt.Tooltip("from:Q", title="from"),
        alt.Tooltip("to:Q", title="to"),
        alt.Tooltip("samples:Q", format=","),
        alt.Tooltip("share:Q", title="share up to here", format=".1%"),
    ]
    boxes = (
        alt.Chart(counted)
        .mark_bar(binSpacing=0.5)
        .encode(
            x=x, x2="to:Q", y=alt.Y("samples:Q", title="samples", axis=_number_axis()), y2=alt.datum(0), tooltip=tooltip
        )
    )
    line = (
        alt.Chart(curve)
        .mark_line()
        .encode(
            x=alt.X("to:Q", title=title, scale=_scale(bars), axis=_axis(bars)),
            y=alt.Y(
                "share:Q",
                title="share up to here",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=5, grid=False),
            ),
        )
    )
    return spec_of(alt.layer(boxes, line).resolve_scale(y="independent"))


def _scale(bars: Bars) -> alt.Scale:
    import altair as alt

    ends = [bars.edges[0], bars.edges[-1]]
    if not bars.log:
        return alt.Scale(domain=ends, nice=False, zero=False)
    if bars.edges[0] > 0:
        return alt.Scale(type="log", domain=ends, nice=False)
    return alt.Scale(type="symlog", constant=bars.edges[1], domain=ends, nice=False)  # the bin of zero has a width, too


def _axis(bars: Bars) -> alt.Axis:
    import altair as alt

    low, high = bars.edges[0], bars.edges[-1]
    if high - low < max(abs(low), abs(high)) / 1000:  # only all digits tell the ticks apart
        return alt.Axis(grid=False, tickCount=5, labelOverlap=True)
    if not bars.log:
        return alt.Axis(labelExpr=NUMBER, grid=False, tickCount=8, labelOverlap=True)
    return _power_axis(bars.edges)


def _power_axis(edges: Sequence[float]) -> alt.Axis:
    import altair as alt

    return alt.Axis(labelExpr=NUMBER, grid=False, values=powers(edges), labelOverlap="greedy")


def powers(edges: Sequence[float]) -> list[float]:
    """Return the ticks of a logarithmic axis: powers of ten, between few of them also twice and five times these.

    Of many powers these are some.

    >>> powers([0, 1, 300]), powers([0.5, 8])
    ([0, 1.0, 10.0, 100.0], [0.5, 1.0, 2.0, 5.0])
    """
    low, high = next(edge for edge in edges if edge > 0), edges[-1]
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first < 3 else (1,)
    decades = range(first, last + 1, max(1, (last - first) // _MOST_POWERS))
    grown = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [*([0] if edges[0] == 0 else []), *(tick for tick in grown if low <= tick <= high)]


def counts(values: Sequence[tuple[Any, int]], uncounted: int, of: int) -> Spec:
    """Draw a bar for each value or name with its count, and one for all others."""
    import altair as alt

    rows = [(name, count) for name, (_, count) in zip(_labels([value for value, _ in values]), values, strict=True)]
    if uncounted:
        rows.append((_unlike("all others", [name for name, _ in rows]), uncounted))
    names = [name for name, _ in rows]
    frame = pl.DataFrame(
        {
            "name": names,
            "samples": [count for _, count in rows],
            "text": [f"{count:,}  ({count / of:.1%})" for _, count in rows],
        }
    )
    base = alt.Chart(frame).encode(
        x=alt.X(
            "samples:Q",
            title="samples",
            scale=alt.Scale(domain=[0, max(count for _, count in rows) * 1.25]),
            axis=_number_axis(),
        ),
        y=alt.Y(
            "name:N", title=None, sort=names, axis=alt.Axis(labelLimit=220, labelPadding=6, ticks=False, domain=False)
        ),
        tooltip=[alt.Tooltip("name:N"), alt.Tooltip("samples:Q", format=",")],
    )
    text = base.mark_text(align="left", dx=5).encode(text="text:N")
    return spec_of(alt.layer(base.mark_bar(), text), height=20 * len(rows))


def _labels(values: Sequence[Any]) -> list[str]:
    """Write values so that they can be told apart."""
    if any(isinstance(value, bool) for value in values):
        return [str(value).lower() for value in values]
    short = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(short) else list(map(str, values))


def _unlike(name: str, others: Sequence[str]) -> str:
    while name in others:
        name = f"({name})"
    return name


def correlations(names: Sequence[str], matrix: np.ndarray) -> Spec:
    """Draw a square for each pair of metrics: its colour is the sign of the correlation, its strength the size."""
    import altair as alt

    pairs = [(names[row], names[column], float(rho)) for (row, column), rho in np.ndenumerate(matrix) if row != column]
    finite = [(first, second, rho, abs(rho)) for first, second, rho in pairs if math.isfinite(rho)]
    frame = pl.DataFrame(
        finite, schema={"a": pl.String, "b": pl.String, "rho": pl.Float64, "size": pl.Float64}, orient="row"
    )
    numbered = len(names) <= _MOST_NUMBERED
    axis = alt.Axis(title=None, ticks=False, domain=False, labelLimit=160, labelAngle=0)
    tilted = alt.Axis(title=None, ticks=False, domain=False, labelLimit=160, labelAngle=-40)
    base = alt.Chart(frame).encode(
        x=alt.X("a:N", sort=list(names), axis=tilted, scale=alt.Scale(domain=list(names))),
        y=alt.Y("b:N", sort=list(names), axis=axis, scale=alt.Scale(domain=list(names))),
        tooltip=[alt.Tooltip("a:N", title="of"), alt.Tooltip("b:N", title="and"), alt.Tooltip("rho:Q", format=".3f")],
    )
    squares = base.mark_rect(cornerRadius=3).encode(
        color=alt.condition("datum.rho > 0", alt.value("var(--plus)"), alt.value("var(--minus)")),
        opacity=alt.Opacity("size:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 1]), legend=None),
    )
    text = base.mark_text().encode(
        text=alt.Text("rho:Q", format=".2f"),
        color=alt.condition("datum.size > 0.6", alt.value("var(--on-strong)"), alt.value("var(--ink)")),
    )
    step = alt.Step(46 if numbered else 24)
    return spec_of(
        alt.layer(squares, *([text] if numbered else [])), width=step, height=alt.Step(34 if numbered else 24)
    )


def curve(points: Sequence[tuple[int, float]], x: str, y: str) -> Spec:
    """Draw a line through positive points on logarithmic axes."""
    import altair as alt

    frame = pl.DataFrame(points, schema={"x": pl.Int64, "y": pl.Float64}, orient="row")
    return spec_of(
        alt.Chart(frame)
        .mark_line(interpolate="monotone")
        .encode(
            x=alt.X("x:Q", title=x, scale=alt.Scale(type="log", nice=False), axis=_power_axis(frame["x"].to_list())),
            y=alt.Y("y:Q", title=y, scale=alt.Scale(type="log"), axis=_power_axis(sorted(frame["y"].to_list()))),
            tooltip=[alt.Tooltip("x:Q", title=x, format=","), alt.Tooltip("y:Q", title=y, format=",")],
        )
    )


def _number_axis() -> alt.Axis:
    import altair as alt

    return alt.Axis(labelExpr=NUMBER, tickCount=5)


def spec_of(chart: Any, *, width: Any = "container", height: Any = 210) -> Spec:
    """Return the specification of a chart, by default as wide as its place, without the settings of this session."""
    import altair as alt

    if width == "container":
        chart = chart.properties(autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
    with alt.data_transformers.enable("default"), alt.theme.enable("none"):
        found: Spec = chart.properties(width=width, height=height).to_dict()
    found.pop("$schema")  # the page has Vega-Lite's newest version, whichever it is
    return found
