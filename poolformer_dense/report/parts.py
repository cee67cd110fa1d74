"""What a report is made of; the template says how each part looks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from .gallery import Picture

# What stands where there is no figure.
NONE = '-'
_NUMBER = re.compile(r'-?\d[\d.,e+-]*( ?(%|[a-zA-Z]{1,3}))?')


class Part:
    """A part of a section."""

    @property
    def kind(self) -> str:
        """What the template calls it."""
        return type(self).__name__


@dataclass
class Text(Part):
    """A paragraph; a warning stands out."""

    text: str
    warning: bool = False


@dataclass
class Tiles(Part):
    """Names, values and what explains them."""

    tiles: list[tuple[str, str, str]]


@dataclass
class Cell:
    """A table's cell that is more than text."""

    text: str
    href: str = ''  # where it leads, if anywhere
    share: float | None = None  # from 0 to 1: how far it is coloured, if at all
    hint: str = ''  # what is shown on hovering over it


Row = Sequence[str | Cell]


@dataclass
class Table(Part):
    """A table whose first column names the rows; its caption is unique on the page."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Row]
    folded: bool = False  # shown on demand only
    matrix: bool = False  # its cells are equally wide

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds nothing but numbers, with their units."""
        columns = [[row[i] for row in self.rows] for i in range(len(self.header))]
        return [i > 0 and all(map(_is_number, column)) for i, column in enumerate(columns)]


@dataclass
class Chart(Part):
    """A figure, and the table that says the same."""

    caption: str
    svg: Markup
    table: Table
    wide: bool = False


@dataclass
class Gallery(Part):
    """Pictures by kind, and the colours of classes."""

    pictures: list[Picture]
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Code(Part):
    """A text shown as it is, on demand."""

    caption: str
    text: str


@dataclass
class Section:
    """A section of the page."""

    id: str
    title: str
    parts: Sequence[Part]


def _is_number(cell: str | Cell) -> bool:
    if isinstance(cell, Cell):
        return cell.share is not None
    return cell == NONE or bool(_NUMBER.fullmatch(cell))


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure's text; a dash stands for none."""
    return NONE if value is None or not math.isfinite(value) else f'{value:.{digits}g}'


def duration(seconds: float) -> str:
    """Return a time span in words."""
    minutes = seconds / 60
    if minutes < 1:
        return f'{seconds:.0f} s'
    return f'{minutes:.0f} min' if minutes < 100 else f'{minutes / 60:.1f} h'


def percent(share: float) -> Cell:
    """Return a cell that tells a share in percent and is coloured by how large it is."""
    if not math.isfinite(share):
        return Cell(NONE, share=0.0)
    return Cell(f'{100 * share:.1f}', share=float(share))
