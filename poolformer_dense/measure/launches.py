"""What a step asks of a GPU, counted without one: launches, calls of operators, bytes.

Tensors have shapes and no memory (torch's FakeTensorMode). A dispatch mode sees torch's operators,
and Triton's kernels are told instead of launched. Bytes are those that go through memory if each
launch reads every input and writes every output once; the few launches that need more are a table.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backbones import MetaFormer
from backbones.blocks import MetaFormerBlock
from backbones.metaformer import build_block
from backbones.norms import ModifiedLayerNorm
from backbones.ops.operator import IMPLEMENTATIONS
from backbones.presets import PRESETS

# Operators that allocate or rename, and launch nothing.
_NOTHING = re.compile(r'prim::|aten::(new_)?empty|aten::_unsafe_view|aten::promote_types')
# Those that take from a tensor its shape alone.
_LIKE = re.compile(r'aten::(new_|(zeros|ones|full)_like)')
# Kernels of torch on CUDA for what is one operator: statistics, parameters and the map; sums over
# each channel, parameters, the map and the weights.
_KERNELS = {'aten::native_group_norm': 3, 'aten::native_group_norm_backward': 4}


@dataclass
class Count:
    """What was counted.

    Attributes:
        launches: Of kernels.
        operators: Calls of torch's operators from Python or autograd; an operator of ours is one.
        nbytes: Read and written.
    """

    launches: int = 0
    operators: int = 0
    nbytes: int = 0

    def __sub__(self, other: Count) -> Count:
        return Count(
            self.launches - other.launches,
            self.operators - other.operators,
            self.nbytes - other.nbytes,
        )

    def __add__(self, other: Count) -> Count:
        return Count(
            self.launches + other.launches,
            self.operators + other.operators,
            self.nbytes + other.nbytes,
        )


@dataclass
class LaunchCounter(TorchDispatchMode):
    """Counts while it is entered."""

    total: Count = field(default_factory=Count)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._inside = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.name().split('.')[0]
        if self._inside and not name.startswith('prim::'):
            # Composite operators come here as they were called.
            with self:
                out = function.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        launches = not (function.is_view or _NOTHING.match(name))
        self.total.operators += not self._inside and launches
        if name in IMPLEMENTATIONS:
            return self._look_inside(IMPLEMENTATIONS[name], args)
        out = function(*args, **(kwargs or {}))
        if launches:
            count, nbytes = _cost(name, args, kwargs or {}, out)
            self._add(name, count, nbytes)
        return out

    def _look_inside(self, run: Callable[..., Any], args: Any) -> Any:
        self._inside = True
        try:
            with self:
                return run(*args)
        finally:
            self._inside = False

    def observe(self, kernel: Any, arguments: tuple[Any, ...], _: Callable[[], None]) -> None:
        """Count a kernel of Triton's."""
        self._add(kernel.fn.__name__, 1, kernel_bytes(kernel, arguments))

    def _add(self, name: str, launches: int, nbytes: int) -> None:
        self.names.append(name)
        self.total.launches += launches
        self.total.nbytes += nbytes


def kernel_bytes(kernel: Any, arguments: tuple[Any, ...]) -> int:
    """Bytes of a kernel of Triton's: what it stores to is written, all else is read."""
    source = inspect.getsource(kernel.fn)
    stored = set(re.findall(r'tl\.store\(\s*(\w+)', source))
    loaded = set(re.findall(r'tl\.load\(\s*(\w+)', source))
    names = inspect.signature(kernel.fn).parameters
    nbytes = 0
    for name, argument in zip(names, arguments, strict=False):
        if isinstance(argument, Tensor):
            both = name in stored and name in loaded
            nbytes += _nbytes([argument]) * (2 if both else 1)
    return nbytes


def _cost(name: str, args: Any, kwargs: dict[str, Any], out: Any) -> tuple[int, int]:
    """Launches and bytes of one of torch's operators."""
    read, written = [] if _LIKE.match(name) else _tensors((args, kwargs)), _tensors(out)
    nbytes = _nbytes(read) + _nbytes(written)
    if name == 'aten::convolution' and args[2] is not None:  # the bias is a pass of its own
        return 2, nbytes + 2 * _nbytes(written)
    if name == 'aten::convolution_backward':  # each gradient reads what it is a product of
        grad, x, weight = args[:3]
        factors = [(grad, weight), (grad, x), (grad,)]
        made = [(pair, g) for pair, g in zip(factors, out, strict=True) if g is not None]
        return len(made), sum(_nbytes([*pair, g]) for pair, g in made)
    if name in _KERNELS:  # the maps are read for sums, then again
        maps = [t for t in read if t.ndim == 4]
        return _KERNELS[name], nbytes + _nbytes(maps)
    return 1, nbytes


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _nbytes(tensors: Iterable[Tensor]) -> int:
    """Of what the tensors show, each place once."""
    total = 0
    for tensor in tensors:
        places = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            places *= size if stride else 1
        total += places * tensor.element_size()
    return total


def count(run: Callable[[], Any]) -> Count:
    """Count what a call does to tensors without memory, kernels of Triton's included."""
    from backbones.ops.backends.triton import common

    counter = LaunchCounter()
    with common.observed(counter.observe), counter:
        run()
    return counter.total


def count_module(
    module: nn.Module, size: Sequence[int], dtype: torch.dtype = torch.bfloat16, train: bool = True
) -> tuple[Count, Count]:
    """Forward and backward of a module under autocast, on tensors without memory.

    Args:
        module: It maps a tensor to one or several.
        size: Of the tensor.
        dtype: Of the products.
        train: Whether there is a backward.
    """
    made: list[Tensor] = []
    with FakeTensorMode() as mode:
        weights = {
            name: torch.empty_like(mode.from_tensor(weight)).requires_grad_(train)
            for name, weight in module.named_parameters()
        }
        x = torch.empty(*size, requires_grad=train)

        def forward() -> None:
            with torch.autocast('cpu', dtype), torch.set_grad_enabled(train):
                made.extend(tree_leaves(functional_call(module, weights, (x,))))

        ahead = count(forward)
        if not train:
            return ahead, Count()
        grads = [torch.empty_like(out) for out in made]
        return ahead, count(lambda: torch.autograd.backward(made, grads))


def count_block(
    preset: str, stage: int, backend: str, dtype: torch.dtype = torch.bfloat16, train: bool = True
) -> tuple[Count, Count]:
    """Forward and backward of a block in the middle of a stage; the bytes are per element.

    Bytes of weights, which don't grow with the map, are not counted.
    """
    arch = PRESETS[preset]
    dim = arch.dims[stage]
    block = build_block(arch, stage).train(train)
    for module in block.modules():
        if isinstance(module, (MetaFormerBlock, ModifiedLayerNorm)):
            module.backend = backend
    small, large = (
        count_module(_ChannelsLast(block, backend), (2, dim, height, 64), dtype, train)
        for height in (64, 128)
    )
    forward, backward = (
        Count(a.launches, a.operators, round((b - a).nbytes / (2 * dim * 64 * 64)))
        for a, b in zip(small, large, strict=True)
    )
    return forward, backward


class _ChannelsLast(nn.Module):
    """A block on maps in the order of those that reach it."""

    def __init__(self, block: nn.Module, backend: str) -> None:
        super().__init__()
        self.block = block
        self.view = backend != 'reference'

    def forward(self, x: Tensor) -> Tensor:
        if self.view:  # the same memory, in another order of axes
            batch, dim, height, width = x.shape
            x = x.view(batch, height, width, dim).permute(0, 3, 1, 2)
        return self.block(x)


def count_step(
    preset: str, backend: str, dtype: torch.dtype = torch.bfloat16, drop_path_rate: float = 0.0
) -> Count:
    """Forward and backward of a whole backbone with four outputs, 2x3x800x1344."""
    model = MetaFormer(preset, backend=backend, drop_path_rate=drop_path_rate)
    ahead, back = count_module(model, (2, 3, 800, 1344), dtype)
    return ahead + back


def launch_table(preset: str = 'poolformer_s12') -> str:
    """Return launches, calls and bytes of a block of each stage, ours and plain, in Markdown."""
    lines = [
        '| block of stage (channels) | launches | operator calls | bytes per element, training | '
        'inference | torch.compile |',
        '|---|--:|--:|--:|--:|---|',
    ]

    def versus(ours: Count, plain: Count, name: str) -> str:
        return f'{getattr(ours, name)} (plain {getattr(plain, name)})'

    for stage, dim in enumerate(PRESETS[preset].dims):
        ours, plain = (sum_of(count_block(preset, stage, b)) for b in ('triton', 'reference'))
        infer, plain_infer = (
            count_block(preset, stage, b, train=False)[0] for b in ('triton', 'reference')
        )
        cells = [
            f'{stage + 1} ({dim})',
            versus(ours, plain, 'launches'),
            versus(ours, plain, 'operators'),
            versus(ours, plain, 'nbytes'),
            versus(infer, plain_infer, 'nbytes'),
            'not run',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    ours, plain = (count_step(preset, backend) for backend in ('triton', 'reference'))
    gigabytes = f'{ours.nbytes / 1e9:.1f} GB (plain {plain.nbytes / 1e9:.1f} GB)'
    cells = [versus(ours, plain, 'launches'), versus(ours, plain, 'operators'), gigabytes]
    lines.append(f'| a step at 2x3x800x1344 | {" | ".join(cells)} | | not run |')
    return '\n'.join(lines)


def sum_of(counts: tuple[Count, Count]) -> Count:
    """Forward and backward together."""
    return counts[0] + counts[1]
