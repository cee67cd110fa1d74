"""An export beside the model that it was made from: raw outputs, detections, label maps."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from ..runtimes.outputs import Array, Objects, paste_probabilities, read_detections
from ..runtimes.runtime import Run
from .base import Graph, maps_by_level
from .graphs import LabelGraph, describe_nms
from .ties import BOX_ROUNDING, MASK_ROUNDING, possible_detections, take
from .two_stage import TwoStageGraph

# What an export must reach in float32.
MAX_RAW_ERROR = 1e-4
MIN_IOU = 0.999
MIN_MASK_IOU = 0.99
MIN_SAME_LABELS = 0.9999
# With a second stage, which looks at regions by boxes that are rounded.
MIN_IOU_FROM_PROPOSALS = 0.99
_UNDECIDED = 2


@dataclass
class Parity:
    """How far an export is from its model.

    Attributes:
        errors: By raw output, the largest difference as a part of that output's largest magnitude.
        same: Detections with a partner of the same label, an IoU >= 0.999 (0.99 with two stages),
            and masks with one >= 0.99, but for pixels that rounding decides on; or pixels of the
            same label.
        ties: Of each detection without a partner, of either side, that rounding decides on, why
            (`poolformer_dense.exporting.ties`). They count neither as same nor in the total.
        total: Detections of the side that has more, or pixels.
        enough: The part that must be the same.
        sizes: (B, H, W) of what was compared.
    """

    errors: dict[str, float] = field(default_factory=dict)
    same: int = 0
    ties: list[str] = field(default_factory=list)
    total: int = 0
    enough: float = 1.0
    sizes: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        """The part that is the same, 1 if there was nothing on either side."""
        return self.same / self.total if self.total else 1.0

    @property
    def worst(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values(), default=0.0)

    @property
    def holds(self) -> bool:
        """Whether something was compared, and the export reaches what it must."""
        compared = bool(self.total or self.errors)
        return compared and self.worst <= MAX_RAW_ERROR and self.agreement >= self.enough


def measure_parity(graph: Graph, reference: Any, run: Run, batches: Iterable[Array]) -> Parity:
    """Compare an export with a model on images.

    Args:
        graph: What was exported; it tells which outputs there are.
        reference: The model; it computes with its usual backend, and with mmdet's or mmseg's own
            post-processing.
        run: Runs the export; returns its outputs, with the raw ones or without.
        batches: Images (B, 3, H, W), uint8, RGB.
    """
    segments = isinstance(graph, LabelGraph)
    parity = Parity(enough=MIN_SAME_LABELS if segments else 1.0)
    min_iou = MIN_IOU
    if isinstance(graph, TwoStageGraph):
        min_iou = MIN_IOU_FROM_PROPOSALS
    for images in batches:
        found = run(images)
        with torch.no_grad():
            raw, results = _reference(graph, reference, torch.from_numpy(images))
        for name in [name for name in raw if name in found]:
            expected = raw[name].double().numpy()
            error = np.abs(expected - found[name]).max() / max(np.abs(expected).max(), 1e-12)
            error = float(np.nan_to_num(error, nan=np.inf))
            parity.errors[name] = max(parity.errors.get(name, 0.0), error)
        if segments:
            parity.same += int((results.numpy() == found['labels']).sum())
            parity.total += results.numel()
        else:
            own = read_detections(found, describe_nms(graph))
            if getattr(graph, 'paste', False):
                own = _with_undecided_pixels(own, graph, images)
            for i, (each, expected) in enumerate(zip(own, results, strict=True)):
                each = with_whole_masks(each, images.shape[2:], _mask_threshold(graph))
                pairs = find_pairs(expected, each, min_iou)
                parity.same += len(pairs)
                parity.total += len(pairs)
                alone = [
                    _without(expected, [i for i, _ in pairs]),
                    _without(each, [j for _, j in pairs]),
                ]
                if any(map(len, alone)):
                    ties, lost = find_ties(graph, images[i : i + 1], alone, min_iou)
                    parity.ties += ties
                    parity.total += lost
        batch, _, height, width = images.shape
        parity.sizes.append((batch, height, width))
    return parity


def _reference(graph: Graph, model: Any, images: Tensor) -> tuple[dict[str, Tensor], Any]:
    """The model's raw outputs by the graph's names, and its detections or its label maps."""
    # The pipelines load BGR, and the preprocessor turns it if the model was trained on RGB.
    bgr = list(images.flip(1))
    x = model.data_preprocessor(dict(inputs=bgr, data_samples=None))['inputs']
    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    features = model.extract_feat(x)
    if isinstance(graph, LabelGraph):
        raw = dict(logits=model.decode_head(features))
        return raw, model.encode_decode(x, [meta] * len(images)).argmax(1)
    head = model.rpn_head if isinstance(graph, TwoStageGraph) else model.bbox_head
    raw = maps_by_level(*head(features))
    samples = [DetDataSample(metainfo=meta) for _ in images]
    found = [each.pred_instances.numpy() for each in model.predict(x, samples, rescale=False)]
    return raw, [
        Objects(each.bboxes, each.scores, each.labels, each.get('masks')) for each in found
    ]


def _without(found: Objects, rows: Sequence[int]) -> Objects:
    return take(found, np.setdiff1d(np.arange(len(found)), rows))


def _mask_threshold(graph: Graph) -> float:
    settings: Mapping[str, Any] = getattr(graph, 'settings', {})
    return float(settings.get('mask_thr_binary', 0.5))


def with_whole_masks(found: Objects, size: tuple[int, ...], threshold: float = 0.5) -> Objects:
    """Return an image's objects with masks at its size: 1 in the object, 2 where rounding decides.

    Args:
        found: They.
        size: H and W.
        threshold: What belongs to an object reaches it.
    """
    height, width = size
    if found.masks is None or found.masks.dtype == np.uint8:
        return found
    masks = np.zeros((len(found), height, width), np.uint8)
    for whole, mask, box in zip(masks, found.masks, found.boxes, strict=True):
        place, probabilities = paste_probabilities(mask, box, (height, width))
        near = np.abs(probabilities - threshold) <= MASK_ROUNDING
        whole[place] = np.where(near, _UNDECIDED, probabilities >= threshold)
    return Objects(found.boxes, found.scores, found.labels, masks)


def _with_undecided_pixels(own: list[Objects], graph: Graph, images: Array) -> list[Objects]:
    """Return detections whose masks the file pasted, with a 2 where rounding decides."""
    unpasted: Any = copy.copy(graph)
    unpasted.paste = False
    with torch.no_grad():
        named = unpasted(torch.from_numpy(images))
    found = read_detections({k: v.numpy() for k, v in named.items()}, describe_nms(graph))
    marked = []
    for each, other in zip(own, found, strict=True):
        marks: Any = with_whole_masks(other, images.shape[2:], _mask_threshold(graph)).masks
        masks: Any = np.array(each.masks)
        for i, j in find_pairs(replace(each, masks=None), other, MIN_IOU_FROM_PROPOSALS):
            masks[i][marks[j] == _UNDECIDED] = _UNDECIDED
        marked.append(replace(each, masks=masks))
    return marked


def find_pairs(expected: Objects, own: Objects, min_iou: float = MIN_IOU) -> list[tuple[int, int]]:
    """Return which detections of two lists are partners, each of at most one."""
    if not len(expected) or not len(own):
        return []
    overlap = _overlaps(expected, own)
    pairs = []
    for i, row in enumerate(overlap):
        candidates = np.flatnonzero(row >= min_iou)
        for best in candidates[np.argsort(-row[candidates])]:
            if _same_mask(expected.masks, own.masks, i, best):
                overlap[:, best] = 0
                pairs.append((i, int(best)))
                break
    return pairs


def find_ties(
    graph: Graph, image: Array, alone: Sequence[Objects], min_iou: float = MIN_IOU
) -> tuple[list[str], int]:
    """Return why detections of either side have no partner, and how many there are without reason.

    Args:
        graph: What was exported.
        image: (1, 3, H, W), uint8, RGB.
        alone: The model's detections without a partner, and the export's.
        min_iou: As for `find_pairs`.

    Returns:
        What is undecided for each that rounding decides on; and of the others, how many the side
        has that has more.
    """
    undecided, reasons = possible_detections(graph, image).undecided()
    undecided = with_whole_masks(undecided, image.shape[2:], _mask_threshold(graph))
    ties = [find_pairs(each, undecided, min_iou) for each in alone]
    found = [reasons[row] for pairs in ties for _, row in pairs]
    return found, max(len(each) - len(pairs) for each, pairs in zip(alone, ties, strict=True))


def _overlaps(one: Objects, other: Objects) -> Array:
    """IoU of boxes of the same label, 0 of others, (N, M); 1 if they are apart by rounding alone.

    Of a box that is thinner than rounding the IoU says nothing.
    """
    overlap: Array = bbox_overlaps(
        torch.from_numpy(one.boxes), torch.from_numpy(other.boxes)
    ).numpy()
    rounding = BOX_ROUNDING * max(one.boxes.max(), other.boxes.max())
    overlap[np.abs(one.boxes[:, None] - other.boxes).max(2) <= rounding] = 1
    return overlap * (one.labels[:, None] == other.labels)


def _same_mask(expected: Array | None, own: Array | None, i: int, j: int) -> bool:
    if expected is None or own is None:
        return True
    one, other = expected[i], own[j]
    decided = (one != _UNDECIDED) & (other != _UNDECIDED)
    either = (((one == 1) | (other == 1)) & decided).sum()
    both = ((one == 1) & (other == 1)).sum()
    return bool(either == 0 or both >= MIN_MASK_IOU * either)
