"""A tiny corpus and a configuration that trains on it in a second."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SEQLEN = {
    "difficulty_type": "value", "clustering_type": "schedule_based", "min_difficulty": 8, "max_difficulty": 40,
    "schedule_type": "fixed_linear", "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 4},
}  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    """A Parquet file of 120 texts of 2 to 58 letters."""
    lengths = np.random.default_rng(0).integers(1, 30, 120)
    pq.write_table(pa.table({"text": ["ab" * int(length) for length in lengths]}), tmp_path / "corpus.parquet")
    return tmp_path / "corpus.parquet"


@pytest.fixture
def configuration(tmp_path, corpus):
    """Return a configuration of 8 steps; sections that are given are merged into it."""

    def make(**sections):
        base = {
            "data": {"source": str(corpus), "tokenizer": "bytes"},
            "index": {"path": str(tmp_path / "index"), "metrics": [{"kind": "seqlen"}]},
            "curriculum": {"seqlen": SEQLEN},
            "batches": {"micro_batch_size": 2, "gradient_accumulation_steps": 2},
            "model": {"factory": "bytes", "arguments": {"width": 16, "layers": 1, "heads": 2, "max_length": 64}},
            "training": {"steps": 8, "device": "cpu", "learning_rate": 0.01},
            "output": str(tmp_path / "run"),
        }
        for name, values in sections.items():
            base[name] = {**base[name], **values} if isinstance(values, dict) and name in base else values
        return {name: values for name, values in base.items() if values is not None}

    return make
