"""From a configuration to batches: the index is made once, and the loader gives what the sampler draws, padded."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

import arrowds
from arrowds.errors import ConfigError, IndexExistsError
from arrowds.loading import ArrowDataset
from arrowds.pipeline import create_data_loader
from arrowds.pipeline.collate import PaddingCollate


def test_index_is_made_once_and_batches_follow_the_curriculum(configuration, tmp_path, corpus):
    loader = create_data_loader(None, configuration())
    texts = pa.parquet.read_table(corpus).column("text").to_pylist()
    index = arrowds.open_index(tmp_path / "index")
    assert index["seqlen"].values.tolist() == [len(text) for text in texts]
    for batch, ids in zip(loader, create_data_loader(None, configuration()).sampler, strict=True):
        assert batch["input_ids"].dtype == torch.int64
        for row, mask, sample in zip(batch["input_ids"], batch["attention_mask"], ids, strict=True):
            assert bytes(row[mask.bool()].tolist()).decode() == texts[sample]
        assert batch["input_ids"].shape[1] == max(len(texts[sample]) for sample in ids)
        assert max(len(texts[sample]) for sample in ids) <= loader.current_difficulties["seqlen"]
    assert arrowds.open_index(tmp_path / "index").version == index.version == 1


def test_every_kind_of_metric_is_indexed(configuration, tmp_path):
    metrics = [
        {"kind": "seqlen", "name": "tokens"},
        {"kind": "vocab_rarity"},
        {"kind": "token_counts"},
        {"kind": "expr", "name": "double", "sql": "2 * length(text)"},
    ]
    loader = create_data_loader(None, configuration(index={"metrics": metrics}, curriculum={}) | {"curriculum": {}})
    index = loader.sampler.index
    assert index.metrics == ["tokens", "vocab_rarity", "double"]
    assert np.array_equal(index["double"].values, 2 * index["tokens"].values.astype(np.int64))
    assert index.totals["token_counts"].sum() == index["tokens"].values.sum()


def test_ranks_share_the_global_batch(configuration):
    values = configuration()
    whole = create_data_loader(None, values | {"batches": {"micro_batch_size": 4, "gradient_accumulation_steps": 2}})
    parts = [create_data_loader(None, values, rank=rank, world_size=2) for rank in range(2)]
    step = whole.sampler.global_batch_at(3)
    assert all(np.array_equal(part.sampler.global_batch_at(3), step) for part in parts)
    assert [sample for part in parts for sample in list(part.sampler)[4]] == step[:4].tolist()


def test_dataset_may_be_given_in_any_form(configuration, tmp_path):
    table = pa.table({"input_ids": [[1, 2, 3], [4], [5, 6]]})
    values = configuration(batches={"micro_batch_size": 3, "gradient_accumulation_steps": 1}) | {"curriculum": {}}
    del values["data"]
    for number, dataset in enumerate([table, ArrowDataset(table), arrowds.sources.open_source(table)]):
        loader = create_data_loader(
            dataset, values | {"index": {"path": tmp_path / f"i{number}", "metrics": [{"kind": "seqlen"}]}}
        )
        rows = next(iter(loader))["input_ids"].tolist()
        assert sorted(rows) == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]


def test_own_collate_takes_the_place_of_padding(configuration):
    loader = create_data_loader(None, configuration(), collate_fn=len)
    assert next(iter(loader)) == 2


def test_refusals_name_what_is_missing(configuration, tmp_path):
    values = configuration()
    with pytest.raises(ConfigError, match="section 'data'"):
        create_data_loader(None, {key: value for key, value in values.items() if key != "data"})
    with pytest.raises(ConfigError, match="not a valid SQL expression"):
        create_data_loader(None, configuration(index={"metrics": [{"kind": "expr", "name": "n", "sql": "((("}]}))
    create_data_loader(None, values)
    with pytest.raises(IndexExistsError, match="other data"):
        create_data_loader(pa.table({"input_ids": [[1]]}), values)
    with pytest.raises(ConfigError, match="samples but the index"):
        create_data_loader(pa.table({"input_ids": [[1]]}), values | {"index": {"path": tmp_path / "index"}})


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16])
def test_padding_keeps_every_token_of_any_dtype(dtype):
    rows = [torch.from_numpy(np.arange(n, dtype=dtype) + 200) for n in (3, 5, 1)]
    collate = pickle.loads(pickle.dumps(PaddingCollate(max_length=4, pad_id=7)))
    batch = collate([{"input_ids": row} for row in rows])
    assert batch["input_ids"].tolist() == [[200, 201, 202, 7], [200, 201, 202, 203], [200, 7, 7, 7]]
    assert batch["labels"].tolist() == [[200, 201, 202, -100], [200, 201, 202, 203], [200, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_sample_without_the_column_names_what_it_has():
    with pytest.raises(ConfigError, match="no 'input_ids'; it has text, label"):
        PaddingCollate()([{"text": "a", "label": 1}])
