"""What is indexed: a length, batches of a row range, part boundaries and a fingerprint for every kind of data.

path, pattern, folder -> FileSource (Parquet, Arrow IPC, JSON Lines, CSV) or MegatronSource (.bin/.idx)
table, dataset, frame -> TableSource, DatasetSource, HuggingFaceSource          text -> TokenizedSource
len() and [i]         -> TorchSource
"""

from arrowds.sources.base import Source
from arrowds.sources.files import FileSource
from arrowds.sources.huggingface import HuggingFaceSource
from arrowds.sources.megatron import MegatronSource
from arrowds.sources.opening import open_new_files, open_source, source_from_spec
from arrowds.sources.records import SourceFile
from arrowds.sources.tables import DatasetSource, TableSource
from arrowds.sources.tokenized import TokenizedSource
from arrowds.sources.torch import TorchSource

__all__ = [
    "DatasetSource",
    "FileSource",
    "HuggingFaceSource",
    "MegatronSource",
    "Source",
    "SourceFile",
    "TableSource",
    "TokenizedSource",
    "TorchSource",
    "open_new_files",
    "open_source",
    "source_from_spec",
]
