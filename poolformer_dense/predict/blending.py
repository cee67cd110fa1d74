"""Label maps of tiles, blended where they overlap and finished row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from .tiles import Tile

# (C, h, w): a score of each class for each pixel.
Scores = NDArray[np.floating]


def blend_labels(rows: Iterable[Iterable[tuple[Tile, Scores]]]) -> Iterator[NDArray[np.int64]]:
    """Blend the scores of tiles and yield the labels of the image from top to bottom.

    In an overlap each tile's weight falls towards its edge. What waits for the next row of tiles
    are the scores of the overlap with it: classes x overlap x width of the image, 4 bytes each.

    Args:
        rows: For each row of tiles from the top, its tiles from left to right with their scores,
            which may be used up.

    Yields:
        (h, W): all rows of pixels that no later tile reaches.
    """
    above: Scores | None = None
    for row in rows:
        finished: list[NDArray[np.int64]] = []
        below: list[Scores] = []
        left: Scores | None = None
        column = 0
        for tile, scores in row:
            weights = tile.y.weights()[:, None] * tile.x.weights()
            blended = scores.astype(np.float32, copy=False) * weights
            if left is not None:
                blended[:, :, : left.shape[2]] += left
            own = tile.x.size - tile.x.after
            left = blended[:, :, own:].copy() if tile.x.after else None
            blended = blended[:, :, :own]
            if above is not None:
                blended[:, : above.shape[1]] += above[:, :, column : column + own]
            column += own
            whole = tile.y.size - tile.y.after
            finished.append(torch.from_numpy(blended[:, :whole]).max(0).indices.numpy())
            if tile.y.after:
                below.append(blended[:, whole:].copy())
        above = np.concatenate(below, axis=2) if below else None
        yield np.concatenate(finished, axis=1)


def votes(labels: NDArray[np.int64], classes: int) -> Scores:
    """Return labels (H, W) as scores (C, H, W): 1 for the label, 0 for the others."""
    found: Scores = (labels[None] == np.arange(classes)[:, None, None]).astype(np.float32)
    return found
