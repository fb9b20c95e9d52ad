"""The documentation site: it builds, all pages are in it, links lead somewhere, all public names have an entry."""

from __future__ import annotations

import html
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urljoin

import markdown
import pytest
import yaml
from markdown_it import MarkdownIt

import arrowds
from arrowds import duplicates, errors, loading, metrics, report, sources
from arrowds.integrations import deepspeed
from arrowds.stats import aio, profiler

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SETTINGS = yaml.safe_load((ROOT / ".mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
ON_GITHUB = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; warnings of the build are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ROOT / ".mkdocs.yml", "-d", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[str, list[tuple[str, dict[str, str | None]]]]:
    """The tags of every built page, by its path."""
    return {
        path.relative_to(site).as_posix(): Tags(path.read_text(encoding="utf-8")).tags for path in site.rglob("*.html")
    }


def pages_of(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(part)


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(pages_of(SETTINGS["nav"])) == PAGES


def test_links_of_the_site_lead_to_a_page_and_a_place_in_it(site: Path, built: dict) -> None:
    places = {page: {attributes.get("id") for _, attributes in tags} for page, tags in built.items()}
    checked, broken = 0, []
    for page, tags in built.items():
        for address in (attributes.get("href") or attributes.get("src") for _, attributes in tags):
            if address is None or page == "404.html" or re.match(r"[a-z]+:", address):
                continue
            path, _, place = unquote(urljoin(page, address)).partition("#")
            path = page if address.startswith("#") else path
            file = site / path
            exists = (file / "index.html").is_file() if file.is_dir() else file.is_file()
            if not exists or (place and path in places and place not in places[path]):
                broken.append(f"{page}: {address}")
            checked += 1
    assert not broken and checked > 1000


def test_pages_ask_no_other_host_for_anything(site: Path, built: dict) -> None:
    asking = ("script", "link", "img", "iframe", "source", "video", "audio", "form", "object", "embed")
    asked = [
        (page, value)
        for page, tags in built.items()
        for tag, attributes in tags
        if tag in asking
        for name in ("src", "href", "srcset", "action", "data")
        if re.match(r"(https?:)?//", value := attributes.get(name) or "")
    ]
    assert asked == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style
    # The theme's script fetches these only for pages that have diagrams, or where a repository is named.
    assert not any("mermaid" in str(attributes.get("class")) for tags in built.values() for _, attributes in tags)
    assert "repo_url" not in SETTINGS


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    counts: Counter[str] = Counter()
    found = set()
    for title in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor)
        counts[anchor] += 1
    return found


@pytest.mark.parametrize("page", ON_GITHUB, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_on_github_too(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for address in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", address):
            path, _, place = address.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), address
            assert not place or place in anchors(file), address


@cache
def elements(text: str) -> tuple[Counter[str], Counter[str]]:
    """How many elements of each kind a text has on GitHub and on the site."""
    kinds = ("ul", "ol", "li", "table", "tr", "td", "th", "pre", "h1", "h2", "h3", "img", "blockquote")
    site = markdown.Markdown(extensions=["tables", "attr_list", "md_in_html", "pymdownx.superfences"]).convert(text)
    github = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text)
    counts = [Counter(tag for tag, _ in Tags(page).tags if tag in kinds) for page in (github, site)]
    return counts[0], counts[1]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_same_lists_and_tables_on_github_and_on_the_site(page: str) -> None:
    github, site = elements((DOCS / page).read_text(encoding="utf-8"))
    assert github == site and site["h1"] == 1


def defined_in(module: ModuleType) -> list[str]:
    """The public functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


def public_names() -> Iterator[str]:
    for module in (
        arrowds,
        metrics,
        metrics.text,
        metrics.models,
        sources,
        loading,
        duplicates,
        report,
        deepspeed,
        aio,
        profiler,
    ):
        yield from (f"{module.__name__}.{name}" for name in module.__all__)
    for module in (errors, arrowds.cost):
        yield from (f"{module.__name__}.{name}" for name in defined_in(module))


def test_every_public_name_has_an_entry_in_the_reference(built: dict) -> None:
    entries = {
        str(attributes.get("id"))
        for page, tags in built.items()
        if page.startswith("reference/")
        for _, attributes in tags
    }
    names = [name for name in public_names() if not inspect.ismodule(resolved(name))]
    assert len(names) > 100
    missing = [name for name in names if name not in entries]
    assert [name for name in missing if not has_a_shorter_name(name, entries)] == []
    modules = [name for name in public_names() if inspect.ismodule(resolved(name))]
    assert [name for name in modules if not any(entry.startswith(f"{name}.") for entry in entries)] == []


def has_a_shorter_name(name: str, entries: set[str]) -> bool:
    """Whether a name of a subpackage has its entry as a name of arrowds itself."""
    short = f"arrowds.{name.rpartition('.')[2]}"
    return short in entries and resolved(short) is resolved(name)


def resolved(name: str) -> object:
    value: object = arrowds
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def test_no_role_of_sphinx_is_left_in_the_reference(site: Path) -> None:
    for page in (site / "reference").glob("*.html"):
        assert not re.search(r":(attr|class|func|meth|mod|data|exc):", page.read_text(encoding="utf-8")), page.name


def test_the_page_of_examples_has_the_code_of_all_programs(site: Path) -> None:
    page = html.unescape(re.sub(r"<[^>]+>", "", (site / "examples.html").read_text(encoding="utf-8")))
    for program in (DOCS / "examples").glob("*.py"):
        assert program.read_text(encoding="utf-8").strip() in page, program.name


def test_options_that_are_passed_on_have_their_types_and_defaults_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "curriculum.html").read_text(encoding="utf-8")
    code = html.unescape(re.sub(r"<[^>]+>", "", page))
    for option in ("seed: int = 1234", 'order: str = "stateless"', "drop_last: bool = True"):
        assert code.count(f"    {option},\n") == 2, option  # of both samplers
    assert "= ...,\n" not in code


def test_every_entry_of_the_reference_says_something(site: Path) -> None:
    silent, entries = [], 0
    for page in (site / "reference").glob("*.html"):
        parts = re.split(r'<h\d id="(arrowds\.[^"]+)"', page.read_text(encoding="utf-8"))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            entries += 1
            if not re.search(r"<div class=\"doc doc-contents.*?<p>", text, flags=re.DOTALL):
                silent.append(name)
    assert silent == [] and entries > 400
