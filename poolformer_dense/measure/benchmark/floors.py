"""Parts of a backbone's work on their own: the floors under its time.

The matrix products are those of all convolutions and linear layers, on inputs of the network's
shapes in the dtype of the products. The products of attention and of random mixing are not among
them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbones import MetaFormer, ops
from backbones.blocks import MetaFormerBlock

from .task import FORMATS, Row, Workload


def floors(
    reference: MetaFormer, image: Tensor, workload: Workload
) -> Iterator[tuple[Row, Callable[[], None]]]:
    """Yield what each part is, to be measured, and what to call."""
    layers = record_inputs(reference, image, workload, (nn.Conv2d, nn.Linear))
    for memory_format in FORMATS:
        products = MatrixProducts(layers, memory_format, workload)
        yield Row('matrix products', 'part', memory_format), products
    blocks = record_inputs(reference, image, workload, (MetaFormerBlock,))
    inputs = BlockInputs(blocks, workload.device)
    if workload.on_cuda and inputs.nbytes:
        for name, call in (('copy of inputs', inputs.copy), ('pool_mix of inputs', inputs.mix)):
            yield Row(name, 'part', 'channels_last', nbytes=inputs.nbytes), call


def record_inputs(
    reference: MetaFormer, image: Tensor, workload: Workload, kinds: tuple[type[nn.Module], ...]
) -> list[tuple[Any, Tensor]]:
    """Return a network's modules of some kinds in their order, each with a tensor like its input.

    The network has backend='reference', so its layers are called one by one. The tensors are on
    ``meta``: they have a shape and a dtype, but no memory.
    """
    found = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append((module, torch.empty_like(inputs[0], device='meta')))

    hooks = [
        module.register_forward_pre_hook(record)
        for module in reference.modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad(), workload.autocast():
        reference(image)
    for hook in hooks:
        hook.remove()
    return found


class MatrixProducts:
    """The products of a network; in training also the two of each layer's backward.

    Args:
        layers: Convolutions and linear layers, each with a tensor like its input.
        memory_format: A key of `FORMATS`.
        workload: Gives dtype, device and task.

    Attributes:
        work: Each layer with its input, the tensors whose gradients its backward computes, and the
            gradient of its output.
    """

    def __init__(
        self, layers: Sequence[tuple[Any, Tensor]], memory_format: str, workload: Workload
    ) -> None:
        self.training = workload.training
        dtype, layout = workload.product_dtype, FORMATS[memory_format]
        tensors: dict[tuple[torch.Size, bool], Tensor] = {}  # by shape, and whether an input

        def tensor(shape: torch.Size, is_input: bool) -> Tensor:
            if (shape, is_input) not in tensors:
                x = torch.randn(shape, device=workload.device).to(dtype)
                tensors[shape, is_input] = x.to(memory_format=layout) if x.dim() == 4 else x
            return tensors[shape, is_input]

        self.work: list[tuple[Any, Tensor, list[Tensor], Tensor]] = []
        for original, like in layers:
            layer = copy.deepcopy(original).to(dtype=dtype, memory_format=layout)
            x = tensor(like.shape, is_input=True)
            if self.work:  # the image needs no gradient
                x.requires_grad_()
            if layer.bias is not None:
                layer.bias.requires_grad_(False)
            with torch.no_grad():
                gradient = tensor(layer(x).shape, is_input=False)
            wanted = [layer.weight, x] if x.requires_grad else [layer.weight]
            self.work.append((layer, x, wanted, gradient))

    def __call__(self) -> None:
        with torch.set_grad_enabled(self.training):
            for layer, x, wanted, gradient in self.work:
                y = layer(x)
                if self.training:
                    torch.autograd.grad(y, wanted, gradient)


class BlockInputs:
    """Work on the input of every block that one operator mixes; a copy moves as many bytes.

    Attributes:
        work: Each block with its input and a target of the same size.
        nbytes: Of all inputs read and as many written.
    """

    def __init__(self, blocks: Sequence[tuple[Any, Tensor]], device: str) -> None:
        tensors: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.work: list[tuple[Any, Tensor, Tensor]] = []
        for block, like in blocks:
            if block.fuses_mixing:
                kind = like.shape, like.dtype
                if kind not in tensors:
                    x = torch.randn(like.shape, dtype=like.dtype, device=device)
                    x = x.contiguous(memory_format=torch.channels_last)
                    tensors[kind] = x, torch.empty_like(x)
                self.work.append((block, *tensors[kind]))
        self.nbytes = 2 * sum(x.nbytes for _, x, _ in self.work)

    def copy(self) -> None:
        """Copy each on its device."""
        for _, x, target in self.work:
            target.copy_(x)

    @torch.no_grad()
    def mix(self) -> None:
        """Mix each by the operator `backbones.ops.pool_mix`."""
        for block, x, _ in self.work:
            norm, scale = block.norm1, getattr(block.layer_scale1, 'scale', None)
            backend = 'triton' if x.is_cuda else 'auto'
            ops.pool_mix(x, norm.weight, norm.bias, scale, None, norm.eps, backend)
