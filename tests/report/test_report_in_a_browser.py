"""Reports opened in headless Chromium without a network: every chart is drawn, in light, in dark and on paper."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pages import Page

import arrowds
from arrowds.metrics import column

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("ARROWDS_REQUIRE_CHROMIUM") != "1",
    reason="needs Chromium: apt install chromium",
)

LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"


def opened(path: Path, folder: Path, *options: str) -> str:
    """Open a page in a browser that can reach nothing, and return what it prints; anything on the console fails."""
    assert CHROMIUM is not None, "chromium is not installed"
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        f"--user-data-dir={folder}", "--window-size=1200,1600", "--virtual-time-budget=30000",
        "--proxy-server=http://127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND", *options, path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return done.stdout


@pytest.fixture(scope="module")
def run(index, tmp_path_factory) -> Page:
    """A page with a run as well."""
    folder = tmp_path_factory.mktemp("run")
    for rank in range(2):
        sampler = arrowds.CurriculumSampler(
            index, {}, micro_batch_size=16, rank=rank, world_size=2, record=folder / "record"
        )
        for number, ids in enumerate(sampler, 1):
            sampler.recorder.add_losses(np.full(len(ids), 4 / number))
        sampler.close()
    arrowds.write_report(index, folder / "page.html", run=folder / "record")
    return Page(folder / "page.html")


def assert_drawn(page: Page, dom: Path) -> Page:
    """Every chart of a page is a picture with marks in the document that the browser has made of it."""
    drawn = Page(dom)
    [root] = [attributes for tag, attributes in drawn.tags if tag == "html"]
    assert root["data-drawn"] == str(len(page.charts))
    pictures = [attributes for tag, attributes in drawn.tags if tag == "svg" and attributes.get("class") == "marks"]
    assert len(pictures) == len(page.charts) > 0
    assert all(float(picture["width"]) > 100 and float(picture["height"]) > 30 for picture in pictures)
    assert "can't be drawn" not in drawn.text
    return drawn


def test_every_chart_is_drawn_and_nothing_of_the_data_runs(run, tmp_path):
    (tmp_path / "dom.html").write_text(opened(run.path, tmp_path / "browser", "--dump-dom"), encoding="utf-8")
    drawn = assert_drawn(run, tmp_path / "dom.html")
    assert {"run-loss", "run-samples", "run-group-0", "correlations", "total-0", "metric-0"} <= set(run.charts)
    assert len([tag for tag, _ in drawn.tags if tag == "script"]) == 3
    title = drawn.source[drawn.source.index("<title>") + 7 : drawn.source.index("</title>")]
    assert title.endswith("index") and "owned" not in title


@pytest.mark.parametrize(("scheme", "low", "high"), [(LIGHT, 200, 255), (DARK, 0, 70)])
def test_the_page_follows_light_and_dark(run, tmp_path, scheme, low, high):
    from PIL import Image

    opened(run.path, tmp_path / "browser", scheme, f"--screenshot={tmp_path / 'page.png'}")
    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert low <= np.median(pixels) <= high
    blue = (pixels[:, 2].astype(int) - pixels[:, 0] > 80).mean()
    assert blue > 0.005  # the bars have their colour, which is a variable of the style


def test_the_page_can_be_printed(run, tmp_path):
    opened(run.path, tmp_path / "browser", DARK, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF") and len(content) > 50_000


def test_odd_distributions_are_drawn_without_an_error(tmp_path):
    rng = np.random.default_rng(0)
    rows = 400
    columns = {
        "nothing": pa.array([None] * rows, pa.int32()),
        "one": pa.array([7] * rows),
        "infinite": pa.array([np.inf, -np.inf] * (rows // 2)),
        "partly": pa.array(np.where(rng.random(rows) < 0.1, np.inf, rng.normal(size=rows))),
        "huge": pa.array(rng.integers(2**62, 2**64 - 1, rows, dtype=np.uint64)),
        "wide": pa.array([*rng.lognormal(0, 1, rows - 2), 1e-300, 1e300]),
        "denormal": pa.array(rng.random(rows) * 1e-310),
        "far": pa.array(rng.standard_t(1.1, rows)),
        "zeros": pa.array([*np.where(rng.random(rows - 1) < 0.6, 0, rng.integers(1, 99, rows - 1)), 90_000]),
        "narrow": pa.array(1e9 + rng.random(rows) * 1e-3),
        "names": pa.array([f"'{{{{ 7 * 7 }}}}' \"{row}\" \\" for row in range(rows)]),
    }
    metrics = [column(name, nulls="keep") for name in columns]
    index = arrowds.analyze(pa.table(columns), metrics, tmp_path / "index", progress=False)
    arrowds.write_report(index, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert [name for place, name in enumerate(columns) if f"metric-{place}" not in page.charts] == [
        "nothing",
        "denormal",
    ]
    dom = opened(tmp_path / "page.html", tmp_path / "browser", "--dump-dom")
    (tmp_path / "dom.html").write_text(dom, encoding="utf-8")
    assert_drawn(page, tmp_path / "dom.html")


def test_the_smallest_index_is_drawn(tmp_path):
    index = arrowds.analyze(pl.DataFrame({"x": [1]}), column("x"), tmp_path / "index", progress=False)
    arrowds.write_report(index, tmp_path / "page.html")
    dom = opened(tmp_path / "page.html", tmp_path / "browser", "--dump-dom")
    (tmp_path / "dom.html").write_text(dom, encoding="utf-8")
    assert_drawn(Page(tmp_path / "page.html"), tmp_path / "dom.html")
