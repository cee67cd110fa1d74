"""From an exported file's outputs to detections and masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmcv.ops import batched_nms
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Objects:
    """What is found in one image, by falling score.

    Attributes:
        boxes: (N, 4), x1, y1, x2, y2 in pixels.
        scores: (N,).
        labels: (N,), an index into the classes.
        masks: (N, h, w), probabilities on a grid over the box; (N, H, W) uint8 if they are as
            large as the image; None if there are none.
    """

    boxes: Array
    scores: Array
    labels: Array
    masks: Array | None = None

    def __len__(self) -> int:
        return len(self.scores)


def read_detections(found: Mapping[str, Array], nms: Mapping[str, Any]) -> list[Objects]:
    """Return the detections of each image.

    Args:
        found: An exported file's outputs.
        nms: What the file says of NMS: whether it was applied, its threshold, and how many
            detections an image has.
    """
    detections = []
    for i, scores in enumerate(found['scores']):
        kept = np.flatnonzero(scores > 0)
        if len(kept) and not nms['applied']:
            boxes, values, labels = (
                torch.from_numpy(found[name][i][kept]) for name in ('boxes', 'scores', 'labels')
            )
            _, order = batched_nms(boxes, values, labels, dict(nms['settings']))
            kept = kept[order[: nms['max_per_img']].numpy()]
        rows = {name: values[i][kept] for name, values in found.items() if name in _FIELDS}
        detections.append(Objects(**rows))
    return detections


_FIELDS = ('boxes', 'scores', 'labels', 'masks')


def paste_mask(mask: Array, box: Array, size: tuple[int, int], threshold: float = 0.5) -> Array:
    """Return a mask at the size of its image, (H, W) bool.

    Between the centres of the grid's cells it is interpolated linearly, beyond the outermost it
    falls to 0, as in mmdet.

    Args:
        mask: (h, w), probabilities on a grid over the box.
        box: (4,), x1, y1, x2, y2 in pixels of the image.
        size: H and W.
        threshold: What belongs to the object reaches it.
    """
    whole = np.zeros(size, bool)
    place, probabilities = paste_probabilities(mask, box, size)
    whole[place] = probabilities >= threshold
    return whole


def paste_probabilities(
    mask: Array, box: Array, size: tuple[int, int]
) -> tuple[tuple[slice, slice], Array]:
    """Return the rows and columns that a mask reaches in its image, and its probabilities there.

    Args:
        mask: As for `paste_mask`.
        box: As for `paste_mask`.
        size: H and W.
    """
    x1, y1, x2, y2 = box
    top, rows = _weights(y1, y2, size[0], mask.shape[0])
    left, columns = _weights(x1, x2, size[1], mask.shape[1])
    place = slice(top, top + len(rows)), slice(left, left + len(columns))
    return place, rows @ mask.astype(np.float32) @ columns.T


def _weights(start: float, end: float, pixels: int, bins: int) -> tuple[int, Array]:
    """Return the first pixel that bins between two ends reach, and what each adds to each pixel."""
    step = max(end - start, 1e-6) / bins
    first = int(np.clip(np.floor(start - step), 0, pixels))
    last = int(np.clip(np.ceil(end + step), first, pixels))
    at = (np.arange(first, last, dtype=np.float32) + 0.5 - start) / step - 0.5
    away = np.abs(at[:, None] - np.arange(bins, dtype=np.float32))
    return first, np.maximum(1 - away, 0)
