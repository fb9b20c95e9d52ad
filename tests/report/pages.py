"""A report as a reader of the file sees it: its tables and charts, taken from the HTML by the standard library."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl


@dataclass
class Page(HTMLParser):
    """The content of a page.

    ``tables`` are lists of rows of cells, each with the id of its section and the heading before it; ``charts`` the
    specifications by their id; ``text`` all that is shown; ``tags`` all tags with their attributes.
    """

    path: Path
    tables: list[tuple[str, str, list[list[str]]]] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    scripts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._section = ""
        self._heading = ""
        self.source = self.path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.charts: dict[str, Any] = json.loads(self.scripts[0], parse_constant=lambda name: [][name])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs).get("id") or ""
        elif tag == "table":
            self.tables.append((self._section, self._heading, []))
        elif tag == "tr":
            self.tables[-1][2].append([])
        elif tag in ("td", "th"):
            self.tables[-1][2][-1].append("")
        elif tag == "script":
            self.scripts.append("")
        elif tag in ("h2", "h3", "h4"):
            self._heading = ""
        if tag == "p" and dict(attrs).get("class") == "note" and "noscript" not in self._open:
            self.notes.append("")
            self._open[-1] = "note"
        if tag in ("meta", "path", "br"):
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
            return
        if "style" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][2][-1][-1] += data.strip("\n")
        if {"h2", "h3", "h4"} & set(self._open):
            self._heading += data
        if "note" in self._open:
            self.notes[-1] += data

    def table(self, section: str, heading: str = "") -> list[dict[str, str]]:
        """The rows of a table, by the titles of its columns."""
        [rows] = [rows for place, title, rows in self.tables if place == section and heading in title][:1]
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]

    def pairs(self, section: str, heading: str = "") -> dict[str, str]:
        """A table of two columns without a head."""
        [rows] = [rows for place, title, rows in self.tables if place == section and heading in title][:1]
        return dict(rows)

    def data(self, chart: str, layer: int | None = None) -> pl.DataFrame:
        """The data of a chart, or of one of its layers."""
        spec = self.charts[chart]
        part = spec if layer is None else spec["layer"][layer]
        return pl.DataFrame(spec["datasets"][part.get("data", spec.get("data"))["name"]])


def number(text: str) -> float:
    """The number that a cell shows."""
    return float({"true": "1", "false": "0"}.get(text, text.replace(",", "")))
