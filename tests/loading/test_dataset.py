"""The dataset of Arrow views: every kind of source gives the same samples; what can be mapped is not copied."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_collate

from arrowds.errors import MissingColumnError, SourceError
from arrowds.indexed_dataset import write_indexed_dataset
from arrowds.loading import ArrowDataset, CurriculumDataLoader
from arrowds.sources import MegatronSource

ROWS = 50
RNG = np.random.default_rng(1)
TOKENS = [RNG.integers(0, 1000, size).tolist() for size in RNG.integers(0, 9, ROWS)]
LABELS = RNG.normal(size=ROWS)


def table() -> pa.Table:
    """Two chunks, the second one sliced out of something longer."""
    whole = pa.table(
        {
            "input_ids": pa.array(TOKENS, pa.list_(pa.int32())),
            "label": LABELS,
            "text": [f"row {row}" for row in range(ROWS)],
            "box": pa.array([[row, -row] for row in range(ROWS)], pa.list_(pa.int16(), 2)),
            "good": [row % 3 == 0 for row in range(ROWS)],
        }
    )
    return pa.concat_tables([whole.slice(0, 20), pa.concat_tables([whole, whole]).combine_chunks().slice(20, 30)])


def parquet(folder: Path) -> object:
    pq.write_table(table().slice(0, 13), folder / "a.parquet", row_group_size=5)
    pq.write_table(table().slice(13), folder / "b.parquet")
    return [folder / "a.parquet", folder / "b.parquet"]


def ipc(folder: Path) -> object:
    with pa.ipc.new_file(folder / "data.arrow", table().schema) as writer:
        writer.write_table(table(), max_chunksize=11)
    return folder / "data.arrow"


def hugging_face(folder: Path) -> object:
    datasets = pytest.importorskip("datasets", reason="datasets is an extra")
    return datasets.Dataset(datasets.table.InMemoryTable(table()))


KINDS = {"table": lambda folder: table(), "parquet": parquet, "ipc": ipc, "hugging_face": hugging_face}


@pytest.fixture(params=[*KINDS, "parquet, cached", "table, cached"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> ArrowDataset:
    kind, *cached = request.param.split(", ")
    return ArrowDataset(KINDS[kind](tmp_path), cache_dir=tmp_path / "cache" if cached else None)


def plain(sample: dict) -> dict:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in sample.items()}


def test_samples_are_the_rows(dataset: ArrowDataset) -> None:
    assert len(dataset) == ROWS
    assert [plain(dataset[row]) for row in range(ROWS)] == table().to_pylist()
    sample = dataset[3]
    dtypes = {name: value.dtype for name, value in sample.items() if name != "text"}
    assert dtypes == {"input_ids": torch.int32, "label": torch.float64, "box": torch.int16, "good": torch.bool}


def test_a_batch_is_its_samples(dataset: ArrowDataset) -> None:
    ids = RNG.integers(0, ROWS, 40)
    expected = [plain(dataset[int(row)]) for row in ids]
    for given_ids in (ids, ids.tolist(), torch.from_numpy(ids)):
        assert [plain(sample) for sample in dataset.__getitems__(given_ids)] == expected
    assert dataset.__getitems__([]) == []


def test_a_pickled_dataset_opens_its_data_again(dataset: ArrowDataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    assert [plain(sample) for sample in copy.__getitems__(range(ROWS))] == table().to_pylist()


@pytest.mark.parametrize("ids", [[-1], [ROWS], [0, ROWS + 5]])
def test_ids_outside_are_refused(dataset: ArrowDataset, ids: list[int]) -> None:
    with pytest.raises(IndexError, match="not all within 0 to 49"):
        dataset.__getitems__(ids)


def test_torch_collates_samples_of_one_length(dataset: ArrowDataset) -> None:
    samples = [{name: sample[name] for name in ("label", "box", "text")} for sample in dataset.__getitems__([4, 2])]
    batch = default_collate(samples)
    assert batch["label"].tolist() == LABELS[[4, 2]].tolist()
    assert batch["box"].tolist() == [[4, -4], [2, -2]]
    assert batch["text"] == ["row 4", "row 2"]


@settings(max_examples=30, deadline=None)
@given(
    chunks=st.lists(st.lists(st.lists(st.integers(-9, 9), max_size=4), max_size=5), min_size=1, max_size=4),
    large=st.booleans(),
)
def test_any_chunks_give_the_rows(chunks: list[list[list[int]]], large: bool) -> None:
    kind = pa.large_list(pa.int64()) if large else pa.list_(pa.int64())
    column = pa.chunked_array([pa.array(chunk, kind) for chunk in chunks], kind)
    rows = [row for chunk in chunks for row in chunk]
    found = ArrowDataset(pa.table({"x": column})).__getitems__(range(len(rows)))
    assert [sample["x"].tolist() for sample in found] == rows


def address_range(buffer: pa.Buffer) -> range:
    return range(buffer.address, buffer.address + buffer.size)


def mappings_of(path: Path) -> list[range]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path.resolve()))]
    return [range(int(start, 16), int(stop, 16)) for start, stop in spans]


def test_tensors_of_a_table_are_views_of_it() -> None:
    column = pa.array([[1, 2], [3, 4, 5]], pa.list_(pa.int64()))
    sample = ArrowDataset(pa.table({"x": column, "y": pa.array([1.0, 2.0])}))[1]
    assert sample["x"].data_ptr() in address_range(column.values.buffers()[1])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
@pytest.mark.parametrize("kind", ["ipc", "parquet, cached", "megatron"])
def test_tensors_of_mapped_files_are_views_of_the_file(kind: str, tmp_path: Path) -> None:
    if kind == "megatron":
        write_indexed_dataset(tmp_path / "tokens", np.arange(40), np.full(10, 4), dtype="int32")
        dataset, path = ArrowDataset(MegatronSource(tmp_path / "tokens")), tmp_path / "tokens.bin"
    elif kind == "ipc":
        dataset, path = ArrowDataset(ipc(tmp_path)), tmp_path / "data.arrow"
    else:
        dataset = ArrowDataset(parquet(tmp_path), cache_dir=tmp_path / "cache")
        (path,) = (tmp_path / "cache").iterdir()
    sample = next(sample for sample in dataset.__getitems__(range(len(dataset))) if len(sample["input_ids"]))
    assert any(sample["input_ids"].data_ptr() in span for span in mappings_of(path))


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_megatron_files(dtype: str, tmp_path: Path) -> None:
    sizes = [len(row) for row in TOKENS]
    write_indexed_dataset(tmp_path / "tokens", np.concatenate(TOKENS).astype(int), np.array(sizes), dtype=dtype)
    dataset = ArrowDataset(MegatronSource(tmp_path / "tokens"), columns=["input_ids"])
    assert [plain(sample) for sample in dataset.__getitems__(range(ROWS))] == [{"input_ids": row} for row in TOKENS]
    assert dataset[0]["input_ids"].dtype == getattr(torch, dtype)
    assert ArrowDataset(MegatronSource(tmp_path / "tokens"))[5]["num_tokens"].item() == sizes[5]


def test_columns_are_chosen(tmp_path: Path) -> None:
    dataset = ArrowDataset(parquet(tmp_path), columns=["label", "input_ids"])
    assert list(dataset[0]) == ["label", "input_ids"]
    with pytest.raises(MissingColumnError, match="no column 'tokens'"):
        ArrowDataset(table(), columns=["tokens"])
    with pytest.raises(SourceError, match="no columns to load"):
        ArrowDataset(table(), columns=[])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None]),
        pa.array([[1], None], pa.list_(pa.int64())),
        pa.array([[1, None], [2]], pa.list_(pa.int64())),
        pa.array([[1, None], [2, 3]], pa.list_(pa.int64(), 2)),
    ],
    ids=["number", "list", "in a list", "in a list of fixed size"],
)
def test_nulls_are_refused(column: pa.Array) -> None:
    with pytest.raises(SourceError, match="column 'x' has 1 nulls"):
        ArrowDataset(pa.table({"x": column}))


def test_nulls_that_a_slice_leaves_out_do_no_harm() -> None:
    column = pa.array([[1, None], [2]], pa.list_(pa.int64())).slice(1)
    assert ArrowDataset(pa.table({"x": column}))[0]["x"].tolist() == [2]


def test_what_is_no_number_stays_as_it_is() -> None:
    rows = [{"a": 1}, {"a": None}]
    dataset = ArrowDataset(pa.table({"s": pa.array(["a", None]), "d": pa.array(rows), "n": pa.array([[[1], [2]], []])}))
    assert dataset[0] == {"s": "a", "d": {"a": 1}, "n": [[1], [2]]}
    assert dataset[1] == {"s": None, "d": {"a": None}, "n": []}


def test_a_torch_dataset_is_no_source() -> None:
    with pytest.raises(SourceError, match="pass it to the loader directly"):
        ArrowDataset(torch.utils.data.TensorDataset(torch.ones(3)))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_workers_read_the_samples(context: str, tmp_path: Path) -> None:
    dataset = ArrowDataset(parquet(tmp_path), columns=["input_ids"], cache_dir=tmp_path / "cache")
    batches = [[3, 1], [49, 20]]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=1, collate_fn=list, multiprocessing_context=context)
    assert [[plain(sample)["input_ids"] for sample in batch] for batch in loader] == [
        [TOKENS[row] for row in batch] for batch in batches
    ]


CACHING = """
import sys
from arrowds.loading import ArrowDataset
dataset = ArrowDataset(sys.argv[1], columns=["input_ids", "box"], cache_dir=sys.argv[2])
print(sum(int(sample["input_ids"].sum()) for sample in dataset.__getitems__(range(len(dataset)))))
"""


def test_processes_make_one_cache_file_at_once(tmp_path: Path) -> None:
    """Each replaces the file whole, so that none finds half of it."""
    pq.write_table(table(), tmp_path / "data.parquet")
    command = [sys.executable, "-c", CACHING, str(tmp_path / "data.parquet"), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [int(process.communicate(timeout=120)[0]) for process in running]
    assert sums == [sum(map(sum, TOKENS))] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_cache_is_used_again_until_the_data_change(tmp_path: Path) -> None:
    path, cache = tmp_path / "data.parquet", tmp_path / "cache"
    pq.write_table(table(), path)
    ArrowDataset(path, cache_dir=cache)
    (made,) = cache.iterdir()
    before = made.stat().st_mtime_ns, made.stat().st_ino
    ArrowDataset(path, cache_dir=cache)
    assert (made.stat().st_mtime_ns, made.stat().st_ino) == before
    ArrowDataset(path, columns=["label"], cache_dir=cache)
    pq.write_table(table().slice(1), path)
    assert plain(ArrowDataset(path, cache_dir=cache)[0]) == table().to_pylist()[1]
    assert len(list(cache.iterdir())) == 3


def test_column_names_do_not_leave_the_cache(tmp_path: Path) -> None:
    data = pa.table({"../../x": [1, 2], "y" * 300: [3, 4]})
    assert plain(ArrowDataset(data, cache_dir=tmp_path / "cache")[1]) == {"../../x": 2, "y" * 300: 4}
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_curriculum_loader_feeds_from_it(dataset: ArrowDataset) -> None:
    class InOrder(list):
        def state_dict(self) -> dict:
            return {}

    loader = CurriculumDataLoader(dataset, InOrder([[0, 1], [7]]), collate_fn=list)
    assert [[sample["text"] for sample in batch] for batch in loader] == [["row 0", "row 1"], ["row 7"]]
