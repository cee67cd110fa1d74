"""Which path computes the operators: chosen by name, by a context, or by the device."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import torch

from . import native

PATHS = ('auto', 'reference', 'cpu', 'native', 'triton')
_default = 'auto'


@contextlib.contextmanager
def use(path: str) -> Iterator[None]:
    """Let every operator that is called with 'auto' take this path.

    Args:
        path: 'reference' is plain torch, 'cpu', 'native' and 'triton' are fused; 'auto' takes
            'native' for tensors on a CPU, or 'cpu' where its loops are not compiled, and
            'reference' for others.

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
    if path == 'native' and not native.AVAILABLE:
        raise ValueError(
            "ops='native' needs loops compiled for this processor; tools/build_ops.py compiles "
            "them, or take 'auto'"
        )
    return path


def has_triton() -> bool:
    """Whether the Triton compiler is installed."""
    return importlib.util.find_spec('triton') is not None


def resolve(path: str, device_type: str) -> str:
    """Return the path that an operator takes: 'reference', 'cpu', 'native' or 'triton'.

    Triton's kernels have run in its interpreter only, so on a GPU they must be asked for. Exports
    always take the reference, whose operators other runtimes know.

    Raises:
        ValueError: The path is 'cpu' or 'native' and the device is no CPU.
    """
    path = _default if path == 'auto' else path
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return 'reference'
    if path in ('cpu', 'native') and device_type != 'cpu':
        # Its backward of the average pooling is wrong on some GPUs (pytorch#188344).
        raise ValueError(
            f"ops={path!r} is for a CPU, the tensors are on {device_type}; take 'auto'"
        )
    if path != 'auto':
        return path
    if device_type != 'cpu':
        return 'reference'
    return 'native' if native.AVAILABLE else 'cpu'
