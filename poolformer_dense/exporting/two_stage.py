"""The graph of a detector with proposals, up to its boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmdet.models.roi_heads import CascadeRoIHead, SingleRoIExtractor, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import (
    BBoxHead,
    ConvFCBBoxHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
)
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor

from ..errors import UserError
from .base import Graph, Suppress, boxes_before_nms, check_limits, check_nms, maps_by_level

# `poolformer_dense.exporting.pooling.pool_regions`, or the same in operators of torch.
Pool = Callable[[Sequence[Tensor], Tensor, Tensor, Tensor, Sequence[int], int, int], Tensor]
_BOX_HEADS = (BBoxHead, ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead)


class TwoStageGraph(Graph):
    """Faster, Mask and Cascade R-CNN.

    Returns ``boxes`` (B, N, 4) as x1, y1, x2, y2 in pixels of ``image``, ``scores`` (B, N) and
    ``labels`` (B, N) by falling score, where an empty row has the score 0 and the label -1; for a
    model with masks ``masks``, (B, N, 28, 28), the probabilities on a grid over the box, or with
    ``paste`` (B, N, H, W) uint8; and the proposals' logits and deltas by level.

    What an image has no proposals or detections for is not computed: those of all images are one
    list, which goes through the heads.

    Args:
        model: As for `Graph`.
        preprocessing: As for `Graph`.
        suppress: Applies NMS.
        pool: Pools regions.
        paste: Return masks at the size of the image.

    Raises:
        UserError: The second stage has a part that is not known here.
    """

    def __init__(
        self,
        model: Any,
        preprocessing: Mapping[str, Any],
        suppress: Suppress,
        pool: Pool,
        paste: bool = False,
    ) -> None:
        super().__init__(model, preprocessing)
        self.suppress = suppress
        self.pool = pool
        self.paste = paste
        head = self.model.roi_head
        _check_head(head)
        self.masks = bool(head.with_mask)
        self.outputs = ('boxes', 'scores', 'labels', *(['masks'] if self.masks else []))
        self.proposal_settings: Mapping[str, Any] = model.test_cfg.rpn
        self.settings: Mapping[str, Any] = model.test_cfg.rcnn
        self.stages = head.num_stages if isinstance(head, CascadeRoIHead) else 1
        for place, settings, limits in (
            ('model.test_cfg.rpn', self.proposal_settings, ('nms_pre', 'max_per_img')),
            ('model.test_cfg.rcnn', self.settings, ('max_per_img',)),
        ):
            check_nms(settings, place)
            check_limits(settings, place, *limits)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        size = image.shape[-2:]
        features = self.model.extract_feat(self.prepare(image))
        maps = self.model.rpn_head(features)
        settings = self.proposal_settings
        found = boxes_before_nms(self.model.rpn_head, maps, size, settings, by_level=True)
        threshold, rows = settings['nms']['iou_threshold'], settings['max_per_img']
        proposals, scores, _ = self.suppress(*found, threshold, rows)
        candidates = self.classify(features, proposals, scores > 0, size)
        threshold, rows = self.settings['nms']['iou_threshold'], self.settings['max_per_img']
        found = self.suppress(*candidates, threshold, rows)
        named = dict(zip(self.outputs, found, strict=False))
        if self.masks:
            masks = self.find_masks(features, *found)
            named['masks'] = self.pasted(masks, found[0], size) if self.paste else masks
        return named | maps_by_level(*maps)

    def classify(
        self, features: Sequence[Tensor], proposals: Tensor, real: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return a box of each class for each proposal.

        Args:
            features: Maps (B, C, h, w) by level.
            proposals: (B, P, 4).
            real: (B, P), which rows are.
            size: Height and width that boxes are clipped to.

        Returns:
            Boxes (B, P * classes, 4), scores, and labels (B, P * classes); what is at or below
            ``score_thr`` has the score 0.
        """
        images, row = _listed(real)
        boxes = proposals[images, row]  # (M, 4)
        logits = []
        for stage in range(self.stages):
            extractor = self._of_stage('bbox_roi_extractor', stage)
            head = self._of_stage('bbox_head', stage)
            logit, delta = head(self.pooled(features, boxes, images, extractor))
            logits.append(logit)
            if stage < self.stages - 1:
                best = logit[:, :-1].argmax(1)
                boxes = head.regress_by_class(boxes, best, delta, dict(img_shape=size))
        scores = (torch.stack(logits).sum(0) / self.stages).softmax(-1)[:, :-1]
        scores = scores * (scores > self.settings['score_thr'])
        classes = scores.shape[1]
        delta = delta.unflatten(1, (-1, 4))  # (M, classes or 1, 4)
        anchors = boxes.unsqueeze(1).expand_as(delta)
        boxes = head.bbox_coder.decode(anchors.flatten(0, 1), delta.flatten(0, 1), max_shape=size)
        boxes = boxes.view_as(delta).expand(-1, classes, -1)
        at = (images, row)
        everywhere = (*real.shape, classes)
        placed = boxes.new_zeros(*everywhere, 4).index_put(at, boxes)
        scores = scores.new_zeros(everywhere).index_put(at, scores) * real.unsqueeze(-1)
        labels = torch.arange(classes, device=boxes.device).expand(everywhere)
        return placed.flatten(1, 2), scores.flatten(1), labels.flatten(1)

    def find_masks(
        self, features: Sequence[Tensor], boxes: Tensor, scores: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the mask of each detection, (B, N, 28, 28); zeros in empty rows."""
        real = scores > 0
        images, row = _listed(real)
        found = []
        for stage in range(self.stages):
            extractor = self._of_stage('mask_roi_extractor', stage)
            head = self._of_stage('mask_head', stage)
            logits = head(self.pooled(features, boxes[images, row], images, extractor))
            if head.class_agnostic:
                found.append(logits[:, 0].sigmoid())
            else:
                label = labels[images, row].clamp(min=0).view(-1, 1, 1, 1)
                of_class = logits.gather(1, label.expand(-1, 1, *logits.shape[2:]))
                found.append(of_class[:, 0].sigmoid())
        mask = torch.stack(found).sum(0) / self.stages
        everywhere = mask.new_zeros(*scores.shape, *mask.shape[1:])
        return everywhere.index_put((images, row), mask) * real[..., None, None]

    def pooled(
        self, features: Sequence[Tensor], boxes: Tensor, images: Tensor, extractor: Any
    ) -> Tensor:
        """Return (M, C, bins, bins) for M boxes; small ones are pooled from fine maps."""
        strides = extractor.featmap_strides
        scale = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt() / extractor.finest_scale + 1e-6
        # As many as the powers of two that it reaches: a logarithm would have to be exact.
        powers = 2.0 ** torch.arange(1, len(strides), device=boxes.device)
        levels = (scale.unsqueeze(1) >= powers).sum(1)
        layer = extractor.roi_layers[0]
        features = features[: len(strides)]
        bins, samples = layer.output_size[0], layer.sampling_ratio
        return self.pool(features, boxes, images, levels, strides, bins, samples)

    def pasted(self, masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
        """Return (B, N, H, W), uint8: 1 in the masks, where they reach the model's threshold."""
        x1, y1, x2, y2 = boxes.unbind(-1)
        rows = _spread(y1, y2, size[0], masks.shape[2])
        columns = _spread(x1, x2, size[1], masks.shape[3])
        whole = rows @ masks @ columns.transpose(2, 3)
        inside = whole >= self.settings['mask_thr_binary']
        return (inside & (masks.amax((2, 3), keepdim=True) > 0)).to(torch.uint8)

    def _of_stage(self, name: str, stage: int) -> Any:
        part = getattr(self.model.roi_head, name)
        return part[stage] if isinstance(self.model.roi_head, CascadeRoIHead) else part


def _listed(real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image and the row of each row that is real, and once more of the very first.

    So the list is never empty, which not every runtime bears. It does no harm: a row that is twice
    in the list has the same result both times, and what is not real is left out in the end.
    """
    found = torch.nonzero(real)
    images, row = torch.cat([found, found.new_zeros(1, 2)]).unbind(1)
    return images, row


def _spread(start: Tensor, end: Tensor, pixels: int, bins: int) -> Tensor:
    """Return what each bin between two ends adds to each pixel, (B, N, pixels, bins): linear."""
    centers = torch.arange(pixels, device=start.device) + 0.5
    extent = (end - start).clamp(min=1e-6).unsqueeze(-1)
    at = (centers - start.unsqueeze(-1)) / extent * bins - 0.5
    away = at.unsqueeze(-1) - torch.arange(bins, device=start.device)
    return (1 - away.abs()).clamp(min=0)


def _check_head(head: Any) -> None:
    """Refuse a second stage with a part that no graph has."""
    parts: list[tuple[str, Any, tuple[type, ...]]] = [
        ('bbox_head', each, _BOX_HEADS) for each in _parts(head.bbox_head)
    ]
    extractors = [*_parts(head.bbox_roi_extractor)]
    if head.with_mask:
        parts += [('mask_head', each, (FCNMaskHead,)) for each in _parts(head.mask_head)]
        extractors += _parts(head.mask_roi_extractor)
    parts += [('roi_extractor', each, (SingleRoIExtractor,)) for each in extractors]
    for name, part, known in [('roi_head', head, (StandardRoIHead, CascadeRoIHead)), *parts]:
        if type(part) not in known:
            named = ', '.join(each.__name__ for each in known)
            raise UserError(f'no export for the {name} {type(part).__name__}: only for {named}')
    layers = [layer for each in extractors for layer in each.roi_layers]
    if any(layer.pool_mode != 'avg' or not layer.aligned for layer in layers):
        raise UserError('no export for this roi_layer: only for RoIAlign, aligned, with averages')
    if head.with_shared_head or any(each.custom_activation for each in _parts(head.bbox_head)):
        raise UserError('no export for a shared_head, and for a loss_cls with its own activation')


def _parts(part: Any) -> list[Any]:
    return list(part) if isinstance(part, (list, torch.nn.ModuleList)) else [part]
