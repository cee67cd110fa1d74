"""What the operators share: how a function of named tensors becomes an operator of torch."""

from __future__ import annotations

import hashlib
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.torch_version import TorchVersion

from .maps import channels_last, empty_map, wide


def digest(folder: Path) -> str:
    """Return what tells the Python files of a folder from others."""
    content = b''.join(path.read_bytes() for path in sorted(folder.rglob('*.py')))
    return hashlib.sha256(content).hexdigest()[:16]


# What computes each operator, by its name: dispatch modes of torch see one call.
IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
# An argument of each operator. torch.compile keeps what it compiled in a cache, by an operator's
# arguments and not by what computes it.
_SOURCE = digest(Path(__file__).parent)
# Which torch that was tried with.
_SEES_THROUGH = TorchVersion(torch.__version__) >= '2.13'


class Operator:
    """A custom operator of torch with its gradient, which is another custom operator.

    ``torch.compile`` takes each as one step, or as Triton's kernels and torch's operators where
    these compute it. Autograd keeps only the inputs and what forward returns beside its map.
    Schemas know no named structures: here they are flattened and restored.

    Args:
        name: In ``torch.ops.metaformer``; the gradient's ends in ``_backward``.
        structure: A NamedTuple of tensors, the inputs: first the map, last what has no gradient.
        constants: How many of them have no gradient.
        options: The rest of the schema, e.g. 'float eps, str backend'.
        forward: Maps ``(inputs, *options)`` to ``(map, mean, rstd, *others)``.
        backward: Maps ``(grad, inputs, kept, *options)`` to a gradient of each input, where
            ``kept`` is what forward returned beside the map. None for an input that is None.
        others: Maps ``(inputs, *options)`` to uninitialised tensors like ``others``.
    """

    def __init__(
        self,
        name: str,
        structure: Callable[..., Any],
        constants: int,
        options: str,
        forward: Callable[..., tuple[Tensor, ...]],
        backward: Callable[..., Sequence[Tensor | None]],
        others: Sequence[Callable[..., Tensor]] = (),
    ) -> None:
        hints = typing.get_type_hints(structure)
        tensors = [f'Tensor{"" if hint is Tensor else "?"} {key}' for key, hint in hints.items()]
        number, learned = len(hints), len(hints) - constants
        kept = ['Tensor mean', 'Tensor rstd', *(f'Tensor kept{i}' for i in range(len(others)))]

        def run_forward(*arguments: Any) -> tuple[Tensor, ...]:
            if not arguments[0].numel():
                return fake_forward(*arguments)  # nothing to compute
            with _no_autocast(arguments[0]):
                return forward(structure(*map(_dense, arguments[:number])), *arguments[number:-1])

        def run_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
            given = structure(*map(_dense, arguments[:number]))
            saved = arguments[number : number + len(kept)]
            if not grad.numel():
                return [empty.zero_() for empty in fake_backward(grad, *arguments)]
            with _no_autocast(grad):
                grads = backward(
                    channels_last(grad), given, saved, *arguments[number + len(kept) : -1]
                )
                pairs = zip(given, grads, strict=False)
                x_grad, *others = [g.to(t.dtype) for t, g in pairs if g is not None]
                # Compiled code relies on the strides that `fake_backward` promises.
                return [x_grad, *(g.contiguous() for g in others)]

        def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
            given, rest = structure(*arguments[:number]), arguments[number:-1]
            statistics = given[0].new_empty(given[0].shape[0], dtype=wide(given[0].dtype))
            like = (other(given, *rest) for other in others)
            return empty_map(given[0]), statistics, torch.empty_like(statistics), *like

        def fake_backward(grad: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
            weights = (t for t in arguments[: learned - 1] if t is not None)
            return [empty_map(x), *(t.new_empty(t.shape) for t in weights)]

        def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.set_materialize_grads(False)  # only the map has a gradient
            ctx.save_for_backward(*inputs[:number], *output[1:])
            ctx.options = inputs[number:]

        def gradients(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
            rest = (None,) * (constants + len(ctx.options))
            if grad is None:
                return (None,) * learned + rest
            saved = ctx.saved_tensors  # once: checkpointing computes them again
            found = iter(self.backward(grad, *saved, *ctx.options))
            return *(None if t is None else next(found) for t in saved[:learned]), *rest

        returns = ', '.join(['Tensor'] * (1 + len(kept)))
        options += ', str source'
        schema = f'({", ".join([*tensors, options])}) -> ({returns})'
        self.forward = _define(name, schema, run_forward, fake_forward)
        schema = f'({", ".join(["Tensor grad", *tensors, *kept, options])}) -> Tensor[]'
        self.backward = _define(f'{name}_backward', schema, run_backward, fake_backward)
        self.forward.register_autograd(gradients, setup_context=keep)
        self.backward.register_autograd(_no_second_gradient)

    def __call__(self, *arguments: Any) -> Tensor:
        """Return the map alone."""
        out: Tensor = self.forward(*arguments, _SOURCE)[0]
        return out


def _no_second_gradient(*_: Any) -> Any:
    raise RuntimeError(
        "fused operators have no second derivative; take backend='reference', which is plain torch"
    )


def _define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    name = f'metaformer::{name}'
    operator: Any = torch.library.custom_op(name, run, mutates_args=(), schema=schema)
    operator.register_fake(fake)

    def trace(mode: Any, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if not _is_traced(args[-2]):
            return mode.__torch_dispatch__(function, types, args, kwargs)
        with mode:
            return run(*args)

    if _SEES_THROUGH:
        operator.register_torch_dispatch(FunctionalTensorMode, trace)
    IMPLEMENTATIONS[name] = run
    return operator


def _is_traced(backend: str) -> bool:
    """Whether torch.compile looks into what a backend computes."""
    if backend != 'triton':
        return False
    from .backends.triton.common import INTERPRETED

    return not INTERPRETED


def _dense(x: Tensor | None) -> Tensor | None:
    """Kernels read vectors without their stride."""
    return x if x is None or x.dim() > 1 else x.contiguous()


def _no_autocast(x: Tensor) -> torch.autocast:
    """Operators cast for themselves."""
    return torch.autocast(x.device.type, enabled=False)
