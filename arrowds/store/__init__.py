"""Named objects below one root, on a local disk or in an object store: read, write, create if absent, list, delete.

Nothing else in arrowds writes files of an index. An object appears under its name only when it is complete, and
:meth:`Store.create` is the one operation that several writers can race for.
"""

from arrowds.store.base import TEMPORARY, Draft, Entry, FileRecord, Store, explained, record, replacing, sync_path
from arrowds.store.local import LocalStore, one_at_a_time
from arrowds.store.objects import ObjectStore
from arrowds.store.opening import is_url, open_store, options_for

__all__ = [
    "TEMPORARY",
    "Draft",
    "Entry",
    "FileRecord",
    "LocalStore",
    "ObjectStore",
    "Store",
    "explained",
    "is_url",
    "one_at_a_time",
    "open_store",
    "options_for",
    "record",
    "replacing",
    "sync_path",
]
