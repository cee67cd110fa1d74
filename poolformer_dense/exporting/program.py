"""Tracing a graph with torch.export, and the file that holds the trace."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import parametrize

from ..errors import UserError
from ..predict.results import write_whole
from ..runtimes import SMALLEST
from ..runtimes.program_archive import stripped
from ..runtimes.runtime import Run, open_program
from .base import Graph

# The dimensions of the image that a dynamic export leaves open.
OPEN_SIZES = {0: 'batch', 2: 'height', 3: 'width'}


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


def trace(graph: Graph, size: tuple[int, int] | None) -> ExportedProgram:
    """Trace a graph by torch.export.

    Args:
        graph: What to trace.
        size: Height and width of the image, with a batch of one; None leaves all three open.

    Raises:
        UserError: This torch can't.
    """
    if size is not None:
        image, shapes = torch.zeros(1, 3, *size, dtype=torch.uint8), None
    else:
        image = torch.zeros(2, 3, 5 * SMALLEST, 6 * SMALLEST, dtype=torch.uint8)
        least = {2: SMALLEST, 3: SMALLEST}
        shapes = dict(image={i: Dim(name, min=least.get(i)) for i, name in OPEN_SIZES.items()})
    with torch.no_grad(), _one_is_a_size():
        return torch.export.export(graph, (image,), dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _one_is_a_size() -> Iterator[None]:
    """Let a trace hold for maps of one pixel too, which torch.export takes as a special case."""
    # torch has no public name for this setting.
    settings: Any = torch.fx.experimental._config
    if not hasattr(settings, 'backed_size_oblivious'):
        raise UserError(f'exports need torch >= 2.7; this is {torch.__version__}')
    with settings.patch(backed_size_oblivious=True):
        yield


def write_program(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> Run:
    """Write a ``.pt2`` file whole or not at all; return a function that runs it.

    It holds neither a pickle nor places in source files.

    Args:
        program: From `trace`.
        path: The file.
        metadata: Becomes its ``metadata.json``.
    """
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files={'metadata.json': json.dumps(metadata)})
    write_whole(path, stripped(archive.getvalue()))
    return open_program(path).run


def _layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [each for each in model.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
