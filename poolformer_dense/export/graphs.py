"""What an export computes: a model from the image to boxes, or to a label map.

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
from .nms import nms_by_group


class Graph(nn.Module):
    """A model with its preprocessing, from the image to named outputs.

    Args:
        model: A detector or segmentor of mmdet or mmseg, which is copied.
        preprocessing: The config of its data preprocessor.

    Attributes:
        outputs: The names of the results, the first that `forward` returns; the others are the
            model's raw outputs.
    """

    model: Any
    mean: Tensor | None
    std: Tensor | None
    outputs: tuple[str, ...]

    def __init__(self, model: Any, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.trained_on_rgb = any(preprocessing.get(k) for k in ('bgr_to_rgb', 'rgb_to_bgr'))
        self.divisor = preprocessing.get('pad_size_divisor', 1)
        self.pad_value = preprocessing.get('pad_value', 0)
        for name in ('mean', 'std'):
            values = preprocessing.get(name)
            self.register_buffer(name, None if values is None else torch.tensor(values))

    def prepare(self, image: Tensor) -> Tensor:
        """Normalise, and pad on the right and at the bottom, as the model's preprocessor does."""
        x = image.float() if self.trained_on_rgb else image.float().flip(1)
        if self.mean is not None and self.std is not None:
            x = (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        if self.divisor == 1:
            return x
        height, width = x.shape[-2:]
        bottom = (height + self.divisor - 1) // self.divisor * self.divisor - height
        right = (width + self.divisor - 1) // self.divisor * self.divisor - width
        return F.pad(x, (0, right, 0, bottom), value=self.pad_value)


class BoxGraph(Graph):
    """A detector with anchors up to the boxes that go into NMS, or that come out of it.

    Returns ``boxes`` (B, K, 4) as x1, y1, x2, y2 in pixels of ``image``, ``scores`` (B, K), and the
    head's maps by level. For a single-stage detector these are detections, with ``labels`` (B, K).
    For a two-stage one they are proposals, with ``levels`` (B, K), since only those of one level
    compete, and with ``features_0`` ..., the maps that the second stage pools from.

    Args:
        model: As for `Graph`.
        preprocessing: As for `Graph`.
        nms: Apply NMS.
    """

    def __init__(self, model: Any, preprocessing: Mapping[str, Any], nms: bool = False) -> None:
        super().__init__(model, preprocessing)
        self.nms = nms
        self.two_stage = hasattr(model, 'rpn_head')
        self.settings: Mapping[str, Any] = model.test_cfg
        self.outputs = ('boxes', 'scores', 'labels')
        if self.two_stage:
            self.settings = model.test_cfg.rpn
            extractor = model.roi_head.bbox_roi_extractor
            if isinstance(extractor, nn.ModuleList):  # a cascade has one by stage
                extractor = extractor[0]
            pooled = range(len(extractor.featmap_strides))
            self.outputs = ('boxes', 'scores', 'levels', *(f'features_{i}' for i in pooled))
        suppression = self.settings['nms']
        other_kind = suppression.get('type', 'nms') != 'nms' or suppression.get('class_agnostic')
        if nms and other_kind:
            raise UserError(f'--nms: ONNX has no {dict(suppression)}; export without it')

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.model.extract_feat(self.prepare(image))
        head = self.model.rpn_head if self.two_stage else self.model.bbox_head
        logits, deltas = head(features)
        found = self.boxes_before_nms(head, logits, deltas, image.shape[-2:])
        if self.nms:
            iou_threshold, rows = (
                self.settings['nms']['iou_threshold'],
                self.settings['max_per_img'],
            )
            found = nms_by_group(*found, iou_threshold, rows)
        # The names end where what the second stage pools from ends.
        named = dict(zip(self.outputs, (*found, *features), strict=False))
        return named | _by_level('logits', logits) | _by_level('deltas', deltas)

    def boxes_before_nms(
        self,
        head: Any,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        size: Sequence[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes that go into NMS, of all levels.

        mmdet's `predict_by_feat` as tensor operations of fixed shape and for a batch: where it
        drops what is at or below ``score_thr`` or not larger than ``min_bbox_size``, the score
        becomes 0.

        Args:
            head: mmdet's head with anchors; its priors and its box coder are used.
            logits: The head's maps, (B, anchors * classes, h, w) by level.
            deltas: (B, anchors * 4, h, w) by level.
            size: Height and width that boxes are clipped to, in pixels.

        Returns:
            Boxes (B, K, 4), scores (B, K), and labels or levels (B, K); of each level at most
            ``nms_pre``, by falling score.
        """
        found = []
        classes = head.cls_out_channels
        for level, (logit, delta) in enumerate(zip(logits, deltas, strict=True)):
            priors = head.prior_generator.single_level_grid_priors(
                logit.shape[-2:], level, logit.dtype, logit.device
            )
            scores = logit.permute(0, 2, 3, 1).flatten(1).sigmoid()
            scores, index = scores.topk(torch.sym_min(self.settings['nms_pre'], scores.shape[1]))
            anchor = index // classes
            delta = delta.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            delta = delta.gather(1, anchor.unsqueeze(-1).expand(-1, -1, 4))
            boxes = head.bbox_coder.decode(
                priors[anchor].flatten(0, 1), delta.flatten(0, 1), max_shape=size
            )
            groups = torch.full_like(index, level) if self.two_stage else index % classes
            found.append((boxes.view_as(delta), scores, groups))
        boxes, scores, groups = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        sides = boxes[..., 2:] - boxes[..., :2]
        kept = scores > self.settings.get('score_thr', 0)
        kept = kept & (sides > self.settings.get('min_bbox_size', -1)).all(-1)
        return boxes, scores * kept, groups


class LabelGraph(Graph):
    """A segmentor up to the label map at the size of ``image``: ``labels``, (B, H, W) uint8."""

    outputs = ('labels',)

    def __init__(self, model: Any, preprocessing: Mapping[str, Any]) -> None:
        super().__init__(model, preprocessing)
        # mmseg's computes its size in floating point, which ties a trace to that of its example.
        for name, child in list(self.model.named_modules()):
            if isinstance(child, Upsample) and child.scale_factor is not None:
                upsample = nn.Upsample(None, child.scale_factor, child.mode, child.align_corners)
                self.model.set_submodule(name, upsample)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        head = self.model.decode_head
        logits = head(self.model.extract_feat(self.prepare(image)))
        resized = F.interpolate(
            logits, image.shape[-2:], mode='bilinear', align_corners=head.align_corners
        )
        labels = resized.argmax(1)
        kind = torch.uint8 if head.out_channels <= 256 else torch.int32
        return dict(labels=labels.to(kind), logits=logits)


def build_graph(model: Any, preprocessing: Mapping[str, Any], nms: bool = False) -> Graph:
    """Return the graph for a model.

    Args:
        model: A detector or segmentor.
        preprocessing: The config of its data preprocessor.
        nms: Apply NMS to a detector's boxes.

    Raises:
        UserError: There is none for it.
    """
    if hasattr(model, 'decode_head'):
        if model.decode_head.out_channels == 1 or model.test_cfg.get('mode') == 'slide':
            raise UserError(
                'segmentors are exported with a channel per class and test_cfg.mode=whole'
            )
        return LabelGraph(model, preprocessing)
    head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    anchors = hasattr(head, 'prior_generator') and hasattr(head, 'bbox_coder')
    if not anchors or not getattr(head, 'use_sigmoid_cls', False):
        raise UserError(
            f'no export for {type(model).__name__}: only for detectors whose first stage has '
            'anchors and sigmoid scores (RetinaNet, Mask R-CNN) and for segmentors'
        )
    return BoxGraph(model, preprocessing, nms)


def _by_level(name: str, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f'{name}_{level}': each for level, each in enumerate(maps)}
