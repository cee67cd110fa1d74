"""The graphs of whole models: from the image to boxes, or to a label map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import (
    AnchorHead,
    FreeAnchorRetinaHead,
    PISARetinaHead,
    RetinaHead,
    RetinaSepBNHead,
    RPNHead,
)
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import Upsample
from torch import Tensor, nn

from ..errors import UserError
from .base import Graph, Suppress, boxes_before_nms, check_limits, check_nms, maps_by_level
from .nms import nms_by_group, suppress
from .pooling import pool, pool_regions
from .two_stage import TwoStageGraph

# Those whose maps are scores and deltas of anchors, by level.
_ANCHOR_HEADS = (
    AnchorHead, FreeAnchorRetinaHead, PISARetinaHead, RetinaHead, RetinaSepBNHead, RPNHead,
)  # fmt: skip


class BoxGraph(Graph):
    """A detector of one stage with anchors, up to the boxes that go into NMS or come out of it.

    Returns ``boxes`` (B, K, 4) as x1, y1, x2, y2 in pixels of ``image``, ``scores`` (B, K),
    ``labels`` (B, K), and the head's maps by level.

    Args:
        model: As for `Graph`.
        preprocessing: As for `Graph`.
        suppress: Applies NMS; None leaves it out.

    Raises:
        UserError: The model's test has settings that no graph has.
    """

    outputs = ('boxes', 'scores', 'labels')

    def __init__(
        self, model: Any, preprocessing: Mapping[str, Any], suppress: Suppress | None
    ) -> None:
        super().__init__(model, preprocessing)
        self.suppress = suppress
        self.settings: Mapping[str, Any] = model.test_cfg
        check_limits(self.settings, 'model.test_cfg', 'nms_pre', 'max_per_img')
        if suppress is not None:
            check_nms(self.settings, 'model.test_cfg')
        if self.settings.get('min_bbox_size', 0) > 0:
            # mmdet measures boxes in the original image, which a graph does not know.
            raise UserError('model.test_cfg.min_bbox_size: exports have none; set it to 0')

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        head = self.model.bbox_head
        maps = head(self.model.extract_feat(self.prepare(image)))
        found = boxes_before_nms(head, maps, image.shape[-2:], self.settings, by_level=False)
        if self.suppress is not None:
            threshold = self.settings['nms']['iou_threshold']
            found = self.suppress(*found, threshold, self.settings['max_per_img'])
        return dict(zip(self.outputs, found, strict=True)) | maps_by_level(*maps)


class LabelGraph(Graph):
    """A segmentor up to the label map at the size of ``image``: ``labels``, (B, H, W) uint8."""

    outputs = ('labels', 'logits')

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


def build_graph(
    model: Any,
    preprocessing: Mapping[str, Any],
    nms: bool = False,
    paste: bool = False,
    portable: bool = False,
) -> Graph:
    """Return the graph for a model.

    Args:
        model: A detector or segmentor.
        preprocessing: The config of its data preprocessor.
        nms: Apply NMS to the boxes of a detector of one stage; one of two stages always does.
        paste: Return masks at the size of the image, rather than of 28 x 28 pixels in their box.
        portable: Use operators of torch alone, rather than those that ONNX has too.

    Raises:
        UserError: There is none for it.
    """
    if hasattr(model, 'decode_head'):
        _check_segmentor(model, preprocessing)
        return LabelGraph(model, preprocessing)
    first = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    if type(first) not in _ANCHOR_HEADS or not getattr(first, 'use_sigmoid_cls', False):
        raise UserError(
            f'no export for {type(model).__name__} with {type(first).__name__}: only for '
            'segmentors, and for detectors whose first stage has anchors and sigmoid scores '
            f'({", ".join(each.__name__ for each in _ANCHOR_HEADS)})'
        )
    keep = suppress if portable else nms_by_group
    if hasattr(model, 'rpn_head'):
        return TwoStageGraph(model, preprocessing, keep, pool if portable else pool_regions, paste)
    return BoxGraph(model, preprocessing, keep if nms else None)


def _check_segmentor(model: Any, preprocessing: Mapping[str, Any]) -> None:
    if not isinstance(model.decode_head, BaseDecodeHead):
        raise UserError(f'no export for {type(model).__name__}: only for one decode_head')
    if model.decode_head.out_channels == 1 or model.test_cfg.get('mode') == 'slide':
        raise UserError('segmentors are exported with a channel per class and test_cfg.mode=whole')
    if preprocessing.get('test_cfg'):
        raise UserError(
            'no export for segmentors that pad images in the test: model.data_preprocessor.test_cfg'
        )


def describe_nms(graph: Graph) -> dict[str, Any]:
    """Return what the reader of a detector's boxes must know of NMS."""
    settings: Mapping[str, Any] = getattr(graph, 'settings', {})
    return dict(
        applied=getattr(graph, 'suppress', None) is not None,
        settings=dict(settings['nms']),
        max_per_img=settings['max_per_img'],
        score_thr=settings.get('score_thr', 0),
    )
