"""Which path computes the operators: chosen by name, by a context, or by the device."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import torch

PATHS = ('auto', 'reference', 'cpu', 'triton')
_default = 'auto'


@contextlib.contextmanager
def use(path: str) -> Iterator[None]:
    """Let every operator that is called with 'auto' take this path.

    Args:
        path: 'reference' is plain torch, 'cpu' and 'triton' are fused; 'auto' takes 'cpu' for
            tensors on a CPU and 'reference' for others.

    Raises:
        ValueError: There is no such path.
    """
    global _default
    before, _default = _default, checked(path)
    try:
        yield
    finally:
        _default = before


def checked(path: str) -> str:
    """Return a path's name.

    Raises:
        ValueError: There is no such path, or it can't run here.
    """
    if path not in PATHS:
        raise ValueError(f'ops must be one of {", ".join(PATHS)}, got {path!r}')
    if path == 'triton' and not has_triton():
        raise ValueError("ops='triton' needs the package triton; pip install triton, or 'auto'")
    return path


def has_triton() -> bool:
    """Whether the Triton compiler is installed."""
    return importlib.util.find_spec('triton') is not None


def resolve(path: str, device_type: str) -> str:
    """Return the path that an operator takes: 'reference', 'cpu' or 'triton'.

    Triton's kernels have run in its interpreter only, so on a GPU they must be asked for. Exports
    always take the reference, whose operators other runtimes know.

    Raises:
        ValueError: The path is 'cpu' and the device is not.
    """
    path = _default if path == 'auto' else path
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return 'reference'
    if path == 'cpu' and device_type != 'cpu':
        # Its backward of the average pooling is wrong on some GPUs (pytorch#188344).
        raise ValueError(f"ops='cpu' is for a CPU, the tensors are on {device_type}; take 'auto'")
    if path != 'auto':
        return path
    return 'cpu' if device_type == 'cpu' else 'reference'
