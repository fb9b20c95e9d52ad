"""Index training data by metrics and feed it to training in the order that the metrics call for."""

from arrowds import errors, metrics, sources
from arrowds.analysis.build import analyze
from arrowds.index import Index, open_index

__version__ = "0.1.0"

__all__ = ["Index", "analyze", "errors", "metrics", "open_index", "sources"]
