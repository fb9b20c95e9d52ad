"""object-stores.md: its calls run against a real S3 server, which stands for the one at the address of the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from documents import DOCS, blocks_of, run
from servers import BUCKET, KEY, SECRET, Server

import arrowds
from arrowds.store import ObjectStore

PAGE = DOCS / "object-stores.md"


def test_page(moto_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in moto_server.options.items():
        monkeypatch.setenv(name.upper(), str(value))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    pl.DataFrame({"input_ids": [list(range(number)) for number in range(1, 601)]}).write_parquet("0.parquet")
    ObjectStore(f"s3://{BUCKET}", moto_server.options).write("data/0.parquet", Path("0.parquet").read_bytes())
    assert BUCKET == "corpus", "the page calls the bucket so"
    in_page = [("http://10.0.0.5:9000", moto_server.endpoint), ('id": "..."', f'id": "{KEY}"')]
    in_page += [('secret_access_key": "..."', f'secret_access_key": "{SECRET}"')]
    blocks = blocks_of(PAGE, "python")
    for written, meant in in_page:
        blocks = [replace(block, code=block.code.replace(written, meant)) for block in blocks]
    first, second = run(blocks)
    assert first.names["ids"].tolist() == list(range(128, 512))
    assert len(second.names["source"]) == len(second.names["index"]) == 600
    assert isinstance(second.names["index"], arrowds.Index)
