"""Predicting an image tile by tile; what is in memory at once is a row of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .batches import in_batches
from .blending import Scores, blend_labels, votes
from .media import Frame, Image
from .network import Instances, Network, Prepared, Raw
from .seams import join_instances
from .tiles import Tile, Tiling

# Takes the number of tiles that are done, and of all.
OnTile = Callable[[int, int], None]


@runtime_checkable
class ScoringNetwork(Protocol):
    """A network that also says how sure it is of each class of each pixel."""

    def scores(self, batch: Sequence[Prepared], classes: int) -> list[Scores]:
        """Score the pixels of images of one size for each class, (C, H, W)."""


@dataclass(frozen=True)
class TilePredictor:
    """A network that is given tiles.

    Attributes:
        network: Predicts a tile.
        tiling: How images are cut.
        classes: How many there are.
        batch_size: TilePredictor of one forward pass.
        on_tile: Told after each tile.
    """

    network: Network
    tiling: Tiling
    classes: int
    batch_size: int = 1
    on_tile: OnTile | None = None

    def detect(self, image: Image, score_thr: float) -> Instances:
        """Return the objects of an image, joined; see `join_instances`."""
        height, width = image.shape[:2]
        rows = list(self.tiling.rows(height, width))
        found = self._forward(self.network, image, rows)
        tiles = ((tile, cast(Instances, raw)) for row in rows for tile, raw in _zip(row, found))
        return join_instances(tiles, (height, width), score_thr)

    def label(self, image: Image) -> Iterator[NDArray[np.int64]]:
        """Yield the labels of an image from top to bottom, blended; see `blend_labels`."""
        rows = list(self.tiling.rows(*image.shape[:2]))
        network = _Scoring(self.network, self.classes)
        found = self._forward(cast(Network, network), image, rows)
        return blend_labels(_zip(row, cast('Iterator[Scores]', found)) for row in rows)

    def _forward(
        self, network: Network, image: Image, rows: Sequence[Sequence[Tile]]
    ) -> Iterator[Raw]:
        """Predict the tiles in their order; images that are read by rows are so once."""
        total = sum(len(row) for row in rows)

        def frames() -> Iterator[Frame]:
            for row in rows:
                y = row[0].y
                band = image[y.start : y.stop]
                for tile in row:
                    yield Frame(np.ascontiguousarray(band[:, tile.x.start : tile.x.stop]))

        found = in_batches(network, frames(), self.batch_size)
        for done, (_, raw) in enumerate(found, start=1):
            if self.on_tile is not None:
                self.on_tile(done, total)
            yield raw


@dataclass(frozen=True)
class _Scoring:
    """Gives the scores of a segmentor's classes; where it has none, a vote for its labels."""

    network: Network
    classes: int

    def prepare(self, image: Image) -> Prepared:
        return self.network.prepare(image)

    def forward(self, batch: Sequence[Prepared]) -> list[Scores]:
        if isinstance(self.network, ScoringNetwork):
            return self.network.scores(batch, self.classes)
        labels = cast('list[NDArray[np.int64]]', self.network.forward(batch))
        return [votes(each, self.classes) for each in labels]


def _zip(row: Sequence[Tile], found: Iterator[Any]) -> Iterable[tuple[Tile, Any]]:
    return ((tile, next(found)) for tile in row)
