"""A source of text with a column of token ids added to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from arrowds.errors import ConfigError, MissingExtraError, SourceError, UnreadableFileError
from arrowds.sources import fingerprint
from arrowds.sources.base import Source
from arrowds.sources.records import SourceFile


class TokenizedSource(Source):
    """A columnar source plus one column of token ids, computed while reading.

    Args:
        source: The columnar source.
        column: Its text column (string, in any encoding).
        tokenizer: "bytes" (the UTF-8 bytes as uint8, views of the text's own memory), the path of a `tokenizer.json`,
            or a `tokenizers.Tokenizer`; these give int32.
        output: The name of the new column; null where the text is null.
        special_tokens: Whether the tokenizer adds its special tokens (such as beginning of text).

    Raises SourceError where the source isn't columnar or the column isn't text, ConfigError where `output` exists
    already, UnreadableFileError for a file that is no tokenizer, MissingExtraError without the `tokenizers` library.

    Example:
        >>> from arrowds.sources import open_source
        >>> source = TokenizedSource(open_source(pa.table({"text": ["abc", "é"]})), tokenizer="bytes")
        >>> [batch.to_pydict() for batch in source.read(0, 2, ["input_ids"])]
        [{'input_ids': [[97, 98, 99], [195, 169]]}]
    """

    def __init__(
        self,
        source: Source,
        *,
        column: str = "text",
        tokenizer: Any = "bytes",
        output: str = "input_ids",
        special_tokens: bool = False,
    ) -> None:
        if source.schema is None:
            raise SourceError(f"{source.description} has no columns; tokenize its samples in the dataset itself")
        source.check_columns([column])
        if output in source.schema.names:
            raise ConfigError(f"the data has a column {output!r} already; choose another output")
        kind = source.schema.field(column).type
        if not _is_text(kind):
            raise SourceError(f"column {column!r} is {kind}; only text can be tokenized")
        self._source, self._column, self._output = source, column, output
        self._special_tokens = special_tokens
        # The tokenizer travels as its JSON text and is built where it is used.
        self._json = None if tokenizer == "bytes" else _tokenizer_json(tokenizer)
        wide = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        tokens = (pa.large_list if wide else pa.list_)(pa.uint8()) if self._json is None else pa.list_(pa.int32())
        self._schema = source.schema.append(pa.field(output, tokens))
        self.concurrent = source.concurrent
        self.computed = () if self._json is None else (output,)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._source)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the source and the token column, which comes last."""
        return self._schema

    def part_boundaries(self, target_rows: int) -> Sequence[int]:
        """Those of the source."""
        return self._source.part_boundaries(target_rows)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows [start, stop); text is tokenized only where the token column is asked for."""
        names = self.check_read(start, stop, columns)
        return self._read(start, stop, self._schema.names if names is None else names)

    def _read(self, start: int, stop: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        if self._output not in names:
            yield from self._source.read(start, stop, names)
            return
        wanted = list(dict.fromkeys([*(name for name in names if name != self._output), self._column]))
        for batch in self._source.read(start, stop, wanted):
            tokens = self._tokenize(batch.column(self._column))
            yield batch.append_column(self._schema.field(self._output), tokens).select(names)

    def _tokenize(self, text: pa.Array) -> pa.Array:
        if pa.types.is_dictionary(text.type):
            text = text.dictionary_decode()
        if pa.types.is_string_view(text.type):
            text = text.cast(pa.large_string())
        kind = self._schema.field(self._output).type
        return _text_bytes(text, kind) if self._json is None else self._encode(text, kind)

    def _encode(self, text: pa.Array, kind: pa.DataType) -> pa.Array:
        encodings = self._tokenizer.encode_batch_fast(
            ["" if value is None else value for value in text.to_pylist()], add_special_tokens=self._special_tokens
        )
        ids = [encoding.ids for encoding in encodings]
        offsets = np.concatenate([[0], np.cumsum(list(map(len, ids)), dtype=np.int32)]).astype(np.int32)
        values = np.fromiter(chain.from_iterable(ids), np.int32, int(offsets[-1]))
        mask = text.is_null() if text.null_count else None
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind, mask=mask)

    @cached_property
    def _tokenizer(self) -> Any:
        return _tokenizers().Tokenizer.from_str(self._json)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the built tokenizer behind; it is built again where it is needed."""
        return {name: value for name, value in self.__dict__.items() if name != "_tokenizer"}

    def fingerprint(self) -> str:
        """The digest of the source's, the tokenizer and the names."""
        how = [self._column, self._output, self._json or "bytes", str(self._special_tokens)]
        return fingerprint.combine("tokenized", [self._source.fingerprint(), *how])

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Those of the source."""
        return self._source.files

    def without(self, known: Sequence[SourceFile], *, compare_content: bool = False) -> TokenizedSource | None:
        """The new files of the source, tokenized in the same way."""
        new = self._source.without(known, compare_content=compare_content)
        if new is None or new is self._source:
            return None if new is None else self
        other = copy(self)
        other._source = new
        return other

    @property
    def stored(self) -> Source:
        """The source of the text."""
        return self._source.stored

    def to_spec(self) -> dict[str, Any] | None:
        """How the source is opened and its text tokenized; None where the source has no description."""
        source = self._source.to_spec()
        names = {"column": self._column, "output": self._output, "special_tokens": self._special_tokens}
        return None if source is None else {"kind": "tokenized", "source": source, "tokenizer": self._json, **names}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], source: Source) -> TokenizedSource:
        """The source of a description by `to_spec`, where `source` is opened already."""
        tokenizer = spec["tokenizer"]
        return cls(
            source,
            column=spec["column"],
            tokenizer="bytes" if tokenizer is None else _tokenizers().Tokenizer.from_str(tokenizer),
            output=spec["output"],
            special_tokens=spec["special_tokens"],
        )

    @property
    def description(self) -> str:
        """That of the source and, for instance, "input_ids from the bytes of text"."""
        how = "the bytes of" if self._json is None else "the tokenized"
        return f"{self._source.description}, {self._output} from {how} {self._column}"


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _text_bytes(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """The same buffers under another type."""
    validity, offsets, data = text.buffers()
    data = pa.py_buffer(b"") if data is None else data
    child = pa.Array.from_buffers(pa.uint8(), data.size, [None, data])
    return pa.Array.from_buffers(kind, len(text), [validity, offsets], offset=text.offset, children=[child])


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("tokenizers", "huggingface") from error
    return tokenizers


def _tokenizer_json(tokenizer: Any) -> str:
    """The JSON text of a Tokenizer or of the file that a path names, checked to be a tokenizer."""
    library = _tokenizers()
    if isinstance(tokenizer, library.Tokenizer):
        return str(tokenizer.to_str())
    path = Path(tokenizer)
    try:
        return str(library.Tokenizer.from_file(str(path)).to_str())
    except Exception as error:
        raise UnreadableFileError(
            f"can't read the tokenizer {path}: {error}; expected a tokenizer.json or 'bytes'"
        ) from error
