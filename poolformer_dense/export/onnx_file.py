"""The ONNX file of a traced graph: names for sizes, NMS on demand, metadata."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.compose import merge_models
from torch.export import ExportedProgram

from ..errors import UserError
from ..predict.predictions import write_whole

# Boxes of different groups (labels, or levels) are moved apart, so that one greedy pass does all,
# as mmcv's batched_nms does. What it selects is put into rows by image; the rest is 0, and -1.
_NMS = """
<ir_version: 8, opset_import: ["" : {opset}]>
nms (float[batch, k, 4] boxes, float[batch, k] scores, int64[batch, k] groups)
    => (float[batch, n, 4] kept_boxes, float[batch, n] kept_scores, int64[batch, n] kept_groups)
<
  int64[1] most = {{{most}}}, float iou = {{{iou}}}, float[1] least = {{1e-12}}, float unit = {{1}},
  int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64[2] sides = {{1, 2}},
  int64[1] at0 = {{0}}, int64[1] at1 = {{1}}, int64[1] at2 = {{2}}, int64[1] four = {{4}}
>
{{
  farthest = ReduceMax <keepdims = 1> (boxes, sides)
  step = Add (farthest, unit)
  group = Cast <to = 1> (groups)
  group_column = Unsqueeze (group, at2)
  offset = Mul (group_column, step)
  apart = Add (boxes, offset)
  by_class = Unsqueeze (scores, at1)
  selected = NonMaxSuppression (apart, by_class, most, iou, least)
  image = Gather <axis = 1> (selected, at0)
  box = Gather <axis = 1> (selected, at2)
  source = Concat <axis = 1> (image, box)
  shape = Shape (scores)
  batch_size = Gather <axis = 0> (shape, zero)
  images = Range (zero, batch_size, one)
  is_of = Equal (image, images)
  is_one = Cast <to = 7> (is_of)
  so_far = CumSum (is_one, zero)
  rank = GatherElements <axis = 1> (so_far, image)
  place = Sub (rank, one)
  target = Concat <axis = 1> (image, place)
  batch_only = Gather <axis = 0> (shape, at0)
  rows = Concat <axis = 0> (batch_only, most)
  rows4 = Concat <axis = 0> (rows, four)
  no_boxes = ConstantOfShape <value = float[1] {{0}}> (rows4)
  no_scores = ConstantOfShape <value = float[1] {{0}}> (rows)
  no_groups = ConstantOfShape <value = int64[1] {{-1}}> (rows)
  selected_boxes = GatherND (boxes, source)
  selected_scores = GatherND (scores, source)
  selected_groups = GatherND (groups, source)
  kept_boxes = ScatterND (no_boxes, target, selected_boxes)
  kept_scores = ScatterND (no_scores, target, selected_scores)
  kept_groups = ScatterND (no_groups, target, selected_groups)
}}
"""


def convert(program: ExportedProgram, names: Sequence[str]) -> onnx.ModelProto:
    """Convert a trace to ONNX.

    Args:
        program: From `poolformer_dense.export.program.trace`.
        names: Of the graph's outputs, in order.
    """
    # The exporter says once for each of its torchvision operators that torchvision is not there.
    logger = logging.getLogger('torch.onnx._internal.exporter._registration')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            converted = torch.onnx.export(
                program,
                (),
                input_names=['image'],
                output_names=list(names),
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    model = converted.model_proto
    _name_sizes(model)
    return model


def _name_sizes(model: onnx.ModelProto) -> None:
    """Call open sizes batch, height and width, instead of by torch's symbols and formulas."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    own = {}
    for dim, name in zip(dims, ('batch', '', 'height', 'width'), strict=True):
        if dim.dim_param:
            own[dim.dim_param] = dim.dim_param = name
    for output in model.graph.output:
        for axis, dim in enumerate(output.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.dim_param = own.get(dim.dim_param, f'{output.name}_{axis}')
    # The shapes of what lies between are given in the old names; a runtime infers them.
    del model.graph.value_info[:]


def append_nms(model: onnx.ModelProto, group: str, settings: Mapping[str, Any]) -> onnx.ModelProto:
    """Return a model whose ``boxes``, ``scores`` and groups have gone through NMS.

    They then have ``max_per_img`` rows by image, by falling score; rows without a box have the
    score 0 and the group -1.

    Args:
        model: One with these three outputs.
        group: The output whose equals compete: labels, or levels.
        settings: mmdet's ``test_cfg``.

    Raises:
        UserError: The config asks for another NMS.
    """
    nms = settings['nms']
    if nms.get('type', 'nms') != 'nms' or nms.get('class_agnostic'):
        raise UserError(f'--nms: ONNX has no {dict(nms)}; export without it')
    opset = next(each.version for each in model.opset_import if each.domain == '')
    text = _NMS.format(opset=opset, most=settings['max_per_img'], iou=nms['iou_threshold'])
    tail = onnx.parser.parse_model(text)
    tail.ir_version = model.ir_version
    kept = dict(boxes='kept_boxes', scores='kept_scores')
    others = [each.name for each in model.graph.output if each.name not in (*kept, group)]
    merged = merge_models(
        _renamed(model, {name: f'{name}_before_nms' for name in (*kept, group)}),
        _renamed(tail, {new: old for old, new in {**kept, group: 'kept_groups'}.items()}, 'nms_'),
        io_map=[
            ('boxes_before_nms', 'nms_boxes'),
            ('scores_before_nms', 'nms_scores'),
            (f'{group}_before_nms', 'nms_groups'),
        ],
        outputs=['boxes', 'scores', group, *others],
    )
    return merged


def _renamed(model: onnx.ModelProto, names: Mapping[str, str], prefix: str = '') -> onnx.ModelProto:
    """Return a copy with other names of values, and a prefix for all that get none."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)

    def name(old: str) -> str:
        return names.get(old, f'{prefix}{old}' if old else old)

    graph = copied.graph
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = name(value.name)
    for node in graph.node:
        node.name = f'{prefix}{node.name}' if node.name else node.name
        node.input[:] = [name(each) for each in node.input]
        node.output[:] = [name(each) for each in node.output]
    return copied


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Take the other outputs out of a model, in place; they are computed on the way anyway."""
    kept = [each for each in model.graph.output if each.name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def save_onnx(model: onnx.ModelProto, path: Path, metadata: Mapping[str, Any]) -> None:
    """Check a model and write it with its metadata, whole or not at all.

    Raises:
        UserError: It is larger than the 2 GB that one ONNX file can have.
    """
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=key, value=text)
    if model.ByteSize() >= 2**31:
        raise UserError('the model is larger than 2 GB; try --dtype bfloat16')
    onnx.checker.check_model(model)
    write_whole(path, model.SerializeToString())
