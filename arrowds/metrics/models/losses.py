"""What users call: metrics of how well a causal language model predicts each sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, Unpack

from arrowds.errors import MetricError
from arrowds.metrics.base import Metric, Nulls
from arrowds.metrics.models.measures import MEASURES, ModelMetric


class Options(TypedDict, total=False):
    """What each of these functions takes by keyword.

    Attributes:
        name: name of the metric; by default that of the function.
        bos: begin each text with the tokenizer's BOS token (EOS, where it has no BOS), so that the first token counts
            as well. False leaves the first token out. No other special tokens are added.
        max_length: the most tokens that the model reads at once; by default its context.
        overlap: longer samples are read in windows, which begin ``max_length - overlap`` tokens after one another. Each
            token counts once, with at least ``overlap`` tokens before the one that predicts it. 0 is fastest; by
            default half of max_length, which takes twice the time.
        dtype: type to load the model in, such as ``"bfloat16"``; by default that of its files.
        device: device to load the model to; by default the current CUDA device where there is one, else the CPU.
        batch_tokens: tokens of a forward, padding included; halved by itself where memory does not suffice.
        nulls: what to do with samples without a value, see :class:`Metric`.
    """

    name: str
    bos: bool
    max_length: int | None
    overlap: int | None
    dtype: object
    device: str | None
    batch_tokens: int
    nulls: Nulls


def loss(model: Any, tokenizer: Any = None, column: str = "text", **options: Unpack[Options]) -> Metric:
    """Mean nats that the model needs for a token, over the tokens of a sample that follow another: float32.

    A sample in which no token follows another, such as an empty text, has no value. Values are those of the model up to
    rounding: it may differ with the samples that share a forward, the device and the version of torch.

    Args:
        model: the folder that ``save_pretrained`` wrote, a name on the Hugging Face hub, or a ``torch.nn.Module`` in
            memory that takes ids of shape (rows, length) and returns logits, measured in eval mode, on its device.
            What it gives for a position may depend on those before it alone.
        tokenizer: folder, name, or a tokenizer of transformers; by default the one in the model's folder.
        column: text, or lists of token ids, which are taken as they are and need no tokenizer.
        **options: see :class:`Options`.

    >>> loss("models/tiny", column="input_ids").columns
    ('input_ids',)
    """
    return _model_metric("loss", column, options, model=model, tokenizer=tokenizer)


def perplexity(model: Any, tokenizer: Any = None, column: str = "text", **options: Unpack[Options]) -> Metric:
    """Return e to the power of :func:`loss`: float64. The arguments are those of :func:`loss`.

    >>> perplexity("models/tiny", nulls="keep").name
    'perplexity'
    """
    return _model_metric("perplexity", column, options, model=model, tokenizer=tokenizer)


def bits_per_byte(model: Any, tokenizer: Any = None, column: str = "text", **options: Unpack[Options]) -> Metric:
    """Bits that the model needs for a text, over its bytes in UTF-8: float32. Comparable between tokenizers.

    The arguments are those of :func:`loss`; the column is one of text.

    Source: Gao et al., "The Pile: An 800GB Dataset of Diverse Text for Language Modeling" (2020), section 3.1.

    >>> bits_per_byte("models/tiny", name="bits").name
    'bits'
    """
    return _model_metric("bits_per_byte", column, options, model=model, tokenizer=tokenizer)


def loss_difference(
    model: Any, other: Any, tokenizer: Any = None, column: str = "text", **options: Unpack[Options]
) -> Metric:
    """:func:`loss` of a model less that of another one, over the same tokens and windows: float32.

    It is positive where ``other`` predicts better: with a reference model as ``other``, what is left to learn from a
    sample, less what can't be learnt from it.

    Both models read the ids of one tokenizer. The other arguments are those of :func:`loss`.

    Source: Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt"
    (2022): the reducible holdout loss.

    >>> loss_difference("models/now", "models/reference").name
    'loss_difference'
    """
    return _model_metric("loss_difference", column, options, model=model, other=other, tokenizer=tokenizer)


def _model_metric(measure: str, column: str, options: Options, **sources: Any) -> Metric:
    """Return the metric of a measure, with the arguments checked as far as they can be without a model."""
    if unknown := sorted(set(options) - set(Options.__annotations__)):
        raise MetricError(
            f"{measure} has no option {unknown[0]!r}; expected one of {', '.join(Options.__annotations__)}"
        )
    given = {key: _source(measure, key, value) for key, value in sources.items()}
    rest: dict[str, Any] = {**options}
    name, dtype = rest.pop("name", None), rest.pop("dtype", None)
    in_memory = any(not isinstance(given[key], str) for key in ("model", "other") if key in given)
    if in_memory and (dtype is not None or rest.get("device") is not None):
        raise MetricError(
            "dtype and device are for models that are loaded from a folder; convert and move a model in memory "
            "yourself, with model.to(...)"
        )
    for key, least in (("max_length", 1), ("overlap", 0), ("batch_tokens", 1)):
        value = rest.get(key)
        if value is not None and (not isinstance(value, int) or value < least):
            raise MetricError(f"{measure}: {key} must be a whole number from {least}; got {value!r}")
    return ModelMetric(
        name=measure if name is None else name,
        measure=measure,
        column=column,
        dtype=MEASURES[measure],
        model_dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        **given,
        **rest,
    )


def _source(measure: str, key: str, value: Any) -> Any:
    """Return a folder by its full path, so that it is found from elsewhere; names and what is in memory as they are."""
    if isinstance(value, str | Path):
        folder = Path(value).expanduser()
        return str(folder.resolve()) if folder.is_dir() else str(value)
    fits = hasattr(value, "state_dict") if key != "tokenizer" else value is None or callable(value)
    if not fits:
        expected = "a tokenizer of transformers" if key == "tokenizer" else "a torch.nn.Module"
        raise MetricError(
            f"{measure}: {key} is {value!r}; expected a folder, a name on the Hugging Face hub, or {expected}"
        )
    return value
