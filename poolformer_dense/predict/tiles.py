"""How an image is cut into tiles, and which tile is responsible for which pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

# The least part of a tile that neighbours have in common, if users don't say.
OVERLAP = 0.25


class Span(NamedTuple):
    """What a tile covers along one axis, in pixels.

    Attributes:
        start: Its first pixel.
        stop: The one behind its last.
        first: Where its share begins: the middle of its overlap with the tile before.
        last: Where its share ends.
        before: Pixels that it has in common with the tile before, 0 at the image's border.
        after: Those with the tile behind.
    """

    start: int
    stop: int
    first: float
    last: float
    before: int
    after: int

    @property
    def size(self) -> int:
        """Its pixels."""
        return self.stop - self.start

    def weights(self) -> NDArray[np.float32]:
        """Return a weight for each pixel: 1, but rising and falling in the overlaps."""
        position = np.arange(self.size, dtype=np.float32) + 0.5
        rising = position / self.before if self.before else np.ones_like(position)
        falling = (self.size - position) / self.after if self.after else np.ones_like(position)
        lower: NDArray[np.float32] = np.minimum(rising, falling)
        return lower.clip(max=1)


class Tile(NamedTuple):
    """A tile: columns and rows."""

    x: Span
    y: Span


@dataclass(frozen=True)
class Tiling:
    """Squares that overlap.

    Attributes:
        size: Their sides in pixels.
        overlap: The least part of a side that neighbours have in common, from 0 to below 1.

    Raises:
        UserError: Tiles of this kind can't cover an image.
    """

    size: int
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or int(self.size) != self.size or self.size < 1:
            raise UserError(f'tile={self.size!r}: it is the side of a tile in pixels, from 1')
        if not 0 <= self.overlap < 1:
            raise UserError(f'overlap={self.overlap}: it is a part of a tile, from 0 to below 1')

    def spans(self, length: int) -> list[Span]:
        """Cut an axis of an image; tiles are spread evenly, and no longer than the image."""
        size = min(self.size, length)
        step = max(size - math.ceil(self.size * self.overlap), 1)
        count = math.ceil((length - size) / step) + 1
        starts = [round(i * (length - size) / max(count - 1, 1)) for i in range(count)]
        middles = [(a + size + b) / 2 for a, b in itertools.pairwise(starts)]
        borders = [0.0, *middles, float(length)]
        common = [0, *(a + size - b for a, b in itertools.pairwise(starts)), 0]
        return [
            Span(start, start + size, borders[i], borders[i + 1], common[i], common[i + 1])
            for i, start in enumerate(starts)
        ]

    def rows(self, height: int, width: int) -> Iterator[list[Tile]]:
        """Yield the rows of tiles of an image, each from left to right."""
        columns = self.spans(width)
        return ([Tile(x, y) for x in columns] for y in self.spans(height))
