"""Non-maximum suppression into a fixed number of rows.

Once as an operator that ONNX has too, and once in torch's own, for files that torch loads.
"""

from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from torch import Tensor
from torch._higher_order_ops import while_loop


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


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`nms_by_group` as a loop over the rows of the result, in torch's operators."""
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)

    def unfinished(row: Tensor, left: Tensor, picked: Tensor) -> Tensor:
        return (row < rows) & (left > 0).any()

    def pick(row: Tensor, left: Tensor, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score, best = left.max(1, keepdim=True)
        box = boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4))
        near = torch.maximum(boxes[..., :2], box[..., :2])
        far = torch.minimum(boxes[..., 2:], box[..., 2:])
        shared = (far - near).clamp(min=0).prod(-1)
        # Without a division there is none by zero.
        overlaps = shared > iou_threshold * (area + area.gather(1, best) - shared)
        gone = (overlaps & (groups == groups.gather(1, best))).scatter(1, best, True)
        here = (torch.arange(rows, device=row.device) == row) & (score > 0)
        return row + 1, left.masked_fill(gone, 0), torch.where(here, best, picked)

    start = torch.zeros((), dtype=torch.int64, device=boxes.device)
    nothing = groups.new_full((boxes.shape[0], rows), -1)
    _, _, picked = while_loop(unfinished, pick, (start, scores.clone(), nothing))
    real, picked = picked >= 0, picked.clamp(min=0)
    corners = boxes.gather(1, picked.unsqueeze(-1).expand(-1, -1, 4))
    return (
        corners * real.unsqueeze(-1),
        scores.gather(1, picked) * real,
        torch.where(real, groups.gather(1, picked), -1),
    )
