"""What operators are in ONNX, for torch.onnx, which goes by the names of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnxscript
import torch

from . import nms, pooling  # noqa: F401 (they register the operators)

# The types of its arguments are narrower than those of its results.
op: Any = onnxscript.opset18


def onnx_nms(boxes: Any, scores: Any, groups: Any, iou_threshold: float, rows: int) -> Any:
    """`nms_by_group` in ONNX.

    Boxes of different groups are moved apart, so that one greedy pass does all, as in mmcv.
    """
    zero, one = _ints(0), _ints(1)
    step = op.Add(op.ReduceMax(boxes, _ints(1, 2)), op.Constant(value_float=1.0))
    offset = op.Mul(op.Unsqueeze(op.Cast(groups, to=onnx.TensorProto.FLOAT), _ints(2)), step)
    selected = op.NonMaxSuppression(
        op.Add(boxes, offset),
        op.Unsqueeze(scores, one),
        _ints(rows),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[1e-12]),  # without empty rows
    )  # (M, 3): image, class, box
    image = op.Gather(selected, zero, axis=1)
    source = op.Gather(selected, _ints(0, 2), axis=1)
    # The row of each is the number of those before it of the same image.
    batch = op.Shape(scores, start=0, end=1)
    images = op.Range(op.Constant(value_int=0), op.Squeeze(batch), op.Constant(value_int=1))
    so_far = op.CumSum(op.Cast(op.Equal(image, images), to=onnx.TensorProto.INT64), zero)
    row = op.Sub(op.GatherElements(so_far, image, axis=1), one)
    target = op.Concat(image, row, axis=1)
    shape = op.Concat(batch, _ints(rows), axis=0)
    blank = op.Expand(op.Constant(value_float=0.0), shape)
    return (
        op.ScatterND(
            op.Expand(op.Unsqueeze(blank, _ints(2)), op.Concat(shape, _ints(4), axis=0)),
            target,
            op.GatherND(boxes, source),
        ),
        op.ScatterND(blank, target, op.GatherND(scores, source)),
        op.ScatterND(op.Expand(_ints(-1), shape), target, op.GatherND(groups, source)),
    )


def onnx_pool(
    features: Sequence[Any],
    boxes: Any,
    images: Any,
    levels: Any,
    strides: Sequence[int],
    bins: int,
    samples: int,
) -> Any:
    """`pool_regions` in ONNX: RoiAlign of each level's boxes, put where they belong.

    The first box goes through every level, into a row that is dropped: not every runtime bears
    RoiAlign of no box.
    """
    zero, one = _ints(0), _ints(1)
    count = op.Shape(boxes, start=0, end=1)
    channels = op.Shape(features[0], start=1, end=2)
    shape = op.Concat(op.Add(count, one), channels, _ints(bins, bins), axis=0)
    pooled = op.Expand(op.Constant(value_float=0.0), shape)
    for level, (each, stride) in enumerate(zip(features, strides, strict=True)):
        here = op.Squeeze(op.NonZero(op.Equal(levels, _ints(level))), zero)
        source = op.Concat(here, zero, axis=0)
        target = op.Unsqueeze(op.Concat(here, count, axis=0), one)
        found = op.RoiAlign(
            each,
            op.Gather(boxes, source, axis=0),
            op.Gather(images, source, axis=0),
            coordinate_transformation_mode='half_pixel',
            mode='avg',
            output_height=bins,
            output_width=bins,
            sampling_ratio=samples,
            spatial_scale=1 / stride,
        )
        pooled = op.ScatterND(pooled, target, found)
    return op.Slice(pooled, zero, _ints(-1), zero)


def onnx_adaptive_pool(self: Any, output_size: Sequence[int]) -> Any:
    """Torch's ``adaptive_avg_pool2d``, for torch.onnx writes it for the traced size alone."""
    rows, columns = (_averages(op.Shape(self, start=2 + i, end=3 + i), n)
                     for i, n in enumerate(output_size))  # fmt: skip
    return op.MatMul(op.MatMul(rows, self), op.Transpose(columns, perm=[1, 0]))


def _averages(size: Any, bins: int) -> Any:
    """The matrix (bins, size) that averages the pixels of each bin, which may overlap."""
    one = _ints(1)
    edges = op.Mul(_ints(*range(bins + 1)), size)
    start = op.Div(op.Slice(edges, _ints(0), _ints(bins)), _ints(bins))
    upper = op.Slice(edges, one, _ints(bins + 1))
    end = op.Div(op.Add(upper, _ints(bins - 1)), _ints(bins))
    pixels = op.Range(op.Constant(value_int=0), op.Squeeze(size), op.Constant(value_int=1))
    after = op.GreaterOrEqual(pixels, op.Unsqueeze(start, one))
    inside = op.And(after, op.Less(pixels, op.Unsqueeze(end, one)))
    count = op.Unsqueeze(op.Sub(end, start), one)
    floats = onnx.TensorProto.FLOAT
    return op.Div(op.Cast(inside, to=floats), op.Cast(count, to=floats))


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=values)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.adaptive_avg_pool2d.default: onnx_adaptive_pool,
    torch.ops.poolformer_dense.nms_by_group.default: onnx_nms,
    torch.ops.poolformer_dense.pool_regions.default: onnx_pool,
}
