"""Masks of an image's objects, dense or run-length encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

# COCO's: ``size`` (height, width) and ``counts``, compressed bytes.
RLE = dict[str, Any]


class Masks(Sequence[NDArray[np.bool_]]):
    """Masks, each (H, W), bool; ``numpy.asarray`` makes them one array (N, H, W).

    They stay as they come: those of an image too large for dense ones are decoded one at a time.

    Args:
        masks: (N, H, W), bool, or N run-length encoded ones.
        size: Height and width of the image.
    """

    def __init__(self, masks: NDArray[np.bool_] | Sequence[RLE], size: tuple[int, int]) -> None:
        self._masks = masks
        self.size = size

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, index: Any) -> Any:
        """Return a mask for a number, and `Masks` for a slice, numbers or a condition."""
        if isinstance(index, (int, np.integer)):
            mask = self._masks[int(index)]
            return mask if isinstance(mask, np.ndarray) else _decode(mask)
        if isinstance(self._masks, np.ndarray):
            return Masks(self._masks[index], self.size)
        chosen = np.arange(len(self))[index]
        return Masks([self._masks[i] for i in chosen], self.size)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        dense = self._masks
        if not isinstance(dense, np.ndarray):
            dense = np.stack(list(self)) if len(self) else np.zeros((0, *self.size), bool)
        return np.array(dense, dtype=dtype, copy=bool(copy)) if copy else np.asarray(dense, dtype)

    def encode(self) -> list[RLE]:
        """Return the masks run-length encoded, as pycocotools takes them."""
        if not isinstance(self._masks, np.ndarray):
            return list(self._masks)
        return [encode_mask(mask) for mask in self._masks]


def encode_mask(mask: NDArray[np.bool_]) -> RLE:
    """Return a mask (H, W) run-length encoded."""
    code: RLE = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return code


def encode_placed(mask: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]) -> RLE:
    """Return a mask within a larger image run-length encoded, without the dense larger one.

    Args:
        mask: (h, w).
        corner: Row and column of its first pixel in the image.
        size: Height and width of the image.
    """
    (top, left), (height, width) = corner, size
    # Runs go down the columns; zeros around end them at the mask's border.
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    columns[:, 1:-1] = mask.T
    column, row = np.nonzero(np.diff(columns, axis=1))
    ends = (left + column).astype(np.int64) * height + top + row
    if mask.shape[0] == height:
        # A run that reaches the last row goes on in the next column.
        again = np.nonzero(np.diff(ends) == 0)[0]
        ends = np.delete(ends, np.concatenate([again, again + 1]))
    last = [] if len(ends) and ends[-1] == height * width else [height * width]
    counts = np.diff([0, *ends, *last])
    code: RLE = pycocotools.mask.frPyObjects(
        dict(size=[height, width], counts=counts.tolist()), height, width
    )
    return code


def _decode(code: RLE) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = pycocotools.mask.decode(code).astype(bool)
    return mask
