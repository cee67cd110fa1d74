"""Powers of two that keep the products of the MLP's backward within the range of float16.

Layer scale starts at 1e-5 or 1e-6, gradients may have any size, and float16 has numbers from 6e-8
to 65504. So the gradient of each channel is brought to a size at which neither it nor its sums over
tokens are lost; `w2` takes the opposite factor beside layer scale, and the gradients of all that
comes before the second product come out `unit` times too large. bfloat16 needs none of this.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..norm_mlp import MLPInputs


class Balance(NamedTuple):
    """What the factors of backward's products are multiplied by.

    Attributes:
        factor: (C,), of the gradient.
        w2: (C, E, 1, 1), w2 times layer scale times `unit` over `factor`.
        unit: (), of the gradients of all that comes before the second product.
    """

    factor: Tensor
    w2: Tensor
    unit: Tensor


def balanced(grad: Tensor, inputs: MLPInputs) -> Balance:
    """Choose the factors by the largest gradient of each channel."""
    factor = inverse_power(largest_gradient(grad)) * gradient_size(grad)
    scale = 1 / factor if inputs.scale is None else inputs.scale.float() / factor
    unit = inverse_power(scale.abs().max())
    return Balance(factor, inputs.w2.float() * (scale * unit).view(-1, 1, 1, 1), unit)


def largest_gradient(grad: Tensor) -> Tensor:
    """Absolute values, (C,)."""
    found: Tensor = torch.linalg.vector_norm(grad, math.inf, dim=(0, 2, 3), dtype=torch.float32)
    return found


def gradient_size(grad: Tensor) -> float:
    """A size, sums over all tokens of up to twice which, times activations up to 8, are finite."""
    count = grad.numel() // grad.shape[1]
    return 2.0 ** -max(4, count.bit_length() - 11)


def inverse_power(x: Tensor) -> Tensor:
    """One over the power of two at or below x, or 1 where x is zero or not finite."""
    exponent = torch.frexp(x).exponent - 1
    return torch.where((x > 0) & x.isfinite(), torch.ldexp(torch.ones_like(x), -exponent), 1)
