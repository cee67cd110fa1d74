"""What tiles predict, joined where they overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from .masks import RLE, Masks, encode_placed
from .network import Instances
from .tiles import Tile

# Two boxes of one class are of one object from this intersection over union on; a box at a seam
# is a fragment of another if so much of it lies within that one.
_SAME = 0.5
_WITHIN = 0.7
# Boxes that end so many pixels from a tile's edge are cut by it.
_TOUCHING = 2.0


class _Placed(NamedTuple):
    """A tile's objects in pixels of the image.

    Attributes:
        tile: Where they were found.
        found: Boxes, scores, labels; no masks.
        codes: Their masks, or None.
        cut: (N,), whether a seam may cut it.
        own: (N,), whether its centre is in the tile's share.
    """

    tile: Tile
    found: Instances
    codes: list[RLE] | None
    cut: NDArray[np.bool_]
    own: NDArray[np.bool_]


def join_instances(
    tiles: Iterable[tuple[Tile, Instances]], size: tuple[int, int], score_thr: float = 0.0
) -> Instances:
    """Join the objects that tiles found, class by class.

    Each point of the image is one tile's share. What this tile finds around the point counts; the
    same object (by intersection over union) and its fragments in the other tiles are dropped. An
    object that is no larger than the overlap is whole in the tile of its centre, so a detector that
    does not look at the surroundings finds the same as in the whole image. Fragments of a larger
    one that agree where their tiles overlap become one. Objects of one tile are never compared.

    Args:
        tiles: Tiles with their objects, in pixels of the tile.
        size: Height and width of the image.
        score_thr: Objects with this score or less are left out at once.

    Returns:
        Objects in pixels of the image, masks run-length encoded, the surest first.
    """
    placed = [_place(tile, found.above(score_thr), size) for tile, found in tiles]
    masked = any(each.codes is not None for each in placed)
    placed = [each for each in placed if len(each.found.scores)]
    if not placed:
        masks = Masks([], size) if masked else None
        none = np.zeros(0, np.float32)
        return Instances(none.reshape(0, 4), none, none.astype(np.int64), masks)
    kept = _without_doubles(placed)
    groups = _fragments(placed, kept)
    return _merged(placed, groups, size)


def _place(tile: Tile, found: Instances, size: tuple[int, int]) -> _Placed:
    offset = np.array([tile.x.start, tile.y.start] * 2, np.float32)
    boxes = found.boxes + offset
    codes = None
    if found.masks is not None:
        codes = [encode_placed(m, (tile.y.start, tile.x.start), size) for m in found.masks]
    cut = np.zeros(len(boxes), bool)
    own = np.ones(len(boxes), bool)
    for axis, span in enumerate(tile):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        centre = (low + high) / 2
        own &= (centre >= span.first) & ((centre < span.last) | (span.after == 0))
    for axis, span in enumerate(tile):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        for common, reached in (
            (span.before, low <= span.start + _TOUCHING),
            (span.after, high >= span.stop - _TOUCHING),
        ):
            if common:
                # The own share begins half an overlap from the edge.
                cut |= reached & (~own | (high - low >= common - _TOUCHING))
    return _Placed(tile, found._replace(boxes=boxes, masks=None), codes, cut, own)


def _without_doubles(placed: Sequence[_Placed]) -> list[NDArray[np.bool_]]:
    """Say of each tile's objects which stay, the whole ones and those of the own share first."""
    doubles: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for a, b in _neighbours(placed):
        for one, other in ((a, b), (b, a)):
            same, within = _overlaps(placed[one].found, placed[other].found)
            cut, whole = placed[one].cut[:, None], ~placed[other].cut
            hits = ((same >= _SAME) & ~(cut & ~whole)) | (cut & whole & (within >= _WITHIN))
            for i, j in zip(*np.nonzero(hits), strict=True):
                doubles.setdefault((one, int(i)), []).append((other, int(j)))
    order = sorted(
        (bool(each.cut[i]), not each.own[i], -float(each.found.scores[i]), number, i)
        for number, each in enumerate(placed)
        for i in range(len(each.cut))
    )
    kept: list[NDArray[np.bool_]] = [np.zeros(len(each.cut), bool) for each in placed]
    for *_, number, i in order:
        kept[number][i] = not any(kept[t][j] for t, j in doubles.get((number, i), ()))
    return kept


def _fragments(
    placed: Sequence[_Placed], kept: Sequence[NDArray[np.bool_]]
) -> list[list[tuple[int, int]]]:
    """Group the objects that stay: fragments of one, and all others alone."""
    parent = {(t, int(i)): (t, int(i)) for t, each in enumerate(kept) for i in np.nonzero(each)[0]}

    def root(key: tuple[int, int]) -> tuple[int, int]:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for a, b in _neighbours(placed):
        one, other = placed[a], placed[b]
        first = np.nonzero(kept[a] & one.cut)[0]
        second = np.nonzero(kept[b] & other.cut)[0]
        if not len(first) or not len(second):
            continue
        x, y = (
            (max(p.start, q.start), min(p.stop, q.stop))
            for p, q in zip(one.tile, other.tile, strict=True)
        )
        low, high = np.array([x[0], y[0]] * 2), np.array([x[1], y[1]] * 2)
        these, those = (
            Instances(each.boxes[chosen], each.scores[chosen], each.labels[chosen])
            for each, chosen in ((one.found, first), (other.found, second))
        )
        seen = (each._replace(boxes=np.clip(each.boxes, low, high)) for each in (these, those))
        alike, _ = _overlaps(*seen)
        within = np.maximum(_overlaps(these, those)[1], _overlaps(those, these)[1].T)
        joined = (alike >= _SAME) | (within >= _WITHIN)
        for i, j in zip(*np.nonzero(joined), strict=True):
            parent[root((a, int(first[i])))] = root((b, int(second[j])))
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for key in parent:
        groups.setdefault(root(key), []).append(key)
    return list(groups.values())


def _merged(
    placed: Sequence[_Placed], groups: Sequence[list[tuple[int, int]]], size: tuple[int, int]
) -> Instances:
    boxes, scores, labels = [], [], []
    codes: list[RLE] = []
    for group in groups:
        parts = np.stack([placed[t].found.boxes[i] for t, i in group])
        boxes.append(np.concatenate([parts[:, :2].min(0), parts[:, 2:].max(0)]))
        best = max(group, key=lambda key: placed[key[0]].found.scores[key[1]])
        scores.append(placed[best[0]].found.scores[best[1]])
        labels.append(placed[best[0]].found.labels[best[1]])
        found = [code[i] for t, i in group if (code := placed[t].codes) is not None]
        if found:
            codes.append(found[0] if len(found) == 1 else pycocotools.mask.merge(found))
    order = np.argsort(-np.array(scores), kind='stable')
    masks = None
    if placed[0].codes is not None:
        masks = Masks([codes[i] for i in order], size)
    return Instances(
        np.stack(boxes).astype(np.float32)[order],
        np.array(scores, np.float32)[order],
        np.array(labels, np.int64)[order],
        masks,
    )


def _neighbours(placed: Sequence[_Placed]) -> Iterator[tuple[int, int]]:
    """Yield pairs of tiles that overlap; tiles come row by row."""
    for a, one in enumerate(placed):
        for b in range(a + 1, len(placed)):
            other = placed[b].tile
            if other.y.start >= one.tile.y.stop:
                break
            if other.x.start < one.tile.x.stop and one.tile.x.start < other.x.stop:
                yield a, b


def _overlaps(
    one: Instances, other: Instances
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return (N, M): intersection over union, and over the first's area; 0 of unlike classes."""
    a, b = one.boxes[:, None].astype(np.float64), other.boxes[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = sides.clip(0).prod(-1) * (one.labels[:, None] == other.labels[None])
    area, others = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    tiny = np.finfo(np.float64).tiny
    return common / np.maximum(area + others - common, tiny), common / np.maximum(area, tiny)
