"""The files of OpenVINO: converted from ONNX, and quantized to 8-bit integers."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as operators

from ..runtimes.outputs import Array
from ..runtimes.runtime import Run, run_compiled
from ..runtimes.signal_stack import kept_signal_stack

_CONVOLUTIONS = frozenset({'Convolution', 'GroupConvolution', 'ConvolutionBackpropData'})
# What a weight may go through before its product.
_CASTS = frozenset({'Convert', 'Reshape', 'Transpose'})


def convert_model(model: Path, metadata: Mapping[str, Any]) -> Any:
    """Return an ONNX file as a model of OpenVINO, with its description inside.

    Args:
        model: The ONNX file.
        metadata: What is written into it by key, as JSON.
    """
    converted = openvino.convert_model(model)
    for node in converted.get_ops():
        if node.get_type_name() == 'NonMaxSuppression':
            # Compiling a quantized model for CPUs forgets that a box has 4 numbers, and fails.
            boxes = operators.reshape(node.input_value(0), np.array([0, -1, 4]), True)
            node.input(0).replace_source_output(boxes.output(0))
    converted.validate_nodes_and_infer_types()
    return add_metadata(converted, metadata)


def add_metadata(model: Any, metadata: Mapping[str, Any]) -> Any:
    """Write into a model what it says of itself, by key, as JSON; return it."""
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), ['poolformer_dense', key])
    return model


def read_model(path: Path) -> Any:
    """Return what `write_openvino` wrote."""
    return openvino.Core().read_model(path)


def write_openvino(model: Any, path: Path) -> None:
    """Write a model as ``.xml`` with a ``.bin`` beside it; the old pair stays if this fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.stem}-') as folder:
        written = Path(folder, path.name)
        openvino.save_model(model, written, compress_to_fp16=False)
        for suffix in ('.bin', '.xml'):
            os.replace(written.with_suffix(suffix), path.with_suffix(suffix))


def quantize(
    model: Any,
    images: Sequence[Array],
    evaluate: Callable[[Run], float] | None = None,
    max_drop: float | None = None,
) -> Any:
    """Return a model whose network computes in 8-bit integers, and all on boxes in float32.

    Args:
        model: Of `convert_model`.
        images: What activations are scaled by, (1, 3, H, W) uint8, RGB.
        evaluate: Returns the metric of a model, from 0 to 1.
        max_drop: By how much the metric may fall; layers stay in float32 until it does not fall
            more. None does not look at it.
    """
    import nncf

    nncf.set_log_level(40)
    data = nncf.Dataset(list(images))
    settings: dict[str, Any] = dict(
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=_on_boxes(model), validate=False),
    )
    with kept_signal_stack() as restore_signal_stack:
        if evaluate is None or max_drop is None:
            return nncf.quantize(model, data, **settings)

        def validate(candidate: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
            restore_signal_stack()
            metric = evaluate(run_compiled(candidate))
            return metric, [metric for _ in items]

        # The metric is of all data at once, so for NNCF they are one item: for each item it would
        # evaluate all. In several threads it would compile models while another one is evaluated.
        return nncf.quantize_with_accuracy_control(
            model,
            data,
            nncf.Dataset(['all']),
            validate,
            max_drop=max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                num_ranking_workers=1
            ),
            **settings,
        )


def _on_boxes(model: Any) -> list[str]:
    """Name the operations on boxes, scores and pasted masks, which need float32.

    They are what comes between the results, or the boxes that regions are pooled by, and the last
    products with weights before them.
    """
    waiting = list(model.get_results())
    # A region's image, too: it is what `NonZero` finds.
    waiting += [
        node.input_value(i).get_node()
        for node in model.get_ops()
        if node.get_type_name() == 'ROIAlign'
        for i in (1, 2)
    ]
    names, seen = [], set()
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        # The sizes of a map say nothing of what is in it.
        if name in seen or node.get_type_name() == 'ShapeOf' or _has_weights(node):
            continue
        seen.add(name)
        if node.get_type_name() not in ('Result', 'Constant', 'Parameter'):
            names.append(name)
        waiting += [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return names


def _has_weights(node: Any) -> bool:
    """Whether a node is a convolution or a product with a constant matrix."""
    if node.get_type_name() in _CONVOLUTIONS:
        return True
    return node.get_type_name() == 'MatMul' and any(
        _is_constant(node.input_value(i).get_node()) for i in range(2)
    )


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in _CASTS:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == 'Constant')
