"""One contestant's task, its memory and its time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.benchmark import timer

from ...errors import UserError
from ..kept_memory import kept_for_backward

TASKS = ('infer', 'train')
FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
# The largest difference from the reference in float32, over the largest element.
TOLERANCE = {'float32': 1e-4, 'float16': 2e-2, 'bfloat16': 1.5e-1}


def select_device(name: str | None = None) -> str:
    """Make a device the current one, and return its name.

    Args:
        name: As torch names it; if not given a GPU, or the CPU where there is none.

    Raises:
        UserError: There is no such device.
    """
    gpus = [f'cuda:{i}' for i in range(torch.cuda.device_count())]
    known = [*(['cuda'] if gpus else []), 'cpu', *gpus]
    name = name or known[0]
    if name not in known:
        found = f'torch {torch.__version__} finds {", ".join(known)}'
        raise UserError(f'--device {name}: there is none here; {found}')
    if name != 'cpu':
        torch.cuda.set_device(torch.device(name).index or 0)
    return name


@dataclass(frozen=True)
class Workload:
    """What every contestant does.

    Attributes:
        preset: A name of `backbones.presets.PRESETS`.
        task: 'infer' is a forward; 'train' is a forward and the backward of fixed gradients of
            all four features, starting without gradients of parameters.
        dtype: A key of `TOLERANCE`; below float32 it is autocast over weights in float32.
        size: Height and width of the images in pixels.
        batch: Number of images.
        device: As torch names it.
    """

    preset: str
    task: str = 'infer'
    dtype: str = 'float32'
    size: tuple[int, int] = (512, 512)
    batch: int = 2
    device: str = 'cpu'

    @property
    def training(self) -> bool:
        return self.task == 'train'

    @property
    def on_cuda(self) -> bool:
        return torch.device(self.device).type == 'cuda'

    @property
    def backend(self) -> str:
        """Of our model: the kernels for a GPU are opt-in."""
        return 'triton' if self.on_cuda else 'auto'

    @property
    def product_dtype(self) -> torch.dtype:
        """Of convolutions and other matrix products."""
        return getattr(torch, self.dtype)

    def autocast(self) -> torch.autocast:
        """Return the context of forward."""
        lower = self.product_dtype if self.dtype != 'float32' else None
        return torch.autocast(torch.device(self.device).type, lower, enabled=lower is not None)

    def __str__(self) -> str:
        height, width = self.size
        dtype = self.dtype if self.dtype == 'float32' else f'{self.dtype} autocast'
        return f'{self.preset} {self.task}, {self.batch}x3x{height}x{width}, {dtype}'


@dataclass(frozen=True)
class Row:
    """What was measured of a contestant.

    Attributes:
        name: Contestants of one name differ in their memory format; the fastest stands for them.
        kind: 'ours', 'peer', or 'part' for a part of the work on its own.
        memory_format: A key of `FORMATS`.
        seconds: Of one task, for each round.
        memory: Bytes, as `Task.memory` counts; None if it does not apply.
        difference: From the reference, as in `TOLERANCE`; None for a part.
        nbytes: What a part that moves data reads and writes; None for the others.
    """

    name: str
    kind: str
    memory_format: str
    seconds: tuple[float, ...] = ()
    memory: int | None = None
    difference: float | None = None
    nbytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Outcome:
    """What a task computes the first time.

    Attributes:
        values: The features; in training also the gradient of the first convolution, which
            depends on all of backward.
        trained: Elements of the parameters that got a gradient.
    """

    values: Sequence[Tensor]
    trained: int

    def difference(self, truth: Outcome) -> float:
        """Return the largest difference from the truth, over the truth's largest element.

        Raises:
            ValueError: They are not of the same shapes, or other parameters are trained.
        """
        shapes, expected = ([tuple(x.shape) for x in each.values] for each in (self, truth))
        if shapes != expected:
            raise ValueError(f'it computes tensors of shapes {shapes}, not {expected}')
        if self.trained != truth.trained:
            raise ValueError(f'it trains {self.trained:,} parameters, not {truth.trained:,}')
        pairs = zip(self.values, truth.values, strict=True)
        return max(((x.float() - y).abs().max() / y.abs().max()).item() for x, y in pairs)


class Task:
    """A model that does a workload; calling it does it once.

    Args:
        model: Maps an image to its features; moved to the workload's device and mode.
        image: (B, 3, H, W).
        memory_format: A key of `FORMATS`, of weights and image.
        workload: What to do.
        compiled: Whether by ``torch.compile``.
    """

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        memory_format: str,
        workload: Workload,
        compiled: bool = False,
    ) -> None:
        layout: Any = {'memory_format': FORMATS[memory_format]}
        self.model = model.to(workload.device, **layout)
        self.model.train(workload.training)  # some peers' train() returns None
        self.run = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.image = image.to(workload.device, **layout)
        self.workload = workload
        self.gradients: list[Tensor] = []

    def __call__(self) -> None:
        features = self.forward()
        if self.workload.training:
            torch.autograd.backward(features, self.gradients)
            self.model.zero_grad(set_to_none=True)

    def forward(self) -> Sequence[Tensor]:
        """Return the features; with a graph in training."""
        with torch.set_grad_enabled(self.workload.training), self.workload.autocast():
            return self.run(self.image)

    def outcome(self) -> Outcome:
        """Do the task for the first time, and return what it computed."""
        features = self.forward()
        values, trained = [x.detach() for x in features], 0
        if self.workload.training:
            # In the layout of the features, as the layers after a backbone return them.
            generator = torch.Generator().manual_seed(0)
            self.gradients = [
                torch.empty_like(x).copy_(torch.randn(x.shape, generator=generator))
                for x in features
            ]
            torch.autograd.backward(features, self.gradients)
            trained = sum(p.numel() for p in self.model.parameters() if p.grad is not None)
            stem = next(m for m in self.model.modules() if isinstance(m, nn.Conv2d))
            if stem.weight.grad is not None:
                values.append(stem.weight.grad)
            self.model.zero_grad(set_to_none=True)
        return Outcome(values, trained)

    def memory(self) -> int | None:
        """Return the bytes that the task needs.

        Returns:
            On CUDA the peak of weights, image and all that one task allocates. Elsewhere what
            forward keeps for backward, without the weights; None for inference.
        """
        if self.workload.on_cuda:
            device = self.image.device
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            self()
            torch.cuda.synchronize(device)
            own = [*self.model.parameters(), *self.model.buffers(), self.image]
            growth = torch.cuda.max_memory_allocated(device) - before
            return growth + sum(tensor.untyped_storage().nbytes() for tensor in own)
        if self.workload.training:
            with kept_for_backward(self.model) as total:
                features = self.forward()  # kept: the graph lives until it is counted
                nbytes = total()
            del features
            return nbytes
        return None


def time_in_turn(
    tasks: Sequence[Callable[[], object]], rounds: int, turn: float = 0.5
) -> list[tuple[float, ...]]:
    """Time tasks in turn, A B A B, so that other load on the machine affects all of them.

    Each turn begins with a call that does not count. A training or a service repeats the same work,
    so its caches and allocator are warm, and not in the state that another model left.

    Args:
        tasks: What to call.
        rounds: How many turns each has, after one to warm up.
        turn: A turn repeats the task until it lasts this long, in seconds.

    Returns:
        For each task, seconds of one call in each round. Work on a GPU is waited for.
    """
    console = Console(stderr=True)
    repeats = []
    for task in track(tasks, 'warm-up', console=console):
        task()
        repeats.append(max(1, math.ceil(turn / _time(task, 1))))
    seconds: list[tuple[float, ...]] = [()] * len(tasks)
    for place in track([*range(len(tasks))] * rounds, f'{rounds} rounds', console=console):
        tasks[place]()
        seconds[place] += (_time(tasks[place], repeats[place]),)
    return seconds


def _time(task: Callable[[], object], repeats: int) -> float:
    start = timer()  # waits for the GPU
    for _ in range(repeats):
        task()
    return (timer() - start) / repeats
