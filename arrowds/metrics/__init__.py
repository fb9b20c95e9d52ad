"""What is measured: the metric type and the built-ins, from a batch to an Arrow array or a sum; no I/O, no ranks."""

import polars as pl

from arrowds.errors import MetricError
from arrowds.metrics import models, text
from arrowds.metrics.base import Kind, Metric, Nulls, Spec, Totals
from arrowds.metrics.columns import Column, Values, column
from arrowds.metrics.expressions import Expression, expr
from arrowds.metrics.functions import Function, function
from arrowds.metrics.tokens import SeqLen, TokenCounts, VocabRarity, seqlen, token_counts, vocab_rarity

__all__ = [
    "Column",
    "Expression",
    "Function",
    "Kind",
    "Metric",
    "Nulls",
    "SeqLen",
    "Spec",
    "TokenCounts",
    "Totals",
    "Values",
    "VocabRarity",
    "column",
    "expr",
    "from_spec",
    "function",
    "models",
    "seqlen",
    "text",
    "token_counts",
    "vocab_rarity",
]

_STORED: dict[str, type[Metric]] = {
    kind.__name__: kind
    for kind in (Column, Expression, SeqLen, TokenCounts, VocabRarity, text.TextMetric, models.ModelMetric)
}


def from_spec(spec: Spec) -> Metric:
    """Rebuild a metric from :meth:`Metric.spec`; nothing in it is executed.

    Raises:
        MetricError: for what is no such description, or one that this version of Polars can't read.

    >>> from_spec(seqlen("ids").spec()) == seqlen("ids")
    True
    """
    options = dict(spec)
    kind = _STORED.get(str(options.pop("metric", None)))
    if kind is None:
        raise MetricError(
            f"the description of a metric names {spec.get('metric')!r}, which this version does not know; "
            "pass metrics=[...]"
        )
    try:
        return kind.from_options(options)
    except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise MetricError(f"the description of a metric can't be read ({error}); pass metrics=[...]") from error
