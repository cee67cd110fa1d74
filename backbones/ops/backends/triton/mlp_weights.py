"""The weights of the MLP before its products, and their gradients after: one launch each."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...norm_mlp import MLPInputs
from .common import kernel, launch, per_channel, per_sample

# Elements of a program that casts; rows and columns of a program that finishes gradients.
CAST = 2048
ROWS, COLUMNS = 16, 64


class Weights(NamedTuple):
    """The MLP's matrices in the products' dtype.

    Attributes:
        w1: (E, C).
        w2: (C, E); for backward times layer scale, and as `balance.Balance` says.
        factor: As there, or None for 1.
        unit: (1,), as there, or None for 1.
    """

    w1: Tensor
    w2: Tensor
    factor: Tensor | None = None
    unit: Tensor | None = None


def cast_weights(
    inputs: MLPInputs,
    dtype: torch.dtype,
    grad: Tensor | None = None,
    largest: Tensor | None = None,
) -> Weights:
    """Cast the weights.

    Args:
        inputs: What they are taken from.
        dtype: Of the products.
        grad: The gradient of the MLP's output, in backward.
        largest: Of the gradients of each channel, (C,), to balance the products by.
    """
    w1, w2 = (w.flatten(1).contiguous() for w in (inputs.w1, inputs.w2))
    scale = None if grad is None else inputs.scale
    first = w1 if w1.dtype == dtype else torch.empty_like(w1, dtype=dtype)
    same = w2.dtype == dtype and scale is None and largest is None
    second = w2 if same else torch.empty_like(w2, dtype=dtype)
    factor, unit, rows = None, None, 0
    if grad is not None and largest is not None:
        factor, unit = largest.new_empty(len(w2)), largest.new_empty(1)
        rows = grad.numel() // grad.shape[1]
    if first is not w1 or second is not w2:
        launch(
            _cast, triton.cdiv(w1.numel(), CAST), w1, w2, scale, largest,
            None if first is w1 else first, None if same else second, factor, unit, rows, *w2.shape,
            DIM=triton.next_power_of_2(len(w2)), CAST=CAST,
        )  # fmt: skip
    return Weights(first, second, factor, unit)


def finish(
    inputs: MLPInputs,
    weights: Weights,
    w1_found: Tensor,
    b1_sums: Tensor,
    w2_found: Tensor,
    b2_sums: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of w1, b1, w2, b2 and scale, in the dtypes of the weights.

    Args:
        inputs: What they are gradients of.
        weights: What the products took.
        w1_found: (E, C), times `unit`.
        b1_sums: (N, E), partial sums, times `unit`.
        w2_found: (C, E), times `factor` and over layer scale.
        b2_sums: (N, C), partial sums, as those.
    """
    w1, b1, w2, b2, scale = inputs[3:8]
    grads = [None if t is None else t.new_empty(t.shape) for t in (w1, b1, w2, b2, scale)]
    w1_grad, b1_grad, w2_grad, b2_grad, scale_grad = grads
    units, dim = w1_found.shape
    programs = triton.cdiv(dim, ROWS) + triton.cdiv(units, ROWS)
    launch(
        _finish, programs, w1_found, b1_sums, w2_found, b2_sums, w2.flatten(1).contiguous(), b2,
        scale, weights.factor, weights.unit, w1_grad, b1_grad, w2_grad, b2_grad, scale_grad, dim,
        units, b1_sums.shape[0], b2_sums.shape[0], ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    return tuple(grads)


@triton.jit
def _inverse_power(x):
    """One over the power of two at or below x, or 1 where x is zero or not finite, by its bits."""
    exponent = x.to(tl.int32, bitcast=True) >> 23
    usual = (exponent > 0) & (exponent < 254)
    return (tl.where(usual, 254 - exponent, 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _gradient_size(rows):
    """As `balance.gradient_size` says, or half of it where float32 rounds up."""
    return tl.minimum(_inverse_power(tl.cast(rows, tl.float32)) * 1024, 0.0625)


@kernel
def _cast(
    w1, w2, scale, largest, first, second, factor, unit, rows, dim, units,
    DIM: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    wide = tl.float64 if w2.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0)
    index = program * CAST + tl.arange(0, CAST)
    inside = index < dim * units
    if first is not None:
        tl.store(first + index, tl.load(w1 + index, mask=inside, other=0).to(wide), mask=inside)
    if second is not None:
        row = index // units
        scales = per_channel(scale, row, dim, 1, wide)
        if largest is not None:
            channels = tl.arange(0, DIM)
            size = _gradient_size(rows)
            factors = _inverse_power(per_channel(largest, channels, dim, 1, tl.float32)) * size
            shares = tl.abs(per_channel(scale, channels, dim, 1, tl.float32)) / factors
            whole = _inverse_power(tl.max(tl.where(channels < dim, shares, 0)))
            tl.store(factor + channels, factors, mask=(channels < dim) & (program == 0))
            tl.store(unit, whole, mask=program == 0)
            scales *= whole / (_inverse_power(per_channel(largest, row, dim, 1, tl.float32)) * size)
        values = tl.load(w2 + index, mask=inside, other=0).to(wide) * scales
        tl.store(second + index, values, mask=inside)


@triton.jit
def _sum_rows(sums, columns, rows, dim, ROWS: tl.constexpr, wide: tl.constexpr):
    """The sum of a matrix (rows, dim) over its rows, at some columns."""
    total = tl.zeros((64, ROWS), wide)
    for start in range(0, rows, 64):
        row = start + tl.arange(0, 64)[:, None]
        mask = (row < rows) & (columns[None, :] < dim)
        total += tl.load(sums + row * dim + columns[None, :], mask=mask, other=0)
    return tl.sum(total, axis=0)


@kernel
def _finish(
    w1_found, b1_sums, w2_found, b2_sums, w2, b2, scale, factor, unit, w1_grad, b1_grad, w2_grad,
    b2_grad, scale_grad, dim, units, strips, rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    blocks = tl.cdiv(dim, ROWS)
    row = tl.arange(0, ROWS)
    if program < blocks:
        _finish_second(
            program * ROWS + row, w2_found, b2_sums, w2, b2, scale, factor, w2_grad, b2_grad,
            scale_grad, dim, units, rows, ROWS, COLUMNS,
        )  # fmt: skip
    else:
        _finish_first(
            (program - blocks) * ROWS + row, w1_found, b1_sums, unit, w1_grad, b1_grad, dim, units,
            strips, ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit
def _finish_second(
    row, found, sums, w2, b2, scale, factor, w2_grad, b2_grad, scale_grad, dim, units, rows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some rows of w2, and what has as many elements."""
    wide = sums.dtype.element_ty
    share = 1 / tl.where(row < dim, per_channel(factor, row, dim, 1, wide), 1)
    scales = per_channel(scale, row, dim, 1, wide)
    bias = _sum_rows(sums, row, rows, dim, ROWS, wide) * share
    through = bias * per_channel(b2, row, dim, 0, wide)
    for start in range(0, units, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        where = row[:, None] * units + column
        mask = (row[:, None] < dim) & (column < units)
        g = tl.load(found + where, mask=mask, other=0).to(wide) * share[:, None]
        through += tl.sum(g * tl.load(w2 + where, mask=mask, other=0).to(wide), axis=1)
        tl.store(w2_grad + where, g * scales[:, None], mask=mask)
    if b2_grad is not None:
        tl.store(b2_grad + row, bias * scales, mask=row < dim)
    if scale_grad is not None:
        tl.store(scale_grad + row, through, mask=row < dim)


@triton.jit
def _finish_first(
    row, found, sums, unit, w1_grad, b1_grad, dim, units, strips, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some rows of w1, and of b1."""
    wide = sums.dtype.element_ty
    share = 1 / per_sample(unit, 0, wide)
    if b1_grad is not None:
        bias = _sum_rows(sums, row, strips, units, ROWS, wide) * share
        tl.store(b1_grad + row, bias, mask=row < units)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        where = row[:, None] * dim + column
        mask = (row[:, None] < units) & (column < dim)
        tl.store(
            w1_grad + where, tl.load(found + where, mask=mask, other=0).to(wide) * share, mask=mask
        )
