"""What differs where a computation is traced for a file."""

from __future__ import annotations

import torch
from torch import Tensor


def is_exporting() -> bool:
    """Whether torch.export, torch.onnx or torch.jit traces."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def plain_layout(x: Tensor) -> Tensor:
    """Return a map (B, C, H, W), in a trace contiguous.

    If a convolution's input has channels last, torch.export takes it to hold only for maps of more
    than one pixel. So does `Tensor.contiguous`, which asks for the layout first.
    """
    return x.clone(memory_format=torch.contiguous_format) if is_exporting() else x
