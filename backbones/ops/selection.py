"""Which backend computes an operator: the one place where that is decided.

A backend is a module of `backbones.ops.backends` with the functions of `Kernels`. torch's own
dispatch goes by the type of device, and several backends share one, so the operators take the
backend's name as an argument.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from .backends import library
from .maps import Statistics, stream_dtype
from .tracing import is_exporting

if TYPE_CHECKING:
    from .norm_mlp import MLPGradients, MLPInputs
    from .pool_mix import PoolMixGradients, PoolMixInputs

BACKENDS = ('auto', 'reference', 'cpu', 'native', 'triton')
_default = 'auto'


class Kernels(Protocol):
    """What the module of a backend computes. All maps are channels-last, and autocast is off."""

    def norm_forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Statistics]:
        """`modified_layer_norm`, and the statistics."""

    def norm_backward(
        self, grad: Tensor, x: Tensor, statistics: Statistics, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias."""

    def pool_mix_forward(self, inputs: PoolMixInputs, eps: float) -> tuple[Tensor, Statistics]:
        """``x + k * (P(x) - x)`` with ``k = gain * drop / std``, and the statistics.

        The norm's mean and shift cancel in ``P(n(x)) - n(x)``, so no normalised copy exists.
        """

    def pool_mix_backward(
        self, grad: Tensor, inputs: PoolMixInputs, statistics: Statistics
    ) -> PoolMixGradients:
        """The gradients.

        With the adjoint ``Q = P^T(grad) - grad``, the gradient of k is ``sum Q * (x - mean)``: Q
        sums to zero over a map, and centred products lose no digits when the mean is large.
        """

    def norm_mlp_forward(
        self, inputs: MLPInputs, eps: float, dtype: torch.dtype, keep: bool
    ) -> tuple[Tensor, Statistics, Tensor]:
        """`norm_mlp`, the statistics, and the hidden tokens (T, E); no rows unless ``keep``.

        ``dtype`` is that of the matrix products. What exactly the hidden tokens are is the
        backend's own affair.
        """

    def norm_mlp_backward(
        self,
        grad: Tensor,
        inputs: MLPInputs,
        statistics: Statistics,
        hidden: Tensor,
        dtype: torch.dtype,
    ) -> MLPGradients:
        """The gradients; ``hidden`` is as forward returned it, and computed again if empty."""


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Let every operator that is called with 'auto' take this backend.

    Args:
        backend: 'reference' is plain torch; 'cpu', 'native' and 'triton' are fused. 'auto' takes
            'native' for tensors on a CPU, or 'cpu' where its loops can't be compiled, and
            'reference' for tensors elsewhere.

    Raises:
        ValueError: There is no such backend, or it can't run here.
    """
    global _default
    before, _default = _default, check_backend(backend)
    try:
        yield
    finally:
        _default = before


def check_backend(backend: str) -> str:
    """Return a backend's name.

    Raises:
        ValueError: There is no such backend, or it can't run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {", ".join(BACKENDS)}, got {backend!r}')
    if backend == 'triton' and importlib.util.find_spec('triton') is None:
        raise ValueError(
            "backend='triton' needs the package triton; pip install triton, or take 'auto'"
        )
    if backend == 'native' and not library.compiled():
        raise ValueError(
            "backend='native' needs loops compiled for this processor; poolformer-dense build-ops "
            "says what is missing, or take 'auto'"
        )
    return backend


def resolve_backend(backend: str, device_type: str) -> str:
    """Return what a backend stands for: 'reference', 'cpu', 'native' or 'triton'.

    Triton's kernels have run in its interpreter only, so on a GPU they are opt-in. Exports always
    take the reference, whose operators other runtimes know.

    Raises:
        ValueError: The backend is 'cpu' or 'native' and the device is no CPU.
    """
    backend = _default if backend == 'auto' else backend
    if is_exporting():
        return 'reference'
    if backend in ('cpu', 'native') and device_type != 'cpu':
        # Its backward of the average pooling is wrong on some GPUs (pytorch#188344).
        raise ValueError(
            f"backend={backend!r} is for a CPU, the tensors are on {device_type}; take 'auto'"
        )
    if backend != 'auto':
        return backend
    if device_type != 'cpu':
        return 'reference'
    return 'native' if library.compiled() else 'cpu'


def select_backend(
    backend: str, x: Tensor, *others: Tensor | None, products: torch.dtype = torch.float32
) -> str:
    """Return the backend that takes a map and the tensors beside it.

    What the compiled loops don't cover goes to 'cpu': other dtypes than float32, but for products
    in bfloat16.
    """
    backend = resolve_backend(backend, x.device.type)
    if backend == 'native':
        dtypes = {stream_dtype(x), *(t.dtype for t in others if t is not None)}
        if dtypes != {torch.float32} or products not in library.SUFFIXES:
            return 'cpu'
    return backend


@functools.cache
def kernels(backend: str) -> Kernels:
    """Import a backend; Triton takes its time, and may not be there."""
    return cast(Kernels, importlib.import_module(f'{__package__}.backends.{backend}'))


if TYPE_CHECKING:
    from .backends import cpu, native, triton

    _they_obey: tuple[Kernels, ...] = (cpu, native, triton)
