"""What the kernels share: tiles, allocation, launching.

Maps are in channels-last order: pixels x channels for each sample, channels next to each other. A
program takes some pixels of one sample and some channels of each, so that its loads are whole
lines of memory and the sample's statistics are scalars to it. Sums over tiles go through a buffer
with a place for each program, not through atomics: the same input gives the same bits.

A launch costs microseconds, whatever it does. So small things are done by whoever needs them next:
each program of a kernel puts the statistics of its sample together, and the first ones also sum up
over samples. Launches are counted by `poolformer_dense.measure.launches`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor

# Triton compiles anew for arguments of 1 and for multiples of 16. That pays for numbers of channels
# alone: images come in many sizes.
SIZES = ('batch', 'height', 'width', 'pixels', 'pieces', 'rows', 'steps', 'strips')
kernel = triton.jit(do_not_specialize=SIZES)
# Whether Triton's interpreter is on.
INTERPRETED = not isinstance(tl.cdiv, triton.JITFunction)
# Pieces of a sample that have statistics of their own, at most.
PIECES = 128


class Tiling(NamedTuple):
    """How (batch, pixels, dim) is cut: each program takes STEPS times PIXELS x CHANNELS."""

    shape: tuple[int, int, int]
    PIXELS: int
    CHANNELS: int
    STEPS: int

    @property
    def strips(self) -> int:
        """Programs along the pixels of a sample."""
        return triton.cdiv(self.shape[1], self.PIXELS * self.STEPS)

    @property
    def programs(self) -> int:
        """Programs in all."""
        batch, _, dim = self.shape
        return batch * self.strips * triton.cdiv(dim, self.CHANNELS)

    @property
    def constants(self) -> dict[str, int]:
        """The kernels' compile-time arguments."""
        return dict(PIXELS=self.PIXELS, CHANNELS=self.CHANNELS, STEPS=self.STEPS)

    def partials(self, like: Tensor, kinds: int) -> Tensor:
        """A flat buffer of (kinds, batch, strips, dim) for the sums of each program."""
        batch, _, dim = self.shape
        # Inductor fails where the strides of a size of 1 may be one thing or another (torch 2.13).
        return like.new_empty(kinds * batch * self.strips * dim)


def tiling(batch: int, pixels: int, dim: int, elements: int = 4096, steps: int = 1) -> Tiling:
    """Cut a map into tiles of about so many elements."""
    channels = channel_block(dim)
    if dim % 16:  # each element needs an address of its own, and registers for it
        elements //= 4
    return Tiling((batch, pixels, dim), max(1, elements // channels), channels, steps)


def channel_block(dim: int) -> int:
    """Channels of a tile: a power of two up to 128 that divides them, if at least 32 does.

    32 channels of bfloat16 are two sectors of memory, the least that a load should take at once.
    """
    divisor = min(128, dim & -dim)
    return divisor if divisor >= 32 else min(128, triton.next_power_of_2(dim))


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument, or tell an observer instead."""

    def run() -> None:
        if isinstance(arguments[0], FunctionalTensor):  # torch.compile traces
            torch.library.wrap_triton(kernel)[(programs,)](*arguments, **constants)
            return
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            kernel[(programs,)](*arguments, **constants)

    run() if _observer is None else _observer(kernel, arguments, run)


Observer = Callable[[Any, tuple[Any, ...], Callable[[], None]], None]
_observer: Observer | None = None


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Give kernels, their arguments and what launches them to an observer instead of launching.

    So launches can be counted on tensors without memory (torch's FakeTensorMode).
    """
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


@triton.jit
def place(pixels, dim, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr):
    """Where this program works: its sample, strip, first pixel and channels."""
    columns = tl.cdiv(dim, CHANNELS)
    strips = tl.cdiv(pixels, PIXELS * STEPS)
    program = tl.program_id(0)
    channels = program % columns * CHANNELS + tl.arange(0, CHANNELS)
    strip = program // columns % strips
    return program // columns // strips, strip, strip * PIXELS * STEPS, channels


@triton.jit
def tile(sample, first, channels, pixels, dim, PIXELS: tl.constexpr):
    """Offsets from the start of the map, and which of them exist, (PIXELS, CHANNELS)."""
    rows = tl.arange(0, PIXELS)[:, None]
    # Only the start needs 64 bits.
    start = (sample.to(tl.int64) * pixels + first) * dim
    return start + (rows * dim + channels[None, :]), (first + rows < pixels) & (
        channels[None, :] < dim
    )


@triton.jit
def per_channel(pointer, channels, dim, missing, wide: tl.constexpr):
    """A (C,) vector, or where it is None its neutral value."""
    # One exit: the compiler also reads what follows a return.
    if pointer is None:
        values = tl.full(channels.shape, missing, wide)
    else:
        values = tl.load(pointer + channels, mask=channels < dim, other=0).to(wide)
    return values


@triton.jit
def per_sample(pointer, sample, wide: tl.constexpr):
    """One number of a (B,) vector, or 1 where that is None."""
    return tl.full((), 1, wide) if pointer is None else tl.load(pointer + sample).to(wide)


@triton.jit
def per_sample_statistics(
    moments, mean, rstd, sample, first, pieces, EPS: tl.constexpr, PIECES: tl.constexpr
):
    """Mean and 1 / std of a sample: put together from its pieces, or loaded where they are None.

    ``first`` is true for some programs of each sample, which also keep them. Chan's formula (1979)
    in float64: no large mean and no small variance loses digits.
    """
    wide = mean.dtype.element_ty
    if moments is not None:
        index = tl.arange(0, PIECES)
        where, mask = moments + (sample * PIECES + index) * 3, index < pieces
        counts = tl.load(where, mask=mask, other=0)
        means = tl.load(where + 1, mask=mask, other=0)
        spreads = tl.load(where + 2, mask=mask, other=0)
        count = tl.sum(counts)
        middle = tl.sum(counts * means) / count
        away = means - middle
        spread = tl.sum(spreads + counts * away * away)
        slope = 1 / tl.sqrt(spread / count + EPS)
        tl.store(mean + sample, middle, mask=first)
        tl.store(rstd + sample, slope, mask=first)
    else:
        middle = tl.load(mean + sample)
        slope = tl.load(rstd + sample)
    return middle.to(wide), slope.to(wide)


@triton.jit
def normal_cdf(x):
    """The normal distribution function, which GELU multiplies its input by."""
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
