"""Put a report together: facts and charts into the template of the page, and the page into a file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.index import Index
from arrowds.pipeline.config import PipelineConfig, load_config
from arrowds.report.contents import EXTREMES, Report, gathered
from arrowds.report.rows import MOST_CHARACTERS, shortened
from arrowds.report.training import run_facts
from arrowds.store import replacing

MOST_BYTES = 3_000_000
"""Of a page: texts are cut further where it would be larger."""
MOST_METRICS = 40
"""More do not fit on a page."""

_SHORTER = (MOST_CHARACTERS, 120, 40, 0)
_FOLDER = Path(__file__).parent


def write_report(
    index: Index,
    path: str | PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    sample: int = 50_000,
    run: str | PathLike[str] | None = None,
    config: PipelineConfig | Mapping[str, Any] | str | PathLike[str] | None = None,
) -> None:
    """Write a report on an index, and on a run that trained with it, as one HTML page that needs no network.

    Its figures come from the manifest, from distributions and from binary searches in the memory maps; correlations and
    medians by category from samples drawn at random, always the same ones. Equal indexes give equal pages, of at most
    3 MB. Where the data can't be read, the page says so and shows the rest.

    Args:
        index: an open index.
        path: of the page; an earlier one is replaced.
        metrics: which metrics have a section of their own; by default all, up to 40.
        columns: which columns of the data are shown of the lowest and the highest samples; by default those of text.
            None of them for an empty list: then the data is not read.
        sample: how many samples are drawn.
        run: the output of ``arrowds run``, or the folder that a sampler recorded into.
        config: the configuration of the run, for its groups and its budget of tokens.

    Raises:
        ConfigError: for more than 40 metrics, a ``sample`` below 1, and a configuration without a run.
        MissingColumnError: for a column that the data does not have.
        MissingExtraError: when altair, vl-convert-python or Jinja2 is not installed.
        UnknownMetricError: for a metric that the index does not have.
        UnreadableFileError: when the folder has no run.
        StorageError: when the page can't be written.

    >>> import arrowds, polars as pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"n": range(100)})
    ...     made = arrowds.analyze(data, arrowds.metrics.column("n"), f"{folder}/index", progress=False)
    ...     write_report(made, f"{folder}/report.html")
    ...     Path(folder, "report.html").read_text(encoding="utf-8")[:15]
    '<!doctype html>'
    """
    for module, package in (("altair", "altair"), ("vl_convert", "vl-convert-python"), ("jinja2", "jinja2")):
        if find_spec(module) is None:
            raise MissingExtraError(package, "report")
    if sample < 1:
        raise ConfigError(f"sample must be at least 1, got {sample}")
    if config is not None and run is None:
        raise ConfigError("the configuration is that of a run, but no run is named; pass run=FOLDER as well")
    names = _telling(index)[:MOST_METRICS] if metrics is None else list(dict.fromkeys(metrics))
    if len(names) > MOST_METRICS:
        raise ConfigError(
            f"a page has room for {MOST_METRICS} metrics, got {len(names)}; choose with metrics=[...], or write several"
        )
    settings = None if config is None else load_config(config)
    trained = None if run is None else run_facts(Path(run), index, names, config=settings, extremes=EXTREMES)
    left_out = max(0, len(_telling(index)) - MOST_METRICS) if metrics is None else 0
    page = rendered(gathered(index, names, columns, sample, trained, left_out=left_out))
    with replacing(Path(path)) as draft:
        draft.path.write_text(page, encoding="utf-8")


def _telling(index: Index) -> list[str]:
    """The metrics that are worth a section: ids of other samples are not, where the sizes of clusters are known."""
    return [name for name in index if name != "duplicate_of" or "cluster_size" not in index]


def rendered(report: Report) -> str:
    """Return the page: everything from the data is escaped by the template, and texts are as long as there is room."""
    import vl_convert
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    import arrowds

    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # it has a default, which its stub lacks
    files = {name: _FOLDER.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")}
    scripts = [bundle, files["page.js"]]
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "bytes": decimal, "percent": percent, "spark": spark}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    page = ""
    for most in _SHORTER:
        environment.filters["cut"] = partial(shortened, most=most)
        page = environment.get_template("page.html").render(
            report=report,
            arrowds=arrowds.__version__,
            style=files["page.css"],
            scripts=scripts,
            policy=_policy(scripts),
            cut_to=most,
            shortened=most < MOST_CHARACTERS,
        )
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def _policy(scripts: Sequence[str]) -> str:
    """Return a content security policy: the page loads nothing, and runs these scripts alone."""
    digests = (b64encode(sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"


def number(value: Any) -> str:
    """Write a number for people: groups of three digits, six digits of a float, a dash for None.

    >>> number(1234567), number(0.123456789), number(12345678.9), number(True), number(None), number("inf")
    ('1,234,567', '0.123457', '12,345,679', 'true', '-', 'inf')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e6 <= abs(value) < 1e15 else f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(share: float) -> str:
    """Write a share of 1 as a percentage.

    >>> percent(0.25), percent(0.00012)
    ('25.0 %', '0.012 %')
    """
    return f"{share:.1%}".replace("%", " %") if share >= 0.001 or not share else f"{100 * share:.2g} %"


def spark(counts: Sequence[int]) -> str:
    """Return the outline of a small histogram, 100 wide and 24 high, as the path of an SVG.

    >>> spark([1, 2])
    'M0 24V12H50V0H100V24Z'
    """
    most = max(*counts, 1)
    edges = [round(100 * (place + 1) / len(counts), 1) for place in range(len(counts))]
    steps = (f"V{24 - 24 * count / most:.3g}H{edge:g}" for count, edge in zip(counts, edges, strict=True))
    return f"M0 24{''.join(steps)}V24Z"
