"""An export beside the model that it was made from: raw outputs, detections, label maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmcv.ops import batched_nms
from mmdet.structures.bbox import bbox_overlaps
from numpy.typing import NDArray
from torch import Tensor

from .graphs import BoxGraph, Graph

# What an export must reach in float32.
MAX_RAW_ERROR = 1e-4
MIN_IOU = 0.999
MIN_SAME_LABELS = 0.9999
# Of hundreds an image, rounding at the NMS threshold flips one now and then.
MIN_SAME_PROPOSALS = 0.99
Array = NDArray[Any]
# From images to an export's outputs by name.
Run = Callable[[Array], Mapping[str, Array]]
# Boxes, scores and labels; proposals have no labels.
Detections = tuple[Tensor, Tensor, Tensor | None]


@dataclass
class Parity:
    """How far an export is from its model.

    Attributes:
        errors: By raw output, the largest difference as a part of that output's largest magnitude.
        same: Detections with a partner of the same label and IoU >= 0.999, or pixels of the same
            label.
        total: Detections of the side that has more, or pixels.
        enough: The part that must be the same.
        sizes: (B, H, W) of what was compared.
    """

    errors: dict[str, float] = field(default_factory=dict)
    same: int = 0
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
        """Whether the export reaches what it must."""
        return self.worst <= MAX_RAW_ERROR and self.agreement >= self.enough


def measure_parity(graph: Graph, reference: Any, run: Run, batches: Iterable[Array]) -> Parity:
    """Compare an export with a model on images.

    Args:
        graph: What was exported; it tells which outputs there are.
        reference: The model; it computes with its usual backend, and with mmdet's or mmseg's own
            post-processing.
        run: Runs the export; returns its outputs, with the raw ones or without.
        batches: Images (B, 3, H, W), uint8, RGB.
    """
    parity = Parity(enough=_enough(graph))
    for images in batches:
        found = run(images)
        with torch.no_grad():
            raw, results = _reference(graph, reference, torch.from_numpy(images))
        for name in [name for name in raw if name in found]:
            expected = raw[name].double().numpy()
            error = np.abs(expected - found[name]).max() / max(np.abs(expected).max(), 1e-12)
            parity.errors[name] = max(parity.errors.get(name, 0.0), float(error))
        if isinstance(graph, BoxGraph):
            for expected, own in zip(results, final_detections(graph, found), strict=True):
                parity.same += count_same(expected, own)
                parity.total += max(len(expected[0]), len(own[0]))
        else:
            parity.same += int((results.numpy() == found['labels']).sum())
            parity.total += results.numel()
        batch, _, height, width = images.shape
        parity.sizes.append((batch, height, width))
    return parity


def _enough(graph: Graph) -> float:
    if not isinstance(graph, BoxGraph):
        return MIN_SAME_LABELS
    return MIN_SAME_PROPOSALS if graph.two_stage else 1.0


def _reference(graph: Graph, model: Any, images: Tensor) -> tuple[dict[str, Tensor], Any]:
    """The model's raw outputs by the graph's names, and its detections or its label maps."""
    # The pipelines load BGR, and the preprocessor turns it if the model was trained on RGB.
    bgr = list(images.flip(1))
    x = model.data_preprocessor(dict(inputs=bgr, data_samples=None))['inputs']
    size = tuple(images.shape[2:])
    metas = [dict(img_shape=size, ori_shape=size, pad_shape=size)] * len(images)
    features = model.extract_feat(x)
    if not isinstance(graph, BoxGraph):
        raw = dict(logits=model.decode_head(features))
        return raw, model.encode_decode(x, metas).argmax(1)
    head = model.rpn_head if graph.two_stage else model.bbox_head
    logits, deltas = head(features)
    found = head.predict_by_feat(
        logits, deltas, batch_img_metas=metas, cfg=graph.settings, rescale=False
    )
    raw = {f'logits_{i}': each for i, each in enumerate(logits)}
    raw |= {f'deltas_{i}': each for i, each in enumerate(deltas)}
    raw |= {name: features[i] for i, name in enumerate(graph.outputs[3:])}
    labels = [None if graph.two_stage else each.labels for each in found]
    return raw, [(each.bboxes, each.scores, own) for each, own in zip(found, labels, strict=True)]


def final_detections(graph: BoxGraph, found: Mapping[str, Array]) -> list[Detections]:
    """Return the detections of each image in an export's outputs; NMS is applied if need be."""
    detections: list[Detections] = []
    for rows in zip(*(found[name] for name in graph.outputs[:3]), strict=True):
        kept = rows[1] > 0
        boxes, scores, groups = (torch.from_numpy(row[kept]) for row in rows)
        if len(boxes):
            # Harmless on what has gone through it already.
            _, order = batched_nms(boxes, scores, groups, dict(graph.settings['nms']))
            order = order[: graph.settings['max_per_img']]
            boxes, scores, groups = boxes[order], scores[order], groups[order]
        detections.append((boxes, scores, None if graph.two_stage else groups))
    return detections


def count_same(expected: Detections, own: Detections) -> int:
    """Count the detections of one list that have a partner in the other, each used once."""
    boxes, _, labels = expected
    if not len(boxes) or not len(own[0]):
        return 0
    overlap = bbox_overlaps(boxes, own[0])
    if labels is not None and own[2] is not None:
        overlap = overlap * (labels[:, None] == own[2][None])
    same = 0
    for row in overlap:
        best = int(row.argmax())
        if row[best] >= MIN_IOU:
            overlap[:, best] = 0
            same += 1
    return same
