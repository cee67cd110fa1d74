"""What an export computes: a model from the image to boxes before NMS, or to a label map.

Every graph takes ``image``, (B, 3, H, W) uint8, RGB, already resized; the channel order, mean,
standard deviation and padding that the model was trained with are inside.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.utils import Upsample
from torch import Tensor, nn

from ..errors import UserError


class Graph(nn.Module):
    """A model with its preprocessing, from the image to named outputs.

    Args:
        model: A detector or segmentor of mmdet or mmseg, which is copied.

    Attributes:
        outputs: The names of the results, in order; the others are the model's raw outputs.
    """

    outputs: tuple[str, ...]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Only inference: what training adds (losses, assigners) is not traced.
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.preprocessor = self.model.data_preprocessor

    def prepare(self, image: Tensor) -> Tensor:
        """Normalise, and pad on the right and at the bottom, as the model's preprocessor does."""
        x = image.float()
        if not self.preprocessor._channel_conversion:
            x = x.flip(1)  # the model was trained on BGR
        if self.preprocessor._enable_normalize:
            x = (x - self.preprocessor.mean) / self.preprocessor.std
        divisor = getattr(self.preprocessor, 'pad_size_divisor', 1)
        if divisor == 1:
            return x
        height, width = x.shape[-2:]
        bottom = (height + divisor - 1) // divisor * divisor - height
        right = (width + divisor - 1) // divisor * divisor - width
        return F.pad(x, (0, right, 0, bottom), value=self.preprocessor.pad_value)


class DetectionGraph(Graph):
    """A single-stage detector with anchors up to the boxes that go into NMS.

    Returns ``boxes`` (B, K, 4) as x1, y1, x2, y2 in pixels of ``image``, ``scores`` (B, K) and
    ``labels`` (B, K), and the head's maps by level.
    """

    outputs = ('boxes', 'scores', 'labels')

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model's ``test_cfg`` for its anchors."""
        return self.model.test_cfg

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        head = self.model.bbox_head
        logits, deltas = head(self.model.extract_feat(self.prepare(image)))
        boxes, scores, labels, _ = candidates(head, logits, deltas, image.shape[-2:], self.settings)
        named = dict(boxes=boxes, scores=scores, labels=labels)
        return named | _by_level('logits', logits) | _by_level('deltas', deltas)


class ProposalGraph(Graph):
    """A two-stage detector up to the proposals that go into the RPN's NMS, and its features.

    As `DetectionGraph`, with ``levels`` in place of ``labels``, since proposals of one level
    compete with each other alone, and ``features_0`` ..., the pyramid that the second stage needs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        extractor = model.roi_head.bbox_roi_extractor
        if isinstance(extractor, nn.ModuleList):  # a cascade has one by stage
            extractor = extractor[0]
        names = (f'features_{i}' for i in range(len(extractor.featmap_strides)))
        self.outputs = ('boxes', 'scores', 'levels', *names)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model's ``test_cfg`` for its anchors."""
        return self.model.test_cfg.rpn

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        head = self.model.rpn_head
        features = self.model.extract_feat(self.prepare(image))
        logits, deltas = head(features)
        boxes, scores, _, levels = candidates(head, logits, deltas, image.shape[-2:], self.settings)
        named = dict(boxes=boxes, scores=scores, levels=levels)
        pooled = features[: len(self.outputs) - 3]
        named |= _by_level('features', pooled)
        return named | _by_level('logits', logits) | _by_level('deltas', deltas)


class Enlarge(nn.Module):
    """mmseg's `Upsample` by a whole factor, its new size computed without floating point.

    ``int(size * 2.0)`` makes an export keep the size of its example.
    """

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        self.factor = int(upsample.scale_factor)
        self.how = dict(mode=upsample.mode, align_corners=upsample.align_corners)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.interpolate(x, (height * self.factor, width * self.factor), **self.how)


class LabelGraph(Graph):
    """A segmentor up to the label map at the size of ``image``: ``labels``, (B, H, W) uint8."""

    outputs = ('labels',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for parent in list(self.model.decode_head.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Upsample) and child.scale_factor is not None:
                    setattr(parent, name, Enlarge(child))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        head = self.model.decode_head
        logits = head(self.model.extract_feat(self.prepare(image)))
        resized = F.interpolate(
            logits, image.shape[-2:], mode='bilinear', align_corners=head.align_corners
        )
        labels = resized.argmax(1)
        kind = torch.uint8 if head.out_channels <= 256 else torch.int32
        return dict(labels=labels.to(kind), logits=logits)


def build_graph(model: nn.Module) -> Graph:
    """Return the graph for a model.

    Raises:
        UserError: There is none for it.
    """
    if hasattr(model, 'decode_head'):
        if model.decode_head.out_channels == 1 or model.test_cfg.get('mode') == 'slide':
            raise UserError(
                'segmentors are exported with a channel per class and test_cfg.mode=whole'
            )
        return LabelGraph(model)
    head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    anchors = hasattr(head, 'prior_generator') and hasattr(head, 'bbox_coder')
    if not anchors or not getattr(head, 'use_sigmoid_cls', False):
        raise UserError(
            f'no export for {type(model).__name__}: only for detectors whose first stage has '
            'anchors and sigmoid scores (RetinaNet, Mask R-CNN) and for segmentors'
        )
    return ProposalGraph(model) if hasattr(model, 'rpn_head') else DetectionGraph(model)


def candidates(
    head: nn.Module,
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    size: Sequence[int],
    settings: Mapping[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the boxes that go into NMS, of all levels.

    mmdet's `predict_by_feat` as tensor operations of fixed shape and for a batch: where it drops
    what is at or below ``score_thr`` or not larger than ``min_bbox_size``, the score becomes 0.

    Args:
        head: mmdet's head with anchors; its priors and its box coder are used.
        logits: The head's maps, (B, anchors * classes, h, w) by level.
        deltas: (B, anchors * 4, h, w) by level.
        size: Height and width that boxes are clipped to, in pixels.
        settings: The ``test_cfg``.

    Returns:
        Boxes (B, K, 4), scores (B, K), labels (B, K) and levels (B, K); of each level at most
        ``nms_pre``, by falling score.
    """
    found = []
    classes = head.cls_out_channels
    for level, (logit, delta) in enumerate(zip(logits, deltas, strict=True)):
        priors = head.prior_generator.single_level_grid_priors(
            logit.shape[-2:], level, logit.dtype, logit.device
        )
        scores = logit.permute(0, 2, 3, 1).flatten(1).sigmoid()
        scores, index = scores.topk(torch.sym_min(settings['nms_pre'], scores.shape[1]))
        anchor = index // classes
        delta = delta.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        delta = delta.gather(1, anchor.unsqueeze(-1).expand(-1, -1, 4))
        boxes = head.bbox_coder.decode(
            priors[anchor].flatten(0, 1), delta.flatten(0, 1), max_shape=size
        )
        found.append((boxes.view_as(delta), scores, index % classes, torch.full_like(index, level)))
    boxes, scores, labels, levels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    sides = boxes[..., 2:] - boxes[..., :2]
    kept = scores > settings.get('score_thr', 0)
    kept = kept & (sides > settings.get('min_bbox_size', -1)).all(-1)
    return boxes, scores * kept, labels, levels


def _by_level(name: str, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f'{name}_{level}': each for level, each in enumerate(maps)}
