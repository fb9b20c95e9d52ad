"""The charts of a run as Vega-Lite specifications: columns of a table over its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import polars as pl

from arrowds.report.charts import NUMBER, Spec, spec_of

if TYPE_CHECKING:
    import altair as alt


def column(
    frame: pl.DataFrame, name: str, title: str, *, band: tuple[str, str] | None = None, stepped: bool = False
) -> Spec:
    """Draw a column over the column ``step``, with a band between two others; a step at a time where it is stepped."""
    import altair as alt

    shown = _finite(frame.select("step", name, *(band or ())))
    x, axis = _steps(), alt.Axis(labelExpr=NUMBER, tickCount=5)
    zero = alt.Scale(zero=stepped)
    tooltip = [alt.Tooltip("step:Q", format=","), alt.Tooltip(f"{name}:Q", title=title, format=",.6~g")]
    interpolate: Literal["step-after", "linear"] = "step-after" if stepped else "linear"
    line = (
        alt.Chart(shown)
        .mark_line(interpolate=interpolate, point=shown.height < 2)
        .encode(x=x, y=alt.Y(f"{name}:Q", title=title, scale=zero, axis=axis), tooltip=tooltip)
    )
    if band is None:
        return spec_of(line)
    low, high = band
    area = (
        alt.Chart(shown)
        .mark_area(opacity=0.22)
        .encode(x=x, y=alt.Y(f"{low}:Q", title=title, scale=zero, axis=axis), y2=f"{high}:Q")
    )
    return spec_of(alt.layer(area, line))


def shares(frame: pl.DataFrame, titles: Mapping[str, str]) -> Spec:
    """Draw columns that are shares of 1 over the column ``step``, named by their titles."""
    import altair as alt

    long = pl.concat(
        [
            frame.select("step", share=pl.col(name).cast(pl.Float64), name=pl.lit(title))
            for name, title in titles.items()
        ]
    )
    return spec_of(
        alt.Chart(_finite(long))
        .mark_line(point=frame.height < 2)
        .encode(
            x=_steps(),
            y=alt.Y("share:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(format=".0%", tickCount=5)),
            color=alt.Color(
                "name:N", sort=list(titles.values()), legend=_legend("stroke") if len(titles) > 1 else None
            ),
            tooltip=[alt.Tooltip("name:N"), alt.Tooltip("step:Q", format=","), alt.Tooltip("share:Q", format=".1%")],
        )
    )


def groups(frame: pl.DataFrame) -> Spec:
    """Draw the column ``share`` of each ``group`` over ``step`` as areas upon each other, the largest group below."""
    import altair as alt

    order = frame.group_by("group").agg(pl.col("share").sum()).sort("share", "group", descending=[True, False])
    every = frame.select("step").unique().join(order.select("group"), how="cross")  # areas need a value at each step
    full = _finite(every.join(frame, on=["step", "group"], how="left").with_columns(pl.col("share").fill_null(0)))
    names = order["group"].to_list()
    place = pl.col("group").replace_strict(names, list(range(len(names))), return_dtype=pl.Int64).alias("place")
    mark = {"line": False, "opacity": 0.85} if full["step"].n_unique() > 1 else {"point": True}
    return spec_of(
        alt.Chart(full.with_columns(place).sort("place", "step"))
        .mark_area(**mark)
        .encode(
            x=_steps(),
            y=alt.Y(
                "share:Q",
                title="share of samples",
                stack="zero",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=5),
            ),
            color=alt.Color("group:N", sort=names, legend=_legend("square")),
            order=alt.Order("place:Q"),
            tooltip=[alt.Tooltip("group:N"), alt.Tooltip("step:Q", format=","), alt.Tooltip("share:Q", format=".1%")],
        )
    )


def _steps() -> alt.X:
    import altair as alt

    return alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(labelExpr=NUMBER, grid=False, tickMinStep=1),
    )


def _legend(symbol: str) -> alt.Legend:
    import altair as alt

    return alt.Legend(title=None, orient="bottom", columns=4, symbolType=symbol, labelLimit=160)


def _finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the same in six digits, without infinities and NaN, which JSON has no numbers for."""
    columns = [pl.col(name) for name, dtype in frame.schema.items() if dtype.is_float()]
    return frame.with_columns(pl.when(column.is_finite()).then(column.round_sig_figs(6)) for column in columns)
