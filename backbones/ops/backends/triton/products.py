"""Matrix products of tokens, by the vendor's library.

In float32 they are convolutions of 1x1: so they use the tensor cores (TF32) where the model's other
convolutions do, by torch's switch for convolutions, and not by the one for matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...maps import channels_last, tokens


def product(rows: Tensor, weight: Tensor, like: Tensor, out: Tensor | None = None) -> Tensor:
    """Return tokens (T, I) times the transpose of weight (O, I).

    Args:
        rows: (T, I).
        weight: (O, I), any strides.
        like: A map with T pixels.
        out: Memory that the product may take.
    """
    if rows.dtype != torch.float32:
        return torch.mm(rows, weight.t(), out=out)
    return tokens(channels_last(F.conv2d(_map(rows, like), weight[:, :, None, None])))


def row_gradient(grad: Tensor, weight: Tensor, like: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the gradient of the tokens of `product`."""
    return product(grad, weight.t(), like, out)


def weight_gradient(grad: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Return the gradient of the weight of `product`."""
    if rows.dtype != torch.float32:
        return grad.t() @ rows
    weight = grad.new_empty(grad.shape[1], rows.shape[1], 1, 1)
    _, found, _ = torch.ops.aten.convolution_backward(
        _map(grad, like), _map(rows, like), weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        [False, True, False],
    )  # fmt: skip
    return found.flatten(1).contiguous()


def _map(rows: Tensor, like: Tensor) -> Tensor:
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)
