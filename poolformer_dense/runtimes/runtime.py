"""Exported files as functions from images to named arrays."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backbones.checkpoints.refusals import Refused

from ..errors import UserError
from . import SUFFIXES
from .outputs import Array
from .program_archive import checked
from .signal_stack import kept_signal_stack

# From images (B, 3, H, W), uint8, RGB, to an export's outputs by name.
Run = Callable[[Array], Mapping[str, Array]]


@dataclass(frozen=True)
class Runtime:
    """A file that can be run.

    Attributes:
        run: Runs it.
        description: What the file says of itself; `export.exporter.describe` wrote it.
        size: Height and width of the images that it takes, one a batch; None if both are open.
    """

    run: Run
    description: Mapping[str, Any]
    size: tuple[int, int] | None


def is_exported(source: str | Path) -> bool:
    """Whether a file's name is that of an export, rather than of a checkpoint."""
    return Path(source).suffix in SUFFIXES.values()


def open_runtime(path: Path, unsafe_load: bool = False, needs_labels: bool = True) -> Runtime:
    """Open an exported file with the runtime for it, on the CPU.

    Args:
        path: A ``.onnx``, ``.xml`` or ``.pt2`` file of tools/export.py.
        unsafe_load: Let torch run what a ``.pt2`` file holds.
        needs_labels: Otherwise a segmentor's ``labels`` are left out where that saves their time:
            of OpenVINO's files.

    Raises:
        UserError: The file or the package for it is missing, it can't be read, or was made by
            something else.
    """
    if not path.is_file():
        raise UserError(f'{path} does not exist')
    if path.suffix == '.pt2':
        runtime = open_program(path, unsafe_load)
    elif path.suffix == '.xml':
        runtime = _open_openvino(path, needs_labels)
    else:
        runtime = _open_onnx(path)
    return runtime


def need(package: str, extra: str) -> None:
    """Say what to install for a runtime that is not there.

    Raises:
        UserError: It is not there.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f'this needs {package}: pip install -r requirements/{extra}.txt '
            f'(or "poolformer-dense[{extra}]")'
        )


def _open_onnx(path: Path) -> Runtime:
    need('onnxruntime', 'export')
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=['CPUExecutionProvider']
        )
    except Exception as error:  # of any class of onnxruntime's own
        raise _unreadable(path, error) from error
    names = [each.name for each in session.get_outputs()]
    description = _description(path, session.get_modelmeta().custom_metadata_map)

    def run(images: Array) -> dict[str, Array]:
        return dict(zip(names, session.run(names, dict(image=images)), strict=True))

    return Runtime(run, description, _fixed(session.get_inputs()[0].shape))


def _open_openvino(path: Path, needs_labels: bool) -> Runtime:
    need('openvino', 'openvino')
    import openvino

    if not path.with_suffix('.bin').is_file():
        raise UserError(f'{path}: its weights, {path.with_suffix(".bin").name}, are not beside it')
    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    texts = {}
    if model.has_rt_info('poolformer_dense'):
        info = model.get_rt_info('poolformer_dense').value
        # Text after reading a file, and a container for it before.
        texts = {name: getattr(value, 'value', value) for name, value in info.items()}
    description = _description(path, texts)
    if not needs_labels and 'align_corners' in description:  # a segmentor's
        for result in model.get_results():
            if 'labels' in result.input(0).get_source_output().get_names():
                model.remove_result(result)
    shape = model.input(0).get_partial_shape()
    size = _fixed([None if each.is_dynamic else each.get_length() for each in shape])
    return Runtime(run_openvino(model), description, size)


def run_openvino(model: Any) -> Run:
    """Compile a model of OpenVINO for the CPU; return a function that runs it."""
    import openvino

    # Some CPUs would compute in bfloat16 otherwise.
    settings = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'}
    with kept_signal_stack():
        return run_compiled(openvino.Core().compile_model(model, 'CPU', settings))


def run_compiled(compiled: Any) -> Run:
    """Return a function that runs a compiled model of OpenVINO."""
    names = [each.get_any_name() for each in compiled.outputs]

    def run(images: Array) -> dict[str, Array]:
        found = compiled.create_infer_request().infer([images], share_inputs=True)
        return {name: found[i] for i, name in enumerate(names)}

    return run


def open_program(path: Path, unsafe_load: bool = False) -> Runtime:
    """Open a program of torch.export; its raw outputs are among the results.

    Args:
        path: The file.
        unsafe_load: Let torch run what it holds.

    Raises:
        UserError: It holds something that is not of an export, or can't be read.
    """
    archive = path.read_bytes()
    try:
        archive = archive if unsafe_load else checked(archive)
    except Refused as refusal:
        raise UserError(
            f'{path} was not loaded: {refusal}; only if you trust its source, add --unsafe-load '
            '(unsafe_load=True)'
        ) from refusal
    extra = {'metadata.json': ''}
    try:
        program = torch.export.load(io.BytesIO(archive), extra_files=extra)
        # A guard refuses images whose last level has one pixel, only because of memory layouts:
        # the graph holds for them, as the comparison shows.
        module = program.module(check_guards=False)
        texts = json.loads(extra['metadata.json'] or '{}')
    except Exception as error:  # whatever a damaged file comes up with
        raise _unreadable(path, error) from error
    description = _description(path, texts)
    shapes = {e.name: e.meta['val'].shape for e in program.graph.nodes if e.op == 'placeholder'}
    if 'image' not in shapes:
        raise UserError(f'{path} takes no image: it is not from tools/export.py')

    def run(images: Array) -> dict[str, Array]:
        with torch.no_grad():
            return {k: v.numpy() for k, v in module(torch.from_numpy(images)).items()}

    size = _fixed([each if type(each) is int else None for each in shapes['image']])
    return Runtime(run, description, size)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f'{path} can not be read: {str(error).strip().splitlines()[0]}')


def _fixed(shape: list[Any]) -> tuple[int, int] | None:
    height, width = shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _description(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of itself: of texts those that are JSON, parsed.

    Raises:
        UserError: Nothing that an export would say.
    """
    parsed = dict(metadata)
    for name, value in metadata.items():
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                parsed[name] = json.loads(value)
    if not str(parsed.get('producer')).startswith('poolformer-dense'):
        raise UserError(f'{path} has no description of itself: it is not from tools/export.py')
    return parsed
