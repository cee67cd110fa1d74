"""From a workload to measured rows: who takes part, that all do the same, and their turns."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from backbones import MetaFormer
from backbones.presets import PRESETS

from ...errors import UserError
from .floors import floors
from .peers import PEERS, PeerUnavailable
from .task import FORMATS, TOLERANCE, Outcome, Row, Task, Workload, time_in_turn

COMPILE = 'compile'


@dataclass(frozen=True)
class Contestant:
    """A model that takes part, before it is built.

    Attributes:
        row: Its name, kind and memory format.
        build: Builds the model for matrix products in a dtype.
        compiled: As for `Task`.
    """

    row: Row
    build: Callable[[torch.dtype], nn.Module]
    compiled: bool = False

    def task(self, image: Tensor, workload: Workload) -> Task:
        """Build the model and give it its task."""
        model = self.build(workload.product_dtype)
        return Task(model, image, self.row.memory_format, workload, self.compiled)


def compete(
    workload: Workload, against: Sequence[str], rounds: int, turn: float = 0.5
) -> tuple[list[Row], list[str]]:
    """Measure our backbone, others, and parts of the work, in turn.

    Args:
        workload: What all do.
        against: Names of `peers.PEERS`, and 'compile' for what ``torch.compile`` makes of them and
            of our reference.
        rounds: How many times each is measured.
        turn: As for `time_in_turn`.

    Returns:
        The rows, ours first, and a line for each peer that can't take part.

    Raises:
        UserError: The preset is unknown or can't process the images, memory is short, the device
            lacks the dtype, or a contestant does not compute what ours does.
    """
    if workload.preset not in PRESETS:
        raise UserError(f'unknown preset {workload.preset}; choose from {", ".join(PRESETS)}')
    torch.manual_seed(0)
    reference = draw_weights(MetaFormer(workload.preset, backend='reference')).to(workload.device)
    image = torch.randn(workload.batch, 3, *workload.size).to(workload.device)
    peers, missing = _peers(workload, reference, against)

    exact = replace(workload, dtype='float32')
    with _in_one_line(str(exact)), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        truth = Task(copy.deepcopy(reference), image, 'contiguous', exact).outcome()
    rows: list[Row] = []
    tasks: list[Callable[[], object]] = []
    contestants = [*_ours(workload, reference), *peers]
    for each in track(contestants, 'same function?', console=Console(stderr=True)):
        with _in_one_line(f'{each.row.name} ({each.row.memory_format}) at {workload}'):
            if workload.dtype != 'float32' and not each.compiled:
                # A small mistake can't hide there behind rounding.
                _difference(each.task(image, exact), truth)
            task = each.task(image, workload)
            difference = _difference(task, truth)
            rows.append(replace(each.row, memory=task.memory(), difference=difference))
        tasks.append(task)
    for row, part in floors(reference, image, workload):
        rows.append(row)
        tasks.append(part)

    seconds = time_in_turn(tasks, rounds, turn)
    torch.compiler.reset()  # the next workload starts without this one's graphs
    return [replace(row, seconds=turns) for row, turns in zip(rows, seconds, strict=True)], missing


@torch.no_grad()
def draw_weights(model: MetaFormer) -> MetaFormer:
    """Draw weights that keep features of order 1 and let every block show in them."""
    for name, parameter in model.named_parameters():
        if 'layer_scale' in name:
            parameter.fill_(0.1)
        elif parameter.ndim > 1 and parameter.requires_grad:  # a random mixer's matrix is frozen
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def _ours(workload: Workload, reference: MetaFormer) -> list[Contestant]:
    def build(**options: Any) -> MetaFormer:
        model = MetaFormer(workload.preset, backend=workload.backend, **options)
        model.load_state_dict(reference.state_dict())
        return model

    builds: dict[str, Callable[[torch.dtype], nn.Module]] = {'ours': lambda _: build()}
    if workload.training:
        builds["ours, recompute='mlp'"] = lambda _: build(recompute='mlp')
    else:
        builds['ours, fused'] = lambda _: build().fuse()
        if workload.dtype != 'float32':
            builds[f'ours, fused to {workload.dtype}'] = lambda dtype: build().fuse(dtype)
    return [Contestant(Row(name, 'ours', 'contiguous'), call) for name, call in builds.items()]


def _peers(
    workload: Workload, reference: MetaFormer, against: Sequence[str]
) -> tuple[list[Contestant], list[str]]:
    """Return the others in both memory formats, and a line for each that can't take part."""
    named: list[tuple[str, nn.Module, bool]] = []
    missing = []
    for name in against:
        if name == COMPILE:
            continue
        try:
            peer = PEERS[name](workload.preset, reference)
        except PeerUnavailable as error:
            missing.append(str(error))
            continue
        named.append((name, peer, False))
        if COMPILE in against and name != 'reference':
            named.append((f'{name}, compiled', peer, True))
    if COMPILE in against:
        named.append(('reference, compiled', reference, True))
    contestants = [
        Contestant(Row(name, 'peer', memory_format), partial(_copy, model), compiled)
        for name, model, compiled in named
        for memory_format in FORMATS
    ]
    return contestants, missing


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model)  # lower dtypes are autocast over it


def _difference(task: Task, truth: Outcome) -> float:
    """Return how far a task's outcome is from the truth, or raise ValueError."""
    difference = task.outcome().difference(truth)
    workload = task.workload
    # cuDNN's default for convolutions in float32 has the mantissa of float16.
    tf32 = workload.on_cuda and torch.backends.cudnn.allow_tf32 and workload.dtype == 'float32'
    tolerance = TOLERANCE['float16' if tf32 else workload.dtype]
    if not difference <= tolerance:
        raise ValueError(
            f'it does not compute what our reference does: in {workload.dtype} they differ by '
            f'{difference:.1e} of the largest element, beyond {tolerance}; different functions '
            'are not compared'
        )
    return difference


@contextlib.contextmanager
def _in_one_line(place: str) -> Iterator[None]:
    """Turn an error of torch (memory, dtype, size, compiler) into one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = next(filter(None, str(error).splitlines()), type(error).__name__)
        raise UserError(f'{place}: {reason}') from error
