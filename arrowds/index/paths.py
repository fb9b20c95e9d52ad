"""Every path inside an index, as pure functions of its root; nothing here reads a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arrowds.schema import BUCKET, check_metric_name


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one generation of an index.

    The first generation lies in the root itself. An overwriting run builds the next one beside it, so that the old
    files stay whole until ``manifest.json`` names the new ones.

    >>> Layout(Path("index")).values("seqlen").as_posix()
    'index/metrics/seqlen/values.arrow'
    >>> Layout(Path("index"), generation=2).part("seqlen", 7).as_posix()
    'index/generation-00002/metrics/seqlen/parts/part-00007.parquet'
    """

    root: Path
    generation: int = 1

    @property
    def manifest(self) -> Path:
        """The commit: whatever it does not name is no part of the index."""
        return self.root / "manifest.json"

    @property
    def lock(self) -> Path:
        """Who is writing."""
        return self.root / "writer.lock"

    @property
    def data(self) -> Path:
        """The folder that holds this generation's files."""
        return self.root if self.generation == 1 else self.root / f"generation-{self.generation:05d}"

    @property
    def plan(self) -> Path:
        """What an unfinished run set out to do; removed by the commit."""
        return self.data / "plan.json"

    def metric(self, name: str) -> Path:
        """The folder of one per-sample metric."""
        return self.data / "metrics" / check_metric_name(name)

    def part(self, name: str, number: int) -> Path:
        """The values of one row range of the dataset, in sample order."""
        return self.metric(name) / "parts" / f"part-{number:05d}.parquet"

    def bucket(self, name: str, bucket: int, file: int) -> Path:
        """One file of a hive partition of the difficulty order."""
        return self.metric(name) / "buckets" / f"{BUCKET}={bucket:05d}" / f"{file:05d}.parquet"

    def buckets(self, name: str) -> Path:
        """The folder of all hive partitions of the difficulty order."""
        return self.metric(name) / "buckets"

    def values(self, name: str) -> Path:
        """Row i is the value of sample i."""
        return self.metric(name) / "values.arrow"

    def order(self, name: str) -> Path:
        """Sample ids sorted by (value, id)."""
        return self.metric(name) / "order.arrow"

    def distribution(self, name: str) -> Path:
        """Each distinct value with its count and the count up to it."""
        return self.metric(name) / "distribution.parquet"

    def total(self, name: str) -> Path:
        """The sum of an accumulated metric over all samples."""
        return self.data / "totals" / f"{check_metric_name(name)}.parquet"

    def total_part(self, name: str, number: int) -> Path:
        """The sum of an accumulated metric over one row range."""
        return self.data / "totals" / "parts" / check_metric_name(name) / f"part-{number:05d}.parquet"

    def relative(self, path: Path) -> str:
        """The key of a file in the manifest: its path below the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()
