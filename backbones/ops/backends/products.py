"""Products of tokens (T, C) and weights on a CPU, each by the library that is fastest at it.

In float32 oneDNN's inner product outruns its own convolution and torch's product of matrices, but
torch reaches it through a private operator only; without that torch's product serves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# What oneDNN multiplies here.
ONEDNN = [
    dtype
    for dtype in (torch.float32, torch.bfloat16)
    if hasattr(torch.ops.mkldnn, '_linear_pointwise')
    and torch.backends.mkldnn.is_available()
    and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
]


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return tokens (T, I) times the transpose of weight (O, I), any strides, plus bias: (T, O)."""
    if weight.dtype not in ONEDNN:
        return F.linear(rows, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, 'none', [], '')
    return out


def add_outer(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add to total (I, O) the transpose of left (T, I) times right (T, O).

    The caller makes I the smaller of the two, which is faster. If the factors have a lower
    precision than the total, the product is rounded before it is added.
    """
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)
