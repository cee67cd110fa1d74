"""Non-maximum suppression into a fixed number of rows: an operator of torch, and its ONNX form."""

from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from torch import Tensor


@torch.library.custom_op('poolformer_dense::nms_by_group', mutates_args=())
def nms_by_group(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress, in each image and group, the boxes that overlap one of a higher score.

    Args:
        boxes: (B, K, 4) as x1, y1, x2, y2.
        scores: (B, K); 0 marks an empty row.
        groups: (B, K), int64.
        iou_threshold: Of what is suppressed.
        rows: Of the result, N.

    Returns:
        Boxes (B, N, 4), scores (B, N) and groups (B, N) by falling score; an empty row has the
        score 0 and the group -1.
    """
    found: tuple[Tensor, Tensor, Tensor]
    found = _empty(boxes, scores, groups, iou_threshold, rows)
    for box, score, group, *kept in zip(boxes, scores, groups, *found, strict=True):
        real = score > 0
        box, score, group = box[real], score[real], group[real]
        if len(box):
            _, order = batched_nms(box, score, group, dict(iou_threshold=iou_threshold))
            for row, values in zip(kept, (box, score, group), strict=True):
                row[: len(order)] = values[order[:rows]]
    return found


@nms_by_group.register_fake
def _empty(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (boxes.shape[0], rows)
    return boxes.new_zeros(*shape, 4), scores.new_zeros(shape), groups.new_full(shape, -1)
