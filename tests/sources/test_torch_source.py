"""Map-style datasets against torch's own DataLoader."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import namedtuple
from itertools import pairwise
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from source_contract import check_boundaries
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from arrowds.errors import ConfigError, MissingExtraError, SourceError
from arrowds.sources import TorchSource
from arrowds.sources.collate import collate

Point = namedtuple("Point", ["x", "y"])


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, tuple) and all(isinstance(item, str) for item in theirs):
        theirs = list(theirs)  # torch makes a tuple of a field of text, and a list of text on its own
    assert type(ours) is type(theirs)
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours == theirs


SAMPLES: dict[str, Any] = {
    "int": lambda i: i * 1000,
    "float": lambda i: i / 7,
    "bool": lambda i: i % 3 == 0,
    "int then float": lambda i: i if i % 2 == 0 else i / 2,
    "float then int": lambda i: i / 2 if i % 2 == 0 else i,
    "text": lambda i: f"t{i}",
    "numpy scalar": np.int16,
    "numpy array": lambda i: np.full((2, 3), i, np.float32),
    "tensor": lambda i: torch.full((2,), i, dtype=torch.bfloat16),
    "dict": lambda i: {"a": i, "b": {"c": np.arange(3) + i}},
    "tuple": lambda i: (i, f"t{i}", torch.tensor(i)),
    "named tuple": lambda i: Point(i * 2, i / 2),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_batches_equal_those_of_a_sequential_data_loader(name: str) -> None:
    dataset = Items([SAMPLES[name](i) for i in range(11)])
    ours = list(TorchSource(dataset, batch_size=4).read(0, 11))
    theirs = list(DataLoader(dataset, batch_size=4))
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 60), batch_size=st.integers(1, 20), target=st.integers(1, 70))
def test_parts_hold_whole_batches_of_a_sequential_data_loader(n: int, batch_size: int, target: int) -> None:
    source = TorchSource(list(range(n)), batch_size=batch_size)
    check_boundaries(source)
    cuts = source.part_boundaries(target)
    ours = [batch for a, b in pairwise(cuts) for batch in source.read(a, b)]
    for a, b in zip(ours, DataLoader(Items(list(range(n))), batch_size=batch_size), strict=True):
        assert_same(a, b)


def test_target_is_rounded_up_to_whole_batches() -> None:
    source = TorchSource(range(20), batch_size=4)
    assert source.part_boundaries(8) == [0, 8, 16, 20]
    assert source.part_boundaries(5) == [0, 8, 16, 20]


def test_own_collate_function_and_batched_access_are_used() -> None:
    class Batched(Items):
        def __getitems__(self, ids: list[int]) -> list[Any]:
            assert type(ids) is list
            return [-self.items[i] for i in ids]

    source = TorchSource(Batched([1, 2, 3]), batch_size=2, collate_fn=sum)
    assert list(source.read(0, 3)) == [-3, -3]
    subset = Subset(TensorDataset(torch.arange(10)), [7, 8])  # torch's own user of __getitems__
    assert next(TorchSource(subset).read(0, 2))[0].tolist() == [7, 8]


def test_ragged_fields_become_lists_of_tensors() -> None:
    batch = collate([{"ids": torch.arange(n), "array": np.zeros(n), "tokens": list(range(n)), "n": n} for n in (2, 3)])
    assert [ids.tolist() for ids in batch["ids"]] == [[0, 1], [0, 1, 2]]
    assert [array.shape for array in batch["array"]] == [(2,), (3,)]
    assert [tokens.tolist() for tokens in batch["tokens"]] == [[0, 1], [0, 1, 2]]
    assert batch["n"].tolist() == [2, 3]
    assert collate([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]], "a list of numbers is one field"
    assert collate([(1, 2), (3,)]) == [(1, 2), (3,)]
    assert collate([None, 1]) == [None, 1]


def test_failing_sample_is_named_with_its_cause() -> None:
    class Failing(Items):
        def __getitem__(self, i: int) -> Any:
            return 1 // (i - 6)

    source = TorchSource(Failing([0] * 10), batch_size=4)
    assert next(source.read(0, 10)).tolist() == [-1, -1, -1, -1]
    with pytest.raises(SourceError, match=r"sample 6: .*Failing\[6\] raised ZeroDivisionError") as caught:
        list(source.read(4, 10))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_length_that_lies_is_told() -> None:
    class Lying(Items):
        def __len__(self) -> int:
            return 5

    with pytest.raises(SourceError, match=r"sample 2: .*raised IndexError: .*\(its len\(\) is 5\)"):
        list(TorchSource(Lying([1, 2])).read(0, 5))


def test_batched_access_that_fails_or_loses_samples_is_told() -> None:
    class Losing(Items):
        def __getitems__(self, ids: list[int]) -> list[Any]:
            if len(ids) == 3:
                raise RuntimeError("no three")
            return self.items[:1]

    with pytest.raises(SourceError, match=r"__getitems__ returned 1 samples for 2 numbers"):
        list(TorchSource(Losing([1, 2])).read(0, 2))
    with pytest.raises(SourceError, match=r"samples 0 to 2: .* raised RuntimeError: no three, but gave each"):
        list(TorchSource(Losing([1, 2, 3])).read(0, 3))


def test_batch_that_can_not_be_made_names_the_samples() -> None:
    with pytest.raises(SourceError, match="samples 2 to 3 can't be made into a batch: KeyError: 'a'"):
        list(TorchSource([{"a": 1}, {"a": 2}, {"a": 3}, {"b": 1}], batch_size=2).read(0, 4))


def test_iterable_dataset_and_senseless_batch_size_are_refused() -> None:
    class Stream(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter([1])

    with pytest.raises(SourceError, match=r"Stream is no map-style dataset .*it needs __len__ and __getitem__"):
        TorchSource(Stream())
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        TorchSource([1], batch_size=0)


@dataclasses.dataclass
class Record:
    number: int


CONTENT = [
    [1, 2, 3],
    [1, 2, 4],
    [1, 3, 2],
    [1.0, 2.0, 3.0],
    [True, 2, 3],
    ["1", "2", "3"],
    [b"1", b"2", b"3"],
    [None, 2, 3],
    [[1], [2], [3]],
    [(1,), (2,), (3,)],
    [{"a": 1}, {"a": 2}, {"a": 3}],
    [{"b": 1}, {"a": 2}, {"a": 3}],
    [np.array([1]), np.array([2]), np.array([3])],
    [np.array([1], np.int32), np.array([2]), np.array([3])],
    [np.array([[1]]), np.array([2]), np.array([3])],
    [np.int64(1), np.int64(2), np.int64(3)],
    [torch.tensor(1), torch.tensor(2), torch.tensor(3)],
    [torch.tensor(1, dtype=torch.bfloat16), torch.tensor(2), torch.tensor(3)],
    [{"a", "b"}, {"c"}, {"d"}],
    [{"a", "c"}, {"c"}, {"d"}],
    [Record(1), Record(2), Record(3)],
    [Record(1), Record(2), Record(4)],
]


def test_fingerprint_tells_content_order_and_types_apart() -> None:
    digests = [TorchSource(Items(items)).fingerprint() for items in CONTENT]
    assert len(set(digests)) == len(digests)
    assert digests == [TorchSource(Items(items), batch_size=2).fingerprint() for items in CONTENT]


def test_fingerprint_is_the_same_in_another_process() -> None:
    """String hashes, and with them the order of sets, differ between processes."""
    items = [{"text", "other", "words"}, {"a": (1, 2.5, None)}, "é", np.arange(3)]
    code = (
        "import numpy as np; from arrowds.sources import TorchSource;"
        "print(TorchSource([{'text', 'other', 'words'}, {'a': (1, 2.5, None)}, 'é', np.arange(3)]).fingerprint())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.strip() == TorchSource(items).fingerprint()


def test_fingerprint_samples_large_data_and_can_be_given() -> None:
    class Counting(Items):
        asked = 0

        def __getitem__(self, i: int) -> Any:
            Counting.asked += 1
            return i

    n = 65_537
    big = Counting([0] * n)
    first = TorchSource(big).fingerprint()
    assert Counting.asked == 4096
    assert first != TorchSource(Counting([0] * (n + 1))).fingerprint(), "the length counts"
    Counting.asked = 0
    assert TorchSource(big, fingerprint="v1").fingerprint() == TorchSource([1], fingerprint="v1").fingerprint()
    assert TorchSource(big, fingerprint="v1").fingerprint() != TorchSource(big, fingerprint="v2").fingerprint()
    assert Counting.asked == 0
    assert TorchSource([]).fingerprint() == TorchSource([]).fingerprint()


def test_content_that_can_not_be_had_asks_for_a_name() -> None:
    with pytest.raises(SourceError, match=r"content of a function .*fingerprint=\.\.\."):
        TorchSource([lambda: 1]).fingerprint()


def test_lambda_and_local_class_survive_cloudpickle() -> None:
    class Local(Items):
        pass

    source = TorchSource(Local([1, 2, 3]), batch_size=2, collate_fn=lambda items: [item + 1 for item in items])
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    assert list(copy.read(0, 3)) == [[2, 3], [4]]
    assert copy.fingerprint() == source.fingerprint()
    assert source.column_names is None
    assert source.schema is None
    assert not source.concurrent
    source.check_columns(["anything"])
    assert source.description.endswith("Local, batches of 2")


def test_missing_torch_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'arrowds\[torch\]'"):
        next(TorchSource([1, 2]).read(0, 2))
    assert list(TorchSource([1, 2], collate_fn=list).read(0, 2)) == [[1, 2]]
