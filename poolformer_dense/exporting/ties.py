"""Detections that rounding decides on: there in one computation in float32, and not in another.

NMS, thresholds and limits compare numbers. Here each comparison has three results: yes, no, and
undecided, if the numbers are nearer to each other than float32's rounding. What follows from
undecided ones is undecided; all else has to be the same in every computation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtimes.outputs import Array, Objects
from .base import Boxes, Graph
from .pooling import pool_regions
from .two_stage import TwoStageGraph

_EPSILON = float(np.finfo(np.float32).eps)
# What a detector in float32 is off: by this part of a score, and of the image's longest side a
# coordinate. Two to four times the most that a model and its files were apart in photographs.
SCORE_ROUNDING = 512 * _EPSILON
BOX_ROUNDING = 8 * _EPSILON
# The probability of a mask's pixel, whose box is off: of 9717 masks of a Mask R-CNN and its file no
# pixel farther from the threshold than this differed, and 0.4% of the pixels are nearer.
MASK_ROUNDING = 4096 * _EPSILON
# Of each level, so many proposals more than `nms_pre` are looked at, since they may be among them.
_MORE = 50


@dataclass(frozen=True)
class Possible:
    """The detections of one image that there are in some rounding.

    Attributes:
        objects: They.
        certain: (N,), which there are in every rounding.
        reasons: Of each, what is undecided; empty for certain ones.
    """

    objects: Objects
    certain: Array
    reasons: list[str]

    def undecided(self) -> tuple[Objects, list[str]]:
        """Return those that there are in some rounding only, and why."""
        rows = np.flatnonzero(~self.certain)
        return take(self.objects, rows), [self.reasons[row] for row in rows]


def take(objects: Objects, rows: Any) -> Objects:
    """Return some of a list of objects."""
    masks = None if objects.masks is None else objects.masks[rows]
    return Objects(objects.boxes[rows], objects.scores[rows], objects.labels[rows], masks)


def possible_detections(graph: Graph, image: Array) -> Possible:
    """Return which detections there are in some rounding, and in every one.

    Args:
        graph: Of a detector; with two stages, proposals are told apart in the same way.
        image: (1, 3, H, W), uint8, RGB.
    """
    own: Any = copy.copy(graph)
    two_stages = isinstance(own, TwoStageGraph)
    settings: Mapping[str, Any] = own.settings
    score_thr = settings.get('score_thr', 0)
    nms_pre: Any = own.proposal_settings['nms_pre'] if two_stages else None
    own.suppress = decide = Decisions(
        score_thr,
        max(image.shape[2:]),
        proposals_by_level=nms_pre,
    )
    own.settings = dict(settings, score_thr=score_thr * (1 - SCORE_ROUNDING))
    if two_stages:
        own.proposal_settings = dict(own.proposal_settings, nms_pre=nms_pre + _MORE)
        own.pool, own.paste = pool_regions, False
    with torch.no_grad():
        found = own(torch.from_numpy(image))
    arrays = {name: found[name][0].numpy() for name in own.outputs}
    return Possible(Objects(**arrays), decide.certain.numpy(), decide.reasons)


@dataclass
class Decisions:
    """NMS for a graph, of one image, that keeps what it keeps in some rounding.

    Called for proposals first if there are any, then for detections.

    Args:
        score_thr: Detections have a higher score.
        side: The longest of the image, in pixels.
        proposals_by_level: The best proposals of each level that NMS takes; None without.

    Attributes:
        certain: Of what was returned last, what is kept in every rounding.
        reasons: Of the same, what is undecided.
    """

    score_thr: float
    side: int
    proposals_by_level: int | None
    certain: Tensor = field(init=False)
    reasons: list[str] = field(init=False, default_factory=list)

    def __call__(
        self, boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, rows: int
    ) -> Boxes:
        candidates = (scores[0] > 0).nonzero()[:, 0]
        score = scores[0, candidates].double()
        group = groups[0, candidates]
        state = _State(score)
        if self.proposals_by_level is not None:
            for level in group.unique():
                here = (group == level).nonzero()[:, 0]
                state.limit(here, self.proposals_by_level, 'nms_pre')
            self.proposals_by_level = None
        else:
            if hasattr(self, 'certain'):  # each proposal has a candidate of each class
                by_class = scores.shape[1] // len(self.certain)
                origin = candidates // by_class
                state.doubt(~self.certain[origin], 'its proposal is undecided')
            near = state.low <= self.score_thr
            state.doubt(near, f'its score equals score_thr {self.score_thr}')
        box = boxes[0, candidates].double()
        largest = float(box.max()) + 1 if len(box) else 1.0
        for each in group.unique():
            here = (group == each).nonzero()[:, 0]
            # Boxes of a group are moved by so much, in float32, before they are compared.
            moved = np.spacing(np.float32((int(each) + 1) * largest))
            error = BOX_ROUNDING * self.side + float(moved)
            state.suppress(here, box[here], iou_threshold, error)
        state.limit(torch.arange(len(score)), rows, 'max_per_img')
        kept = state.possible.nonzero()[:, 0]
        self.certain = state.certain[kept]
        self.reasons = [state.reasons[i] for i in kept.tolist()]
        found = candidates[kept]
        return boxes[:, found], scores[:, found], groups[:, found]


class _State:
    """What is known of each candidate: kept in every rounding, or in some."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.low, self.high = scores * (1 - SCORE_ROUNDING), scores * (1 + SCORE_ROUNDING)
        self.certain = torch.ones_like(scores, dtype=torch.bool)
        self.possible = self.certain.clone()
        self.reasons = [''] * len(scores)

    def doubt(self, which: Tensor, reason: str) -> None:
        """Take from candidates that they are certain."""
        for i in (which & self.certain & self.possible).nonzero()[:, 0].tolist():
            self.reasons[i] = reason
        self.certain &= ~which

    def limit(self, here: Tensor, rows: int, name: str) -> None:
        """Keep the best ``rows`` of the candidates ``here``."""
        maybe, surely = self._ahead(here)
        above_at_most = (maybe & self.possible[here]).sum(1)
        above_at_least = (surely & self.certain[here]).sum(1)
        doubtful = torch.zeros_like(self.certain)
        doubtful[here] = above_at_most >= rows
        self.possible[here] &= above_at_least < rows
        self.certain &= self.possible
        self.doubt(doubtful, f'it is the last of {name} {rows}, or the next')

    def suppress(self, here: Tensor, boxes: Tensor, threshold: float, error: float) -> None:
        """Apply NMS to the candidates ``here``, whose coordinates are off by ``error``."""
        here, boxes = here[self.possible[here]], boxes[self.possible[here]]
        low, exact, high = overlaps(boxes, error)
        maybe, surely = self._ahead(here)
        may, must = (high >= threshold) & maybe, (low > threshold) & surely
        certain = torch.zeros_like(self.certain[here])
        possible = torch.ones_like(certain)
        while True:
            before = certain.sum() - possible.sum()
            possible &= ~(must & certain).any(1)
            certain = possible & self.certain[here] & ~(may & possible).any(1)
            if certain.sum() - possible.sum() == before:
                break
        for i in (possible & ~certain & self.certain[here]).nonzero()[:, 0].tolist():
            rivals = may[i] & possible
            near, level = rivals & (low[i] <= threshold), rivals & ~surely[i]
            reason = 'a rival of it is undecided'
            if near.any():
                shared = exact[i, near][(exact[i, near] - threshold).abs().argmin()]
                reason = f'IoU {shared:.7f} with a rival, NMS at {threshold}'
            elif level.any():
                pair = self.scores[here[i]], self.scores[here[level][0]]
                reason = 'its score equals that of a rival, {:.7f} and {:.7f}'.format(*pair)
            self.reasons[int(here[i])] = reason
        self.possible[here] &= possible
        self.certain[here] &= certain

    def _ahead(self, here: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each other [i, j] may be, and surely is, before i by its score."""
        low, high = self.low[here], self.high[here]
        others = ~torch.eye(len(here), dtype=torch.bool)
        return (low.unsqueeze(1) <= high) & others, high.unsqueeze(1) < low


def overlaps(boxes: Tensor, error: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the IoU of each two boxes: the least, that of these coordinates, and the most.

    Args:
        boxes: (N, 4), float64.
        error: By how much each coordinate may be off.
    """
    near = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    far = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared, sides = far - near, boxes[:, 2:] - boxes[:, :2]

    def iou(change: float) -> Tensor:
        both = (shared + change).clamp(min=0).prod(-1)
        area = (sides - change).clamp(min=0).prod(-1)
        either = area.unsqueeze(1) + area - both
        # Without an area left, anything may be.
        return torch.where(either > 0, both / either, float(change > 0)).clamp(max=1)

    return iou(-2 * error), iou(0), iou(2 * error)
