"""Indexes written straight through the storage layer, so that lookups are tested apart from the analysis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arrowds import manifest as manifests
from arrowds import storage
from arrowds.index import Index, open_index
from arrowds.layout import Layout
from arrowds.manifest import Dataset, Manifest, MetricEntry, PartRange, TotalEntry
from arrowds.schema import CUMULATIVE_COUNT, SAMPLE_ID, VALUE, narrowed, sample_id_type


def write_index(root: Path, metrics: dict[str, pa.Array], totals: dict[str, np.ndarray] | None = None) -> Index:
    """Write and open an index with these values; ``root`` must be new."""
    layout = Layout(root)
    num_samples = len(next(iter(metrics.values())))
    entries = {name: _write_metric(layout, name, column) for name, column in metrics.items()}
    total_entries = {}
    for name, total in (totals or {}).items():
        flat = pa.array(total.ravel())
        storage.write_parquet(layout.total(name), pa.table({VALUE: flat}))
        total_entries[name] = TotalEntry(definition=name, type=str(flat.type), shape=total.shape)
    manifest = Manifest(
        dataset=Dataset(description="by hand", fingerprint="0", num_samples=num_samples),
        sample_id_type="uint32",
        parts=(PartRange(number=0, start=0, stop=num_samples),),
        metrics=entries,
        totals=total_entries,
        files=manifests.file_entries(layout, [path for path in root.rglob("*") if path.is_file()]),
    )
    manifests.commit(root, manifest)
    return open_index(root)


def _write_metric(layout: Layout, name: str, column: pa.Array) -> MetricEntry:
    floating = pa.types.is_floating(column.type)
    if floating:
        column = pc.fill_null(column, float("nan"))
    valid = pc.invert(pc.is_nan(column) if floating else pc.is_null(column)).to_numpy(zero_copy_only=False)
    sortable = column.fill_null(False if pa.types.is_boolean(column.type) else 0).to_numpy(zero_copy_only=False)
    ids = np.flatnonzero(valid)
    ids = ids[np.argsort(sortable[ids], kind="stable")].astype(np.uint32)
    extremes = pc.min_max(column).as_py() if pa.types.is_integer(column.type) and len(ids) else {"min": 0, "max": 0}
    stored = narrowed(column.type, extremes["min"], extremes["max"])
    column, by_value = column.cast(stored), pa.table({VALUE: pa.array(sortable[ids], column.type), SAMPLE_ID: ids})
    distinct, counts = np.unique(sortable[ids], return_counts=True)
    storage.write_map(layout.values(name), column.cast(pa.uint8()) if stored == pa.bool_() else column, name=VALUE)
    storage.write_map(layout.order(name), pa.array(ids, sample_id_type(len(column))), name=SAMPLE_ID)
    storage.write_parquet(layout.bucket(name, 0, 0), by_value)
    storage.write_parquet(
        layout.distribution(name),
        pa.table({VALUE: pa.array(distinct, column.type), "count": counts, CUMULATIVE_COUNT: counts.cumsum()}),
    )
    return MetricEntry(
        definition=name,
        logical_type=str(by_value[VALUE].type),
        stored_type=str(stored),
        num_valid=len(ids),
        num_distinct=len(distinct),
        num_buckets=1,
    )
