"""What an index consists of, and how it is opened, looked up and queried."""

from arrowds.index.index import Index, open_index

__all__ = ["Index", "open_index"]
