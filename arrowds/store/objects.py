"""Objects below a prefix of a bucket as a store: S3, Google Cloud Storage and Azure, through obstore."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from arrowds.errors import ConfigError, MissingExtraError, StorageError
from arrowds.store.base import Draft, Entry, Store, explained, record
from arrowds.store.forked import helper

Result = TypeVar("Result")

REQUESTS_AT_ONCE = 16
"""How many requests of one process are worth having under way: enough to fill a network, few enough for its memory."""

_NONCE = "arrowdscommit"  # Azure takes letters, digits and underscores, proxies drop names with underscores
_RETRIES = 10
_RETRY_SECONDS = 120.0
_LONGEST_ANSWER = 5.0
"""Seconds after which a failed request has been repeated enough."""
_BACKOFF = {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=15), "base": 3}
_RETRY_OPTIONS = ("max_retries", "retry_timeout")
_CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "timeout", "connect_timeout")
_SEGMENT_OF_UPLOAD = 16 << 20
_STATUS = re.compile(r"status code: (\d+)")
_CODE = re.compile(r"<Code>(\w+)</Code>")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where objects are and how to reach them; equal buckets share a client, and with it connections."""

    url: str
    options: tuple[tuple[str, Any], ...] = field(repr=False)


class ObjectStore(Store):
    """Objects below a prefix of a bucket. Requests are retried with growing pauses, for about half a minute.

    Args:
        url: scheme, bucket and prefix.
        options: keys of obstore and Polars; and ``max_retries`` (10) and ``retry_timeout`` (120 seconds), after which a
            request fails.
    """

    files_at_once = 8  # they hide each other's waiting, and fit into memory together

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self.options = dict(options or {})
        self._bucket = Bucket(self.url, tuple(sorted(self.options.items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStore) and other._bucket == self._bucket

    def __hash__(self) -> int:
        return hash(self._bucket)

    def check_options(self) -> None:
        """Open a client, without a request.

        Raises:
            ConfigError: when the options are wrong or incomplete.
            MissingExtraError: when obstore is not installed.
        """
        _request(_opened, self._bucket)

    @property
    def polars_options(self) -> dict[str, str]:
        """The same options as Polars takes them."""
        options = {name: str(value) for name, value in self.options.items() if name not in _RETRY_OPTIONS}
        return {**({"aws_allow_http": "true"} if _is_plain_http(options) else {}), **options}

    def read(self, name: str) -> pa.Buffer:
        return pa.py_buffer(_request(_get, self._bucket, name, None, "")[0])

    def read_start(self, name: str, count: int) -> tuple[pa.Buffer, int]:
        """Return the first ``count`` bytes of an object, or all that it has, and its size."""
        data, size = _request(_get, self._bucket, name, (0, count), "")
        return pa.py_buffer(data), size

    def read_range(self, name: str, start: int, stop: int, *, etag: str = "") -> pa.Buffer:
        """Return the bytes [start, stop) of an object.

        Raises:
            FileNotFoundError: when there is no object of that name.
            StorageError: when it can't be read, or is no longer that of ``etag``.
        """
        return pa.py_buffer(_request(_get, self._bucket, name, (start, stop), etag)[0])

    def read_ranges(self, name: str, ranges: Iterable[tuple[int, int]], *, etag: str = "") -> list[pa.Buffer]:
        """Return several ranges of bytes, read at once, as :meth:`read_range` returns one."""
        listed = list(ranges)
        if len(listed) == 1:
            return [self.read_range(name, *listed[0], etag=etag)]
        with ThreadPoolExecutor(min(REQUESTS_AT_ONCE, max(len(listed), 1))) as threads:
            return list(threads.map(lambda part: self.read_range(name, *part, etag=etag), listed))

    @contextmanager
    def writing(self, name: str) -> Iterator[Draft]:
        with tempfile.TemporaryDirectory(prefix="arrowds-") as folder:
            draft = Draft(Path(folder, "draft"))
            try:
                yield draft
                written = record(draft.path)
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                reason = explained(error)
                raise StorageError(error.errno, f"{self.url}/{name} could not be written: {reason}") from error
            _request(_put, self._bucket, name, draft.path)
            draft.record = written

    def create(self, name: str, data: bytes) -> bool:
        return bool(_request(_create, self._bucket, name, data, uuid.uuid4().hex))

    def check_conditional_put(self) -> None:
        """Refuse a store that overwrites where it should create: two writers would lose each other's work.

        Raises:
            StorageError: saying what to do.
        """
        name = f"builds/.probe-{uuid.uuid4().hex}"
        try:
            twice = self.create(name, b"1"), self.create(name, b"2")
        finally:
            self.delete([name])
        if twice != (True, False):
            raise StorageError(_no_conditional_put(self.url))

    def entries(self, prefix: str) -> list[Entry]:
        found: list[Entry] = _request(_list, self._bucket, prefix)
        return found

    def entry(self, name: str) -> Entry:
        """Return what a listing says of one object.

        Raises:
            FileNotFoundError: when there is no object of that name.
        """
        found: Entry = _request(_head, self._bucket, name)
        return found

    def size(self, name: str) -> int | None:
        try:
            return self.entry(name).size
        except FileNotFoundError:
            return None

    def delete(self, names: Iterable[str]) -> None:
        listed = list(names)
        for start in range(0, len(listed), 1000):
            _request(_delete, self._bucket, listed[start : start + 1000])

    def sync(self, names: Iterable[str]) -> None:
        """Return at once: a store answers a put when the object is safe."""


_used_in: int | None = None


def _request(function: Callable[..., Result], *args: Any) -> Result:
    """Call one of the functions below; where the process was forked after the first such call, by a helper."""
    global _used_in  # noqa: PLW0603  # obstore's threads are one set for the whole process
    if _used_in is None:
        _used_in = os.getpid()
    if _used_in != os.getpid():
        result: Result = helper().call(_by_value, function, *args)
        return result
    return function(*args)


def _by_value(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a helper; obstore's own buffers can't be pickled."""
    result = _request(function, *args)
    return (bytes(result[0]), result[1]) if function is _get else result


def _get(bucket: Bucket, name: str, part: tuple[int, int] | None, etag: str) -> tuple[Any, int]:
    """Return the bytes of an object, or a part of them, and its whole size."""
    options: dict[str, Any] = {}
    if part is not None:
        options["range"] = part
    if etag:
        options["if_match"] = etag
    with _explaining(bucket, name, "read"):
        return _repeated(partial(_got, bucket, name, options))


def _got(bucket: Bucket, name: str, options: dict[str, Any]) -> tuple[Any, int]:
    import obstore

    answer = obstore.get(_client(bucket), name, options=options)  # type: ignore[arg-type]  # GetOptions
    return answer.bytes(), answer.meta["size"]


def _repeated(request: Callable[[], Result]) -> Result:
    """Make a request again where its answer broke off.

    obstore repeats requests that fail, but not where the text of an error, or a listing, is cut short.
    """
    from obstore.exceptions import GenericError

    pause = 0.2
    while True:
        began = time.monotonic()
        try:
            return request()
        except GenericError as error:
            given_up = time.monotonic() - began > _LONGEST_ANSWER or pause > _LONGEST_ANSWER
            if given_up or "response body" not in str(error):
                raise
        time.sleep(pause)
        pause *= 2


def _put(bucket: Bucket, name: str, path: Path) -> None:
    import obstore

    with _explaining(bucket, name, "written"):
        obstore.put(_client(bucket), name, path, chunk_size=_SEGMENT_OF_UPLOAD)


def _create(bucket: Bucket, name: str, data: bytes, nonce: str) -> bool:
    import obstore
    from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

    with _explaining(bucket, name, "written"):
        try:
            obstore.put(_client(bucket), name, data, mode="create", attributes={_NONCE: nonce}, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            # The answer to an attempt that succeeded may have been lost, and the next attempt then finds our own.
            found = _repeated(lambda: obstore.get(_client(bucket), name))
            return bool(found.attributes.get(_NONCE) == nonce)
        except (NotSupportedError, NotImplementedError) as error:
            raise StorageError(_no_conditional_put(bucket.url)) from error
    return True


def _list(bucket: Bucket, prefix: str) -> list[Entry]:
    import obstore

    with _explaining(bucket, prefix, "listed"):
        found = [
            _entry(item)
            for page in _repeated(lambda: list(obstore.list(_client(bucket), prefix=prefix or None)))
            for item in page
        ]
    return sorted(found, key=lambda entry: entry.name)


def _head(bucket: Bucket, name: str) -> Entry:
    import obstore

    with _explaining(bucket, name, "read"):
        return _entry(_repeated(lambda: obstore.head(_client(bucket), name)))


def _entry(item: Any) -> Entry:
    return Entry(item["path"], item["size"], item["last_modified"], item["e_tag"] or "")


def _delete(bucket: Bucket, names: list[str]) -> None:
    import obstore
    from obstore.exceptions import NotFoundError

    with _explaining(bucket, names[0], "deleted"):
        try:
            _repeated(lambda: obstore.delete(_client(bucket), names))
        except (FileNotFoundError, NotFoundError) as error:  # gone already, but perhaps not the bucket
            if "NoSuchBucket" in str(error):
                raise


@lru_cache(maxsize=32)
def _client(bucket: Bucket) -> Any:
    """The obstore client of a bucket, opened when it is first used."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise MissingExtraError("obstore", "cloud") from error
    options = dict(bucket.options)
    retry = {
        "max_retries": int(options.pop("max_retries", _RETRIES)),
        "retry_timeout": timedelta(seconds=float(options.pop("retry_timeout", _RETRY_SECONDS))),
        "backoff": _BACKOFF,
    }
    client_options = {name.removeprefix("aws_"): value for name, value in options.items() if _is_of_client(name)}
    config = {name: str(value) for name, value in options.items() if not _is_of_client(name)}
    if _is_plain_http(config):
        client_options.setdefault("allow_http", True)
    try:
        open_url: Callable[..., Any] = from_url  # its overloads name every key of every service
        return open_url(bucket.url, config=config or None, client_options=client_options or None, retry_config=retry)
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{bucket.url} can't be opened: {_first_line(error)}; check storage_options, or the environment that "
            "stands in for them"
        ) from error


def _is_plain_http(options: Mapping[str, str]) -> bool:
    """Whether an endpoint is named that is reached without encryption, as on this host or in its network."""
    return any(
        name.endswith(("endpoint", "endpoint_url")) and value.startswith("http:") for name, value in options.items()
    )


def _opened(bucket: Bucket) -> None:
    _client(bucket)


def _is_of_client(name: str) -> bool:
    return name.removeprefix("aws_") in _CLIENT_OPTIONS


@contextmanager
def _explaining(bucket: Bucket, name: str, done: str) -> Iterator[None]:
    """Turn what obstore raises into a FileNotFoundError or a StorageError that names the object."""
    try:
        from obstore.exceptions import BaseError
    except ImportError as error:
        raise MissingExtraError("obstore", "cloud") from error
    try:
        yield
    except StorageError:
        raise
    except (BaseError, OSError) as error:
        raise _explained(bucket, name, done, error) from error


def _explained(bucket: Bucket, name: str, done: str, error: BaseException) -> OSError:
    """Say what went wrong with a request, and what to do."""
    from obstore.exceptions import NotFoundError, PermissionDeniedError, PreconditionError, UnauthenticatedError

    where = f"{bucket.url}/{name}" if name else bucket.url
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    number = int(status[1]) if status else 0
    denied = isinstance(error, (PermissionDeniedError, UnauthenticatedError, PermissionError)) or number in (401, 403)
    failed = f"{where} could not be {done}: "
    if "169.254.169.254" in text or "metadata.google" in text:
        return StorageError(
            failed + "there are no credentials; pass storage_options, such as aws_access_key_id and "
            "aws_secret_access_key, or set the environment variables of the service"
        )
    if (code and code[1] == "NoSuchBucket") or (done == "listed" and number == 404):
        return StorageError(failed + "the bucket does not exist; create it first")
    if isinstance(error, (FileNotFoundError, NotFoundError)) or number == 404:
        return FileNotFoundError(where)
    if isinstance(error, PreconditionError) or number == 412:
        return StorageError(errno.ESTALE, failed + "it was replaced meanwhile; open it again")
    if denied:
        reason = code[1] if code else _first_line(error)
        return StorageError(
            failed + f"the store refuses the credentials ({reason}); check storage_options or the environment"
        )
    return StorageError(
        failed + f"{_first_line(error)}; check the address and the network, then run again: finished work is kept"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _no_conditional_put(url: str) -> str:
    return (
        f"{url}: this store can't create an object only if it is absent, which commits need so that no writer's work "
        "is lost; use a bucket with conditional writes (If-None-Match), or write the index to a disk and copy it"
    )
