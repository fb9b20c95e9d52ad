"""Servers that live as long as the test session, and a place of its own in each for every test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy, proxy_to
from servers import BUCKET, Server, moto, seaweedfs

from arrowds.store import ObjectStore


@dataclass(frozen=True)
class Place:
    """A prefix that no other test uses, as a URL with the options to reach it."""

    server: Server
    url: str
    options: dict[str, Any] = field(hash=False)

    def at(self, name: str) -> str:
        return f"{self.url}/{name}"

    @property
    def store(self) -> ObjectStore:
        return ObjectStore(self.url, self.options)

    def contents(self, prefix: str = "") -> dict[str, bytes]:
        """Every object below the place by name."""
        store = ObjectStore(self.at(prefix) if prefix else self.url, self.options)
        return {name: store.read(name).to_pybytes() for name in store.names("")}


def place_on(server: Server) -> Place:
    return Place(server, f"s3://{BUCKET}/{uuid.uuid4().hex}", server.options)


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session", params=["moto", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def place(server: Server) -> Place:
    """On both servers."""
    return place_on(server)


@pytest.fixture
def seaweed(seaweedfs_server: Server) -> Place:
    return place_on(seaweedfs_server)


@pytest.fixture
def proxy(seaweedfs_server: Server) -> Iterator[Proxy]:
    with proxy_to(seaweedfs_server.endpoint) as running:
        yield running


@pytest.fixture
def proxied(proxy: Proxy, seaweedfs_server: Server) -> Place:
    """A place on SeaweedFS behind ``proxy``."""
    return place_on(seaweedfs_server.through(proxy.endpoint))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory maps are kept for one test, not in the user's cache folder."""
    monkeypatch.setenv("ARROWDS_CACHE_DIR", str(tmp_path / "cache"))
