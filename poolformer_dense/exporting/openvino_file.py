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

# What a quantized model computes in 8 bits; all else, such as boxes from deltas, in float32.
_QUANTIZED = frozenset({'Convolution', 'GroupConvolution', 'ConvolutionBackpropData', 'MatMul'})


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
    for key, value in metadata.items():
        converted.set_rt_info(json.dumps(value), ['poolformer_dense', key])
    return converted


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
    """Return a model whose convolutions and matrix products compute in 8-bit integers.

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
        ignored_scope=nncf.IgnoredScope(names=_after_the_heads(model), validate=False),
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


def _after_the_heads(model: Any) -> list[str]:
    """Name the operations on boxes and scores: all that nothing quantized comes after or in.

    Going back from the results, the first products met are the last of the network.
    """
    names, waiting, seen = [], list(model.get_results()), set()
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        if node.get_type_name() in _QUANTIZED:
            continue
        if node.get_type_name() not in ('Result', 'Constant', 'Parameter'):
            names.append(node.get_friendly_name())
        waiting += [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return names
