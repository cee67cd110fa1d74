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
import torch
from torch.export import ExportedProgram

from ..errors import UserError
from ..predict.results import write_whole
from ..runtimes.outputs import Array
from ..runtimes.runtime import Run
from .onnx_ops import TRANSLATIONS
from .program import OPEN_SIZES


def write_onnx(
    program: ExportedProgram, outputs: Sequence[str], path: Path, metadata: Mapping[str, Any]
) -> Run:
    """Write an ONNX file whole or not at all; return a function that runs it.

    The function also returns the raw outputs, of the same graph before they were left out.

    Args:
        program: From `poolformer_dense.exporting.program.trace`.
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
        # Asked for no output, it would return them all.
        return found | dict(
            zip(raw, whole.run(raw, dict(image=images)) if raw else [], strict=True)
        )

    return run


def to_onnx(program: ExportedProgram, open_sizes: dict[str, dict[int, str]]) -> onnx.ModelProto:
    """Convert a trace of a module that returns a dictionary to ONNX.

    Args:
        program: From `poolformer_dense.exporting.program.trace`.
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
            custom_translation_table=TRANSLATIONS,
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


def _session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model.SerializeToString(),
        settings,
        providers=['CPUExecutionProvider'],
    )
