"""Digests of Arrow content: blind to chunking and encoding, not to a single value, order, type or name."""

from __future__ import annotations

import datetime
import decimal
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.errors import SourceError
from arrowds.sources import TableSource, fingerprint

COLUMNS: dict[str, tuple[pa.DataType, list[object]]] = {
    "int": (pa.int32(), [1, None, 3, -4, 5]),
    "float": (pa.float64(), [1.5, 2.0, None, float("inf"), 0.0]),
    "bool": (pa.bool_(), [True, False, None, True, True]),
    "text": (pa.string(), ["a", "", None, "ab", "é"]),
    "binary": (pa.binary(), [b"a", b"", None, b"\0", b"x"]),
    "fixed": (pa.binary(2), [b"aa", b"bb", None, b"cc", b"dd"]),
    "decimal": (pa.decimal128(5, 2), [decimal.Decimal("1.25"), None, decimal.Decimal(2), None, decimal.Decimal(0)]),
    "date": (pa.date32(), [datetime.date(2020, 1, 1), None, datetime.date(1970, 1, 1), None, None]),
    "ids": (pa.list_(pa.int64()), [[1, 2], [], None, [None], [3]]),
    "pair": (pa.list_(pa.int8(), 2), [[1, 2], None, [3, None], [4, 5], [6, 7]]),
    "nested": (pa.list_(pa.list_(pa.string())), [[["a"], None], [], None, [[]], [["b", "c"]]]),
    "struct": (
        pa.struct({"x": pa.int8(), "y": pa.string()}),
        [{"x": 1, "y": "a"}, None, {"x": None, "y": "b"}, None, {}],
    ),
    "map": (pa.map_(pa.string(), pa.int8()), [[("a", 1)], [], None, [("b", 2), ("c", None)], []]),
    "null": (pa.null(), [None] * 5),
}


def digest(*arrays: pa.Array | pa.ChunkedArray) -> str:
    return TableSource(pa.table({f"c{i}": array for i, array in enumerate(arrays)})).fingerprint()


@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_is_hashed_by_value_whatever_the_chunks(name: str) -> None:
    kind, values = COLUMNS[name]
    array = pa.array(values, kind)
    expected = digest(array)
    padded = pa.array([values[0], *values, values[-1]], kind)
    assert digest(padded[1:-1]) == expected, "a slice with an offset"
    for cut in range(len(values) + 1):
        assert digest(pa.chunked_array([array[:cut], array[cut:]])) == expected
    for i in range(len(values)):
        other = next(value for value in [*values, None] if value != values[i]) if name != "null" else None
        changed = pa.array([*values[:i], other, *values[i + 1 :]], kind)
        assert (digest(changed) == expected) == (name == "null")
    assert (digest(array[::-1]) == expected) == (name == "null")


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "null"])
def test_every_short_column_has_a_digest_of_its_own(name: str) -> None:
    """Where the nulls are counts, and where one value ends and the next begins."""
    kind, values = COLUMNS[name]
    few = [values[0], next(value for value in values[1:] if value is not None), None]
    columns = [column for size in range(4) for column in itertools.product(few, repeat=size)]
    assert len({digest(pa.array(column, kind)) for column in columns}) == len(columns)


def test_values_under_null_do_not_count() -> None:
    mask = np.array([False, True, False])
    assert digest(pa.array(np.array([1, 7, 3]), mask=mask)) == digest(pa.array(np.array([1, 8, 3]), mask=mask))
    offsets, values = pa.array([0, 2, 4, 5]), pa.array([1, 2, 9, 9, 3])
    hidden = pa.ListArray.from_arrays(offsets, values, mask=pa.array([False, True, False]))
    assert digest(hidden) == digest(pa.array([[1, 2], None, [3]]))


def test_encodings_of_one_value_agree() -> None:
    text = pa.array(["a", "b", None, "a"])
    expected = digest(text)
    for other in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert digest(text.cast(other)) == expected
    ids = pa.array([[1, 2], None, []], pa.list_(pa.int32()))
    for other in (pa.large_list(pa.int32()), pa.list_view(pa.int32()), pa.large_list_view(pa.int32())):
        assert digest(pa.array(ids.to_pylist(), other)) == digest(ids)
    runs = pa.RunEndEncodedArray.from_arrays([2, 3], pa.array([7, None], pa.int8()))
    assert digest(runs) == digest(pa.array([7, 7, None], pa.int8()))


def test_name_type_and_division_into_columns_count() -> None:
    array = pa.array([1, 2], pa.int32())
    assert digest(array) != digest(array.cast(pa.uint32()))
    assert digest(array) != TableSource(pa.table({"other": array})).fingerprint()
    assert digest(pa.array(["ab", "c"])) != digest(pa.array(["a", "bc"]))
    assert digest(pa.array([[1], [2, 3]])) != digest(pa.array([[1, 2], [3]]))
    assert digest(array[:0]) != digest(array.cast(pa.uint32())[:0])
    assert digest(array, array) != digest(array)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), rows=st.integers(8190, 24_600))
def test_blocks_do_not_show_through(data: st.DataObject, rows: int) -> None:
    """Rows beyond one block of the hash, cut anywhere, hash as the uncut rows do."""
    table = pa.table({"x": np.arange(rows) % 251, "s": pa.array(np.arange(rows) % 7).cast(pa.string())})
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
    pieces = [table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]
    assert TableSource(pa.concat_tables(pieces)).fingerprint() == TableSource(table).fingerprint()
    at = data.draw(st.integers(0, rows - 1))
    x = table["x"].to_numpy().copy()
    x[at] += 1
    assert TableSource(table.set_column(0, "x", pa.array(x))).fingerprint() != TableSource(table).fingerprint()


def test_union_is_refused_by_name() -> None:
    union = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])
    with pytest.raises(SourceError, match="union"):
        fingerprint.of_batches(pa.schema({"u": union.type}), [pa.record_batch({"u": union})])
