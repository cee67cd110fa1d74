"""Parts of a backbone's work on their own: the floors under its time.

The matrix products are those of all convolutions and linear layers, on inputs of the network's
shapes in the dtype of the products. The products of attention and of random mixing are not among
them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from backbones import MetaFormer, ops
from backbones.blocks import MetaFormerBlock

from .measure import FORMATS, Workload


class Shapes:
    """What goes into the parts of a network in one forward.

    Args:
        reference: With backend='reference', whose layers are called one by one.
        image: (B, 3, H, W).
        workload: Whose autocast it runs under.

    Attributes:
        layers: Convolutions and linear layers in their order, each with the shape of its input.
        blocks: Blocks in their order, each with an empty tensor like its input.
    """

    def __init__(self, reference: MetaFormer, image: Tensor, workload: Workload) -> None:
        self.layers: list[tuple[nn.Module, torch.Size]] = []
        self.blocks: list[tuple[MetaFormerBlock, Tensor]] = []
        hooks = [
            module.register_forward_pre_hook(self._record)
            for module in reference.modules()
            if isinstance(module, (nn.Conv2d, nn.Linear, MetaFormerBlock))
        ]
        with torch.no_grad(), workload.autocast():
            reference(image)
        for hook in hooks:
            hook.remove()

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if isinstance(module, MetaFormerBlock):
            self.blocks.append((module, x.new_empty(x.shape, device='meta')))
        else:
            self.layers.append((module, x.shape))


class MatrixProducts:
    """The products of a network; in training also the two of each layer's backward.

    Args:
        shapes: Of the network.
        memory_format: A key of `FORMATS`.
        workload: Gives dtype, device and task.
    """

    def __init__(self, shapes: Shapes, memory_format: str, workload: Workload) -> None:
        self.training = workload.training
        dtype, layout = workload.product_dtype, FORMATS[memory_format]
        tensors: dict[tuple[torch.Size, bool], Tensor] = {}  # by shape, and whether an input

        def tensor(shape: torch.Size, is_input: bool) -> Tensor:
            if (shape, is_input) not in tensors:
                x = torch.randn(shape, device=workload.device).to(dtype)
                tensors[shape, is_input] = x.to(memory_format=layout) if x.dim() == 4 else x
            return tensors[shape, is_input]

        self.layers: list[tuple[nn.Module, Tensor]] = []
        self.wanted: list[list[Tensor]] = []  # the tensors whose gradients each backward computes
        self.gradients: list[Tensor] = []
        for layer, shape in shapes.layers:
            layer = copy.deepcopy(layer).to(dtype=dtype, memory_format=layout)
            x = tensor(shape, is_input=True)
            if self.layers:  # the image needs no gradient
                x.requires_grad_()
            if layer.bias is not None:
                layer.bias.requires_grad_(False)
            with torch.no_grad():
                self.gradients.append(tensor(layer(x).shape, is_input=False))
            self.wanted.append([layer.weight, x] if x.requires_grad else [layer.weight])
            self.layers.append((layer, x))

    def __call__(self) -> None:
        with torch.set_grad_enabled(self.training):
            for (layer, x), wanted, gradient in zip(
                self.layers, self.wanted, self.gradients, strict=True
            ):
                y = layer(x)
                if self.training:
                    torch.autograd.grad(y, wanted, gradient)


class BlockInputs:
    """Work on the input of every block that one operator mixes; a copy moves as many bytes.

    Args:
        shapes: Of the network.
        device: Of the tensors.

    Attributes:
        nbytes: Of all inputs read and as many written.
    """

    def __init__(self, shapes: Shapes, device: str) -> None:
        tensors: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.work: list[tuple[MetaFormerBlock, Tensor, Tensor]] = []  # with source and target
        for block, like in shapes.blocks:
            if not block.fuses_mixing:
                continue
            kind = like.shape, like.dtype
            if kind not in tensors:
                x = torch.randn_like(like, device=device)
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
