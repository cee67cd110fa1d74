"""What a report is made of; the template says how each part looks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup

from .figures import Series, line_chart
from .gallery import Picture

# What stands where there is no figure.
NONE = '-'
_NUMBER = re.compile(r'-?\d[\d.,e+-]*( ?(%|[a-zA-Z]{1,3}))?')


@dataclass
class Text:
    """A paragraph; a warning stands out."""

    kind: ClassVar[str] = 'text'
    text: str
    warning: bool = False


@dataclass
class Tiles:
    """Names, values and what explains them."""

    kind: ClassVar[str] = 'tiles'
    tiles: list[tuple[str, str, str]]


@dataclass
class Link:
    """A table's cell that leads to another file."""

    text: str
    href: str


@dataclass
class Share:
    """A table's cell that is coloured by a share from 0 to 1."""

    text: str
    share: float
    hint: str = ''


@dataclass
class Table:
    """A table whose first column names the rows.

    Attributes:
        caption: What it shows; no two of a page are alike.
        header: Names of the columns.
        rows: Texts, links or shares.
        folded: Whether it is shown on demand only.
        matrix: Whether its cells are equally wide.
    """

    kind: ClassVar[str] = 'table'
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Link | Share]]
    folded: bool = False
    matrix: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds nothing but numbers, with their units."""
        columns = [[row[i] for row in self.rows] for i in range(len(self.header))]
        return [i > 0 and all(map(_is_number, column)) for i, column in enumerate(columns)]


@dataclass
class Chart:
    """A figure, and the table that says the same."""

    kind: ClassVar[str] = 'chart'
    caption: str
    svg: Markup
    table: Table
    wide: bool = False


@dataclass
class Gallery:
    """Pictures by kind, and the colours of classes."""

    kind: ClassVar[str] = 'gallery'
    pictures: list[Picture]
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Code:
    """A text shown as it is, on demand."""

    kind: ClassVar[str] = 'code'
    caption: str
    text: str


@dataclass
class Section:
    """A section of the page."""

    id: str
    title: str
    parts: list[Any]


def _is_number(cell: str | Link | Share) -> bool:
    if isinstance(cell, str):
        return cell == NONE or bool(_NUMBER.fullmatch(cell))
    return isinstance(cell, Share)


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure's text; a dash stands for none."""
    if value is None or not math.isfinite(value):
        return NONE
    return f'{value:.{digits}g}'


def duration(seconds: float) -> str:
    """Return a time span in words."""
    minutes = seconds / 60
    if minutes < 1:
        return f'{seconds:.0f} s'
    return f'{minutes:.0f} min' if minutes < 100 else f'{minutes / 60:.1f} h'


def sampled(rows: Sequence[Any], count: int = 20) -> list[Any]:
    """Return so many of many rows, evenly spaced, the first and last among them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def share(value: float) -> Share:
    """Return a cell for a share: in percent, coloured by how large it is."""
    known = math.isfinite(value)
    return Share(f'{100 * value:.1f}' if known else NONE, float(value) if known else 0.0)


def chart(title: str, lines: Sequence[Series], x_label: str, y_label: str, **options: Any) -> Chart:
    """Return a chart with its table; lines without a point are left out."""
    lines = [line for line in lines if len(line.x)]
    known = {}
    for line in lines:
        for x, y in zip(line.x, line.y, strict=True):
            known.setdefault(x, {})[line.label] = y
    rows = [
        [number(x), *(number(known[x].get(line.label)) for line in lines)]
        for x in sampled(sorted(known))
    ]
    header = [x_label, *(line.label for line in lines)]
    table = Table(f'{title}: figures', header, rows, folded=True)
    return Chart(
        title, line_chart(lines, f'{title}. {_trend(lines)}', x_label, y_label, **options), table
    )


def _trend(lines: Sequence[Series]) -> str:
    """Say in words where the lines begin and end."""
    told = []
    for line in [line for line in lines if not line.faint][:4]:
        values = [float(v) for v in line.y if math.isfinite(v)]
        if values:
            told.append(f'{line.label}: from {number(values[0], 3)} to {number(values[-1], 3)}')
    return '; '.join(told) or 'No value'
