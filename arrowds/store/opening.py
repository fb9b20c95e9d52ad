"""Which store a path or a URL stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from arrowds.errors import ConfigError
from arrowds.store.base import Store
from arrowds.store.local import LocalStore
from arrowds.store.objects import ObjectStore

_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "azure")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}([^/].*)")


def is_url(path: object) -> bool:
    """Tell whether a path names an object store; a Path that has lost a slash of "s3://" does, too.

    >>> is_url("s3://bucket/index"), is_url(Path("s3://bucket/index")), is_url("index"), is_url("C:/index")
    (True, True, False, False)
    """
    return _URL.fullmatch(os.fspath(path)) is not None if isinstance(path, str | PurePath) else False


def open_store(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
    """Return the store whose root is a folder or a URL: ``s3://``, ``gs://`` or ``az://``, then bucket and prefix.

    Args:
        path: a folder, which need not exist, or a URL.
        storage_options: keys of obstore and Polars, such as ``aws_endpoint_url`` and ``aws_access_key_id``; the
            environment gives what they don't.

    Raises:
        ConfigError: for another scheme, or options for a local folder.
        MissingExtraError: when obstore is not installed.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"expected the folder or the URL of an index, got a {type(path).__name__}")
    text = re.sub("^file:/+", "/", os.fspath(path), flags=re.IGNORECASE)
    url = _URL.fullmatch(text)
    if url is None:
        if storage_options:
            raise ConfigError(f"storage_options belong to a URL, but {text} is a local folder")
        return LocalStore(Path(text).expanduser().absolute())  # workers may have another working directory
    scheme, rest = url[1].lower(), url[2]
    if scheme not in _SCHEMES:
        raise ConfigError(f"{text}: unknown scheme {scheme!r}; expected a folder, or one of s3://, gs://, az://")
    store = ObjectStore(f"{scheme}://{rest}", storage_options)
    store.check_options()
    return store


def options_for(options: Mapping[str, Any] | None, *places: object) -> list[Mapping[str, Any] | None]:
    """Return the options for each of several places: those that are URLs, or lists with one, get them.

    Raises:
        ConfigError: when none of them is a URL.

    >>> options_for({"aws_region": "us-east-1"}, ["s3://bucket/data"], "index")
    [{'aws_region': 'us-east-1'}, None]
    """
    lists = [place if isinstance(place, list | tuple) else [place] for place in places]
    named = [any(map(is_url, items)) for items in lists]
    if options and not any(named):
        raise ConfigError("storage_options belong to a URL, but neither the data nor the index is at one")
    return [options if url else None for url in named]
