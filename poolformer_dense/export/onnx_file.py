"""The ONNX file of a traced graph."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxscript
import torch
from torch.export import ExportedProgram

from ..errors import UserError
from ..predict.results import write_whole
from .parity import Array, Run
from .program import OPEN_SIZES

# The types of its arguments are narrower than those of its results.
op: Any = onnxscript.opset18


def write_onnx(
    program: ExportedProgram, outputs: Sequence[str], path: Path, metadata: Mapping[str, Any]
) -> Run:
    """Write an ONNX file whole or not at all; return a function that runs it.

    The function also returns the raw outputs, of the same graph before they were left out.

    Args:
        program: From `poolformer_dense.export.program.trace`.
        outputs: The names of the first outputs, which the file keeps.
        path: The file.
        metadata: What is written into it by key, as JSON unless it is text.

    Raises:
        UserError: The model is larger than the 2 GB that one ONNX file can have.
    """
    model = to_onnx(program, dict(image=OPEN_SIZES))
    if model.ByteSize() >= 2**31:
        raise UserError('the model is larger than 2 GB; try --dtype bfloat16')
    whole = _session(model)
    del model.graph.output[len(outputs) :]
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(model)
    write_whole(path, model.SerializeToString())
    written = _session(path)
    raw = [each.name for each in whole.get_outputs()][len(outputs) :]

    def run(images: Array) -> dict[str, Array]:
        found = dict(zip(outputs, written.run(outputs, dict(image=images)), strict=True))
        return found | dict(zip(raw, whole.run(raw, dict(image=images)), strict=True))

    return run


def to_onnx(program: ExportedProgram, open_sizes: dict[str, dict[int, str]]) -> onnx.ModelProto:
    """Convert a trace of a module that returns a dictionary to ONNX.

    Args:
        program: From `poolformer_dense.export.program.trace`.
        open_sizes: The inputs' names, and names of their dimensions where these are open.
    """
    arguments, _ = program.example_inputs
    names = list(program.module()(*arguments))
    with _quiet():
        converted: Any = torch.onnx.export(
            program,
            (),
            input_names=list(open_sizes),
            output_names=names,
            dynamic_shapes=open_sizes,
            custom_translation_table={torch.ops.poolformer_dense.nms_by_group.default: _onnx_nms},
            dynamo=True,
            verbose=False,
        )
    model: onnx.ModelProto = converted.model_proto
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide that torch.onnx misses torchvision, which is not needed, and its own deprecations."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def _onnx_nms(boxes: Any, scores: Any, groups: Any, iou_threshold: float, rows: int) -> Any:
    """`nms_by_group` in ONNX, for torch.onnx, which goes by the names of the parameters.

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


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=values)


def _session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model.SerializeToString(),
        settings,
        providers=['CPUExecutionProvider'],
    )
