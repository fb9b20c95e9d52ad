"""The metric type of models: what it measures by name, and how several of them share the forwards of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa

from arrowds.arrays import arrow_view
from arrowds.batch import Batch
from arrowds.digests import CallableDigest
from arrowds.errors import MetricError, MetricValueError
from arrowds.metrics.base import ColumnMetric, Metric, Spec, Totals
from arrowds.metrics.models.checkpoints import (
    loaded_model,
    loaded_tokenizer,
    model_digest,
    refuse_other_vocabulary,
    tokenizer_digest,
)
from arrowds.metrics.models.encoding import Encoded, encoded
from arrowds.metrics.models.scoring import nats_of
from arrowds.metrics.models.windows import cut

MEASURES: Mapping[str, pa.DataType] = {
    "loss": pa.float32(),
    "perplexity": pa.float64(),  # of an untrained model it may be beyond float32
    "bits_per_byte": pa.float32(),
    "loss_difference": pa.float32(),
}

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class ModelMetric(ColumnMetric):
    """One of :data:`MEASURES` of a column of text or token ids; see the functions of :mod:`arrowds.metrics.models`."""

    measure: str
    model: Any
    other: Any = None
    tokenizer: Any = None
    bos: bool = True
    max_length: int | None = None
    overlap: int | None = None
    model_dtype: str | None = None
    device: str | None = None
    batch_tokens: int = 8192
    digests: Mapping[str, CallableDigest] = field(default_factory=dict, compare=False)

    alone: ClassVar[bool] = True

    def compute(self, batch: Batch, totals: Totals) -> pa.Array:
        return next(self.compute_together([self], batch, totals))

    @classmethod
    def compute_together(cls, metrics: Sequence[Metric], batch: Batch, totals: Totals) -> Iterator[pa.Array]:
        """Tokenize once, and let each model read once, for all metrics that ask for the same."""
        known: dict[object, Any] = {}
        for metric in metrics:
            if isinstance(metric, ModelMetric):
                yield metric._measured(batch, known)

    def _measured(self, batch: Batch, known: dict[object, Any]) -> pa.Array:
        models = [self._loaded(key) for key in ("model", "other") if getattr(self, key) is not None]
        text = (self.column, _identity(self._tokenizer_of()), self.bos)
        tokens: Encoded = _once(known, text, lambda: encoded(batch, self.column, self._tokenizer, bos=self.bos))
        max_length, overlap = self._window(models)
        nats = []
        for model in models:
            read = (model, *text, max_length, overlap, self.batch_tokens)
            nats.append(_once(known, read, partial(self._nats, model, tokens, max_length, overlap)))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = self._values(tokens, nats)
        return arrow_view(values, missing=tokens.predicted == 0).cast(self.dtype)

    def _values(self, tokens: Encoded, nats: list[np.ndarray]) -> np.ndarray:
        losses: list[np.ndarray] = [each / tokens.predicted for each in nats]
        if self.measure == "perplexity":
            perplexity: np.ndarray = np.exp(losses[0])
            return perplexity
        if self.measure == "bits_per_byte":
            if tokens.num_bytes is None:
                raise MetricValueError(
                    f"metric {self.name!r} counts the bytes of text, but column {self.column!r} has token ids; measure "
                    "their loss, or name the column of the text"
                )
            bits: np.ndarray = nats[0] / math.log(2) / tokens.num_bytes
            return bits
        return losses[0] if self.measure == "loss" else losses[0] - losses[1]

    def _nats(self, model: Any, tokens: Encoded, max_length: int | None, overlap: int) -> np.ndarray:
        windows = cut(tokens.bounds, max_length, overlap)
        nats = nats_of(model, tokens.ids, windows, self.batch_tokens)
        return np.bincount(windows.samples, nats, minlength=len(tokens.predicted))

    def _window(self, models: Sequence[Any]) -> tuple[int | None, int]:
        """Return how many tokens are read at once (None: any number), and how many of them are read again."""
        contexts = [context for model in models if (context := _context_of(model)) is not None]
        most = min(contexts, default=None)
        if self.max_length is not None and most is not None and self.max_length > most:
            raise MetricError(
                f"metric {self.name!r}: max_length is {self.max_length}, but the model reads at most {most} tokens at "
                "once"
            )
        max_length = self.max_length or most
        if max_length is None:
            if self.overlap is not None:
                raise MetricError(
                    f"metric {self.name!r}: overlap needs max_length, as the model doesn't say its context"
                )
            return None, 0
        overlap = max_length // 2 if self.overlap is None else self.overlap
        if overlap >= max_length:
            raise MetricError(
                f"metric {self.name!r}: overlap is {overlap}, but must be smaller than the {max_length} tokens that "
                "the model reads at once"
            )
        return max_length, overlap

    def _loaded(self, key: str) -> Any:
        model = getattr(self, key)
        if not isinstance(model, str):
            return model
        return loaded_model(model, self._digest(key).digest, self.model_dtype, self.device)

    def _tokenizer_of(self) -> Any:
        """Return the tokenizer, or the folder or name that has it; None for models in memory without one."""
        return self.tokenizer or (self.model if isinstance(self.model, str) else None)

    def _tokenizer(self) -> Any:
        tokenizer = self._tokenizer_of()
        if tokenizer is None:
            raise MetricError(
                f"metric {self.name!r} needs a tokenizer for the text of column {self.column!r}, as its model is in "
                "memory; pass tokenizer=..., or measure a column of token ids"
            )
        if not isinstance(tokenizer, str):
            return tokenizer
        digest = self._digest("tokenizer").digest
        if self.tokenizer is None and isinstance(self.other, str):
            refuse_other_vocabulary(tokenizer, digest, self.other)
        return loaded_tokenizer(tokenizer, digest)

    def _digest(self, key: str) -> CallableDigest:
        """Return the digest of ``"model"``, ``"other"`` or ``"tokenizer"``: that of this run, if it is prepared."""
        if key in self.digests:
            return self.digests[key]
        return tokenizer_digest(self._tokenizer_of()) if key == "tokenizer" else model_digest(getattr(self, key))

    def prepared(self) -> Metric:
        return self if self.digests else replace(self, digests=self._all_digests)

    @property
    def _all_digests(self) -> dict[str, CallableDigest]:
        given = {"model": self.model, "other": self.other, "tokenizer": self._tokenizer_of()}
        return {key: self._digest(key) for key, source in given.items() if source is not None}

    @property
    def unknown(self) -> str:
        return "; ".join(digest.unknown for digest in self._all_digests.values() if digest.unknown)

    def definition(self) -> str:
        read = f"{self.max_length}, {self.overlap}, {self.model_dtype}, bos={self.bos}"
        digests = ", ".join(f"{key}={digest.digest}" for key, digest in self._all_digests.items())
        return f"models.{self.measure}({self.column}, {digests}, {read}, nulls={self.nulls})"

    def spec(self) -> Spec | None:
        sources = (self.model, self.other, self.tokenizer)
        if not all(source is None or isinstance(source, str) for source in sources):
            return None
        names = (
            "name",
            "measure",
            "column",
            "model",
            "other",
            "tokenizer",
            "bos",
            "max_length",
            "overlap",
            "model_dtype",
        )
        return {"metric": "ModelMetric", **{name: getattr(self, name) for name in (*names, "batch_tokens", "nulls")}}

    @classmethod
    def from_options(cls, options: Spec) -> Metric:
        return cls(**options, dtype=MEASURES[str(options["measure"])])  # type: ignore[arg-type]


def _context_of(model: Any) -> int | None:
    """Return how many tokens a model reads at most; None where it doesn't say."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        found = getattr(config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


def _identity(source: object) -> object:
    return source if isinstance(source, str) else id(source)


def _once(known: dict[object, Any], key: object, compute: Callable[[], Found]) -> Found:
    if key not in known:
        known[key] = compute()
    found: Found = known[key]
    return found
