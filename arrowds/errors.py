"""Every exception that arrowds raises on purpose, and the warning that it gives; nothing else.

    ArrowdsError
    |-- MissingExtraError (ImportError)         an optional dependency is not installed
    |-- UnsupportedError (ValueError)           a known name that this version can't serve yet
    |-- ConfigError (ValueError)                an argument or a configuration file that is invalid
    |   |-- TokenBudgetError                    a sample is longer than the budget of a batch
    |   `-- EmptyPoolError                      a difficulty admits no sample at all
    |-- SourceError (ValueError)                the data can't be read as asked
    |   |-- EmptyDatasetError                   there is no sample
    |   |-- MissingColumnError                  a column that the data does not have
    |   `-- UnreadableFileError                 a file that is missing, truncated or of another kind
    |-- MetricError (ValueError)                a metric is wrong, or returned something wrong
    |   |-- MetricNameError                     a name that can't be a folder of the index, or that clashes
    |   |-- MetricValueError                    wrong length, dtype, NaN or null
    |   `-- MetricFailedError                   the metric's function raised
    |-- WorkerDiedError (RuntimeError)          a worker process ended without a result, twice
    |-- StorageError (OSError)                  a file of the index could not be written
    |-- DatasetIndexError (ValueError)          a folder is not the index that was asked for
    |   |-- IndexNotFoundError                  nothing there, or not finished
    |   |   `-- VersionNotFoundError            a snapshot that was vacuumed, or never was
    |   |-- IndexExistsError                    the folder holds something else
    |   |-- IndexVersionError                   written by a newer format
    |   |-- IndexCorruptError                   files that are missing, truncated or changed
    |   |-- IndexChangedError                   another writer has committed what this one can't build on
    |   `-- UnknownMetricError (KeyError)       the index has no metric of that name
    |-- StateMismatchError (ValueError)         a saved state of another index, curriculum or plan
    |-- ProfilerError (RuntimeError)            events that were not started, or an engine that is not known
    `-- LogFormatError (ValueError)             a benchmark log that can't be understood

Each class also derives from the closest built-in class, so that callers who know only those catch it too.
"""

from __future__ import annotations


class ArrowdsError(Exception):
    """The root of everything that arrowds raises on purpose."""


class ArrowdsWarning(UserWarning):
    """An argument that is valid, and probably a mistake; the message says of what."""


class MissingExtraError(ArrowdsError, ImportError):
    """An optional dependency is not installed; the message names the pip command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed; run: pip install 'arrowds[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Let the error cross process boundaries although its constructor takes two arguments."""
        return type(self), (self.package, self.extra)


class UnsupportedError(ArrowdsError, ValueError):
    """A name that arrowds knows but this version does not serve."""


class ConfigError(ArrowdsError, ValueError):
    """An argument or a configuration that is invalid."""


class TokenBudgetError(ConfigError):
    """A sample is longer than the token budget of a batch."""


class EmptyPoolError(ConfigError):
    """A difficulty admits no sample at all."""


class SourceError(ArrowdsError, ValueError):
    """The data can't be read as asked."""


class EmptyDatasetError(SourceError):
    """There is no sample to index."""


class MissingColumnError(SourceError):
    """A column that the data does not have; the message lists those it has."""


class UnreadableFileError(SourceError):
    """A source file that is missing, truncated or of another kind."""


class MetricError(ArrowdsError, ValueError):
    """A metric is wrong, or returned something wrong."""


class MetricNameError(MetricError):
    """A metric name that can't be a folder of the index, or that is used twice."""


class MetricValueError(MetricError):
    """A metric returned the wrong length, the wrong dtype, NaN or null."""


class MetricFailedError(MetricError):
    """The function of a metric raised."""


class WorkerDiedError(ArrowdsError, RuntimeError):
    """A worker process ended without a result, also on the second try."""


class StorageError(ArrowdsError, OSError):
    """A file of the index could not be written."""


class DatasetIndexError(ArrowdsError, ValueError):
    """A folder is not the index that was asked for."""


class IndexNotFoundError(DatasetIndexError):
    """There is no index, or none that was finished."""


class VersionNotFoundError(IndexNotFoundError):
    """A snapshot of the index that was vacuumed, or that never existed."""


class IndexChangedError(DatasetIndexError):
    """Another writer has committed a snapshot on which this run's work can't be based."""


class IndexExistsError(DatasetIndexError):
    """The output folder already holds something else."""


class IndexVersionError(DatasetIndexError):
    """The index was written by a newer version of the format."""


class IndexCorruptError(DatasetIndexError):
    """Files of the index are missing, truncated or changed."""


class UnknownMetricError(DatasetIndexError, KeyError):
    """The index has no metric of that name; the message lists those it has."""

    __str__ = Exception.__str__  # KeyError would show the message's repr


class StateMismatchError(ArrowdsError, ValueError):
    """A saved state belongs to another index, curriculum or plan."""


class ProfilerError(ArrowdsError, RuntimeError):
    """An event that was not started, or an engine whose parts are not known."""


class LogFormatError(ArrowdsError, ValueError):
    """A benchmark log that can't be understood."""
