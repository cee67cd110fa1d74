"""Charts as SVG for a page that is light or dark: their colours are the page's variables."""

from __future__ import annotations

import io
import math
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..terminal import printable, printable_lines
from .parts import Chart, Table, number

# What is drawn in these colours gets the page's variables in their place.
_INK, _GRID = '#000101', '#000102'
_LINES = [f'#0002{i:02d}' for i in range(8)]
_VARIABLES = {_INK: 'var(--ink)', _GRID: 'var(--grid)'} | {
    colour: f'var(--line-{i})' for i, colour in enumerate(_LINES)
}
_DASHES = ['-', (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5))]
_SETTINGS: dict[Any, Any] = {
    'svg.hashsalt': 'report',  # the same figure gives the same text
    'svg.fonttype': 'none',  # text stays text: the page's font, and every script it has
    'text.parse_math': False,
    'font.family': 'DejaVu Sans',  # for widths alone
    'font.size': 9.5,
    # Lines are told apart by colour and dashes.
    'axes.prop_cycle': cycler(color=_LINES, linestyle=[_DASHES[i // 2] for i in range(8)]),
    'text.color': _INK,
    'axes.labelcolor': _INK,
    'axes.edgecolor': _GRID,
    'xtick.color': _INK,
    'ytick.color': _INK,
    'grid.color': _GRID,
    'grid.linewidth': 0.6,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.unicode_minus': False,
}
# More points than a chart has pixels are thinned out.
_POINTS = 1000


@dataclass
class Series:
    """A line of a chart; values that are not finite are gaps."""

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    faint: bool = False


def chart(
    title: str,
    lines: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    shares: bool = False,
    table: Table | None = None,
) -> Chart:
    """Return a chart of the lines that have a point, and its table.

    Args:
        title: What it shows; unique on the page.
        lines: The lines; those that are ``faint`` have no entry in the legend.
        x_label: What the horizontal axis shows.
        y_label: What the vertical axis shows.
        shares: Whether both axes go from 0 to 100 percent; else horizontal places are whole
            numbers.
        table: By default the figures at 20 places at most.
    """
    lines = [line for line in lines if len(line.x)]
    named = [line for line in lines if not line.faint]

    def draw(axes: Axes) -> None:
        for line in lines:
            step = max(1, math.ceil(len(line.x) / _POINTS))
            x = np.asarray(line.x, dtype=float)[::step]
            y = np.asarray(line.y, dtype=float)[::step]
            y = np.where(np.isfinite(y), y, np.nan)
            if line.faint:
                axes.plot(
                    x, y, color=_LINES[-1], linestyle='-', linewidth=0.5, alpha=0.45, zorder=1
                )
                continue
            # A point that has gaps or ends on both its sides would not show as a line.
            known = np.concatenate([[False], np.isfinite(y), [False]])
            alone = known[1:-1] & ~known[:-2] & ~known[2:]
            marks = np.flatnonzero(alone if len(x) > 20 else known[1:-1]).tolist()
            axes.plot(
                x, y, linewidth=1.5, label=line.label,
                marker='o' if marks else None, markersize=3.5, markevery=marks or None,
            )  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True)
        if shares:
            axes.set_ylim(0, 102)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        if len(named) > 1:
            axes.legend(
                loc='lower left', bbox_to_anchor=(0, 1.01), frameon=False,
                ncols=2 if max(len(line.label) for line in named) < 30 else 1,
                handlelength=2.6, fontsize=9, borderaxespad=0,
            )  # fmt: skip

    told = []
    for line in named[:4]:
        values = [float(v) for v in line.y if math.isfinite(v)]
        if values:
            told.append(f'{line.label}: from {number(values[0], 3)} to {number(values[-1], 3)}')
    height = 2.7 + 0.19 * math.ceil(len(named) / 2) * (len(lines) > 1)  # with the legend
    svg = _svg(draw, f'{title}. {"; ".join(told) or "No value"}', (4.6, height))
    return Chart(title, svg, table or _table(f'{title}: figures', x_label, lines))


def _table(caption: str, x_label: str, lines: Sequence[Series]) -> Table:
    known: dict[float, dict[str, float]] = {}
    for line in lines:
        for x, y in zip(line.x, line.y, strict=True):
            known.setdefault(x, {})[line.label] = y
    places = sorted(known)
    if len(places) > 20:  # evenly spaced, the first and the last among them
        places = [places[round(i * (len(places) - 1) / 19)] for i in range(20)]
    rows = [[number(x), *(number(known[x].get(line.label)) for line in lines)] for x in places]
    return Table(caption, [x_label, *(line.label for line in lines)], rows, folded=True)


def heat_map(shares: np.ndarray, names: Sequence[str], title: str) -> Markup:
    """Draw a confusion matrix whose cells are opaque by their share, for a container that scrolls.

    Args:
        shares: Shares of their row from 0 to 1, (K, K).
        names: The K classes.
        title: What a screen reader says.
    """
    names = [name if len(name) <= 30 else f'{name[:29]}…' for name in names]
    size = 0.15 * len(names)  # inches: 14 pixels a cell, so that the names can be read
    margin = 0.3 + 0.062 * max(map(len, names))
    total = size + margin

    def draw(axes: Axes) -> None:
        axes.set_position((margin / total, 0, size / total, 1 - margin / total))
        # A colour for light and dark pages: the background shows through small shares.
        cells = np.zeros((*shares.shape, 4))
        cells[..., :3] = 0.2, 0.5, 0.9
        cells[..., 3] = np.where(shares > 0, 0.08 + 0.92 * shares, 0)
        edges = np.arange(len(names) + 1)
        axes.imshow(
            cells, extent=(0, len(names), len(names), 0), aspect='auto', interpolation='nearest'
        )
        axes.set(xlim=(0, len(names)), ylim=(len(names), 0))
        axes.set_xticks(edges[:-1] + 0.5, names, rotation=90, fontsize=7.5)
        axes.set_yticks(edges[:-1] + 0.5, names, fontsize=7.5)
        axes.set_xticks(edges[::5], minor=True)
        axes.set_yticks(edges[::5], minor=True)
        axes.grid(True, which='minor')
        axes.tick_params(length=0, which='both', labeltop=True, labelbottom=False)

    return _svg(draw, title, (total, total), fixed=True)


def _svg(
    draw: Callable[[Axes], Any], title: str, size: tuple[float, float], fixed: bool = False
) -> Markup:
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Its own font lacks many scripts; the page's fonts draw them.
        warnings.filterwarnings('ignore', message='.*[Gg]lyph')
        figure = Figure(figsize=size, layout=None if fixed else 'constrained')
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(
            buffer, format='svg', transparent=True, metadata={'Date': None, 'Creator': None}
        )
    title, text = printable(title), printable_lines(buffer.getvalue())
    text = text[text.index('<svg') :]
    text = re.sub(r'<(metadata|style)\b.*?</\1>', '', text, flags=re.DOTALL)
    # Identifiers are of one figure; a page has several.
    prefix = f'f{zlib.crc32(f"{title}{text}".encode()):x}-'
    text = re.sub(r'\b(id="|href="#|url\(#)', rf'\1{prefix}', text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r'font-family: [^;]*;', '', text)
    width = f'style="width: {size[0] * 96:.0f}px"' if fixed else ''
    view = f'viewBox="0 0 {size[0] * 72:.6g} {size[1] * 72:.6g}"'
    head = f'<svg class="chart" role="img" aria-label="{escape(title)}" {view} {width}>'
    return Markup(head + text[text.index('>') + 1 :])
