"""RoIAlign from the level that suits each box.

Once as an operator that ONNX has too, and once in torch's own, for files that torch loads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from torch import Tensor


@torch.library.custom_op('poolformer_dense::pool_regions', mutates_args=())
def pool_regions(
    features: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    bins: int,
    samples: int,
) -> Tensor:
    """Pool the region of each box from the map of its level.

    Args:
        features: Maps (B, C, h, w) by level.
        boxes: (M, 4) as x1, y1, x2, y2 in pixels of the image.
        images: (M,), int64, the image of each box.
        levels: (M,), int64, the level of each box.
        strides: Pixels of the image by pixel of a map, by level.
        bins: Of the result, in each direction.
        samples: In each direction of a bin; 0 for as many as the map has pixels there.

    Returns:
        (M, C, bins, bins).
    """
    pooled = _unfilled(features, boxes, images, levels, strides, bins, samples)
    regions = torch.cat([images.to(boxes).unsqueeze(1), boxes], 1)
    for level, (each, stride) in enumerate(zip(features, strides, strict=True)):
        here = levels == level
        dense = each.contiguous()  # mmcv reads channels_last as if it were
        pooled[here] = roi_align(dense, regions[here], bins, 1 / stride, samples, 'avg', True)
    return pooled


@pool_regions.register_fake
def _unfilled(
    features: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    bins: int,
    samples: int,
) -> Tensor:
    return features[0].new_empty(boxes.shape[0], features[0].shape[1], bins, bins)


def pool(
    features: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    bins: int,
    samples: int,
) -> Tensor:
    """`pool_regions` as sums of rows of one table, the pixels of all maps.

    A bin is the mean of its samples, and a sample a sum of four pixels, so a bin is a weighted sum
    of pixels. How many it has differs from box to box: the sums are over ragged lists.
    """
    table = torch.cat([each.permute(0, 2, 3, 1).flatten(0, 2) for each in features])
    heights = torch.stack([_scalar(each.shape[2], images) for each in features])
    widths = torch.stack([_scalar(each.shape[3], images) for each in features])
    pixels = torch.stack([_scalar(each[:, 0].numel(), images) for each in features])
    first = (pixels.cumsum(0) - pixels)[levels] + images * (heights * widths)[levels]
    scale = torch.tensor([1 / stride for stride in strides], device=boxes.device)[levels]
    near, far = (boxes * scale.unsqueeze(1) - 0.5).unflatten(1, (2, 2)).unbind(1)
    extent = far - near  # (M, 2): x and y
    counts = torch.full_like(extent, samples) if samples else (extent / bins).ceil()
    counts = counts.long()
    real = (counts > 0).all(1)
    counts = counts.clamp(min=1)

    # One entry for each sample of each bin of each box.
    by_bin = counts.prod(1, keepdim=True).expand(-1, bins * bins).flatten()
    owner = torch.repeat_interleave(by_bin)
    begin = by_bin.cumsum(0) - by_bin
    sample = torch.arange(owner.shape[0], device=boxes.device) - begin[owner]
    box, cell = owner // (bins * bins), owner % (bins * bins)
    columns = counts[box, 0]
    taps = []
    for axis, (bin, tick, limit) in enumerate(
        [(cell % bins, sample % columns, widths), (cell // bins, sample // columns, heights)]
    ):
        step = extent[box, axis] / bins
        at = near[box, axis] + bin * step + (tick + 0.5) * step / counts[box, axis]
        last = limit[levels][box] - 1
        inside = (at >= -1) & (at <= last + 1)
        at = torch.minimum(at.clamp(min=0), last.to(at))
        low = at.long()
        share = at - low
        taps.append((low, torch.minimum(low + 1, last), (1 - share) * inside, share * inside))
    (left, right, *of_x), (upper, lower, *of_y) = taps
    width = widths[levels][box]
    corners = [
        first[box] + row * width + column for row in (upper, lower) for column in (left, right)
    ]
    weights = [y * x for y in of_y for x in of_x]
    mean = real[box] / by_bin[owner]
    pooled = F.embedding_bag(
        torch.stack(corners, 1).flatten(),
        table,
        begin * 4,
        mode='sum',
        per_sample_weights=(torch.stack(weights, 1) * mean.unsqueeze(1)).flatten(),
    )
    return pooled.unflatten(0, (-1, bins, bins)).permute(0, 3, 1, 2)


def _scalar(size: int, like: Tensor) -> Tensor:
    return torch.scalar_tensor(size, dtype=torch.int64, device=like.device)
