"""From a workload to measured rows: who takes part, that all do the same, and their turns."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from backbones import MetaFormer
from backbones.presets import PRESETS
from poolformer_dense.errors import UserError

from .measure import FORMATS, TOLERANCE, Outcome, Row, Task, Workload, time_in_turn
from .parts import BlockInputs, MatrixProducts, Shapes
from .peers import PeerUnavailable, build_peer

COMPILE = 'compile'


@dataclass(frozen=True)
class Entry:
    """A contestant before it is built.

    Attributes:
        name: As in `Row`.
        kind: As in `Row`.
        memory_format: As in `Row`.
        build: Builds the model for matrix products in a dtype.
        compiled: As for `Task`.
    """

    name: str
    kind: str
    memory_format: str
    build: Callable[[torch.dtype], nn.Module]
    compiled: bool = False

    def task(self, image: Tensor, workload: Workload) -> Task:
        """Build the model and give it its task."""
        model = self.build(workload.product_dtype)
        return Task(model, image, self.memory_format, workload, self.compiled)


def compete(workload: Workload, against: Sequence[str], rounds: int) -> tuple[list[Row], list[str]]:
    """Measure our backbone, others, and parts of the work, in turn.

    Args:
        workload: What all do.
        against: Names of `peers.PEERS`, and 'compile' for what ``torch.compile`` makes of them and
            of our reference.
        rounds: How many times each is measured.

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
    entries, missing = _entries(workload, reference, against)

    truth = _truth(reference, image, workload)
    tasks, facts = {}, {}
    for entry in track(entries, 'same function?', console=Console(stderr=True)):
        key = entry.name, entry.memory_format
        with _mendable(f'{entry.name} ({entry.memory_format}) at {workload}'):
            if workload.dtype != 'float32' and not entry.compiled:
                # A small mistake can't hide there behind rounding.
                _agreeing(entry.task(image, replace(workload, dtype='float32')), truth)
            tasks[key] = entry.task(image, workload)
            difference = _agreeing(tasks[key], truth)
            memory = tasks[key].memory()
        facts[key] = dict(kind=entry.kind, memory=memory, difference=difference)
    for name, memory_format, part, nbytes in _parts(workload, reference, image):
        tasks[name, memory_format] = part
        facts[name, memory_format] = dict(kind='part', nbytes=nbytes)

    seconds = time_in_turn(tasks, rounds)
    torch.compiler.reset()  # the next workload starts anew
    rows = [
        Row(
            name=name,
            memory_format=memory_format,
            seconds=tuple(turns),
            **facts[name, memory_format],
        )
        for (name, memory_format), turns in seconds.items()
    ]
    return rows, missing


@torch.no_grad()
def draw_weights(model: MetaFormer) -> MetaFormer:
    """Draw weights that keep features of order 1 and let every block show in them."""
    for name, parameter in model.named_parameters():
        if 'layer_scale' in name:
            parameter.fill_(0.1)
        elif parameter.ndim > 1 and parameter.requires_grad:  # a random mixer's matrix is frozen
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def _entries(
    workload: Workload, reference: MetaFormer, against: Sequence[str]
) -> tuple[list[Entry], list[str]]:
    entries = [
        Entry(name, 'ours', 'contiguous', build) for name, build in _ours(workload, reference)
    ]
    missing = []
    for name in against:
        if name == COMPILE:
            continue
        try:
            peer = build_peer(name, workload.preset, reference)
        except PeerUnavailable as error:
            missing.append(str(error))
            continue
        entries += _in_both_formats(name, peer)
        if COMPILE in against and name != 'reference':
            entries += _in_both_formats(f'{name}, compiled', peer, compiled=True)
    if COMPILE in against:
        entries += _in_both_formats('reference, compiled', reference, compiled=True)
    return entries, missing


def _ours(
    workload: Workload, reference: MetaFormer
) -> Iterator[tuple[str, Callable[[torch.dtype], nn.Module]]]:
    def build(**options: str) -> MetaFormer:
        model = MetaFormer(workload.preset, backend=workload.backend, **options)
        model.load_state_dict(reference.state_dict())
        return model

    yield 'ours', lambda _: build()
    if workload.training:
        yield "ours, recompute='mlp'", lambda _: build(recompute='mlp')
        return
    yield 'ours, fused', lambda _: build().fuse()
    if workload.dtype != 'float32':
        yield f'ours, fused to {workload.dtype}', lambda dtype: build().fuse(dtype)


def _in_both_formats(name: str, model: nn.Module, compiled: bool = False) -> list[Entry]:
    return [
        Entry(name, 'peer', memory_format, lambda _: copy.deepcopy(model), compiled)
        for memory_format in FORMATS
    ]


def _truth(reference: MetaFormer, image: Tensor, workload: Workload) -> Outcome:
    exact = replace(workload, dtype='float32')
    with _mendable(str(exact)), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return Task(copy.deepcopy(reference), image, 'contiguous', exact).outcome()


def _agreeing(task: Task, truth: Outcome) -> float:
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


def _parts(
    workload: Workload, reference: MetaFormer, image: Tensor
) -> Iterator[tuple[str, str, Callable[[], None], int | None]]:
    """Name, memory format, what to call, and the bytes it moves."""
    shapes = Shapes(reference, image, workload)
    for memory_format in FORMATS:
        yield (
            'matrix products',
            memory_format,
            MatrixProducts(shapes, memory_format, workload),
            None,
        )
    inputs = BlockInputs(shapes, workload.device)
    if workload.on_cuda and inputs.nbytes:
        yield 'copy of inputs', 'channels_last', inputs.copy, inputs.nbytes
        yield 'pool_mix of inputs', 'channels_last', inputs.mix, inputs.nbytes


@contextlib.contextmanager
def _mendable(place: str) -> Iterator[None]:
    """What torch can't do here (memory, dtype, size, compiler) is one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = next(filter(None, str(error).splitlines()), type(error).__name__)
        raise UserError(f'{place}: {reason}') from error
