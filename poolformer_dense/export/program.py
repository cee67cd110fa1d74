"""Tracing a graph with torch.export, and the file that holds the trace."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import parametrize

from ..errors import UserError
from .graphs import Graph

# The shortest side of an image in a dynamic export: what the deepest stage has one pixel for.
SMALLEST = 32


class _Stored(nn.Module):
    """Hands a weight out in float32."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def round_weights(model: nn.Module) -> None:
    """Round the weights of convolutions and linear layers to bfloat16, in place.

    They stay float32 tensors.
    """
    for layer in _layers(model):
        layer.weight.data = layer.weight.data.bfloat16().float()


def store_in_bfloat16(model: nn.Module) -> None:
    """Store the weights of convolutions and linear layers in bfloat16, in place.

    They are cast to float32 where they are used, and all else stays float32: the file has half the
    size, and every runtime that casts can run it.
    """
    for layer in _layers(model):
        layer.weight.data = layer.weight.data.bfloat16()
        # What is handed out has another dtype, which torch calls unsafe.
        parametrize.register_parametrization(layer, 'weight', _Stored(), unsafe=True)


def trace(graph: Graph, size: tuple[int, int], dynamic: bool) -> ExportedProgram:
    """Trace a graph by torch.export.

    Args:
        graph: What to trace.
        size: Height and width of the image; with ``dynamic`` any will do.
        dynamic: Leave batch, height and width open.

    Raises:
        UserError: This torch can't.
    """
    image = torch.zeros(2 if dynamic else 1, 3, *size, dtype=torch.uint8)
    sides = {2: Dim('height', min=SMALLEST), 3: Dim('width', min=SMALLEST)}
    shapes = {'image': {0: Dim('batch'), **sides}} if dynamic else None
    with torch.no_grad(), _one_is_a_size():
        return torch.export.export(graph, (image,), dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _one_is_a_size():
    """Let a trace hold for maps of one pixel too, which torch.export takes as a special case."""
    settings = torch.fx.experimental._config
    if not hasattr(settings, 'backed_size_oblivious'):
        raise UserError(f'exports need torch >= 2.7; this is {torch.__version__}')
    with settings.patch(backed_size_oblivious=True):
        yield


def save_program(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    """Write a ``.pt2`` file whole or not at all, the metadata as its ``metadata.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{os.getpid()}.partial.pt2')
    try:
        torch.export.save(program, partial, extra_files={'metadata.json': json.dumps(metadata)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_program(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return what a ``.pt2`` file holds: a module that maps an image to named tensors, metadata."""
    extra = {'metadata.json': ''}
    program = torch.export.load(path, extra_files=extra)
    # A guard that newer versions of torch check refuses images whose last level has one pixel,
    # for the sake of memory layouts alone: the graph holds for them, as the comparison shows.
    known = inspect.signature(program.module).parameters
    module = program.module(**({'check_guards': False} if 'check_guards' in known else {}))
    return module, json.loads(extra['metadata.json'])


def _layers(model: nn.Module):
    return [each for each in model.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
