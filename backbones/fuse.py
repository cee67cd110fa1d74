"""Folding for inference: norms and layer scales go into the weights beside them, once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import MetaFormerBlock, Scale
from .norms import ChannelLayerNorm, ModifiedLayerNorm
from .token_mixers import IdentityMixing, Pooling

# They map a scaled input to the scaled output, channel by channel.
_LINEAR_BY_CHANNEL = (Pooling, IdentityMixing)


@torch.no_grad()
def fold_block(block: MetaFormerBlock) -> None:
    """Fold a block's affine norms and layer scales into its convolutions, in place.

    The second norm's gain and shift go into ``mlp.fc1``, the second layer scale into ``mlp.fc2``,
    and the first layer scale into the first norm where the mixer is linear in each channel. What
    can't be folded stays as it is, as a layer scale so small that float16 would lose the weights'
    digits; the block computes the same up to rounding.
    """
    affine = (ModifiedLayerNorm, ChannelLayerNorm)
    if (
        isinstance(block.layer_scale1, Scale)
        and isinstance(block.token_mixer, _LINEAR_BY_CHANNEL)
        and isinstance(block.norm1, affine)
    ):
        for parameter in (block.norm1.weight, block.norm1.bias):
            if parameter is not None:
                parameter.mul_(block.layer_scale1.scale)
        block.layer_scale1 = nn.Identity()
    if block.mlp is None:
        return
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    if isinstance(block.norm2, affine):
        weight, bias = block.norm2.weight, block.norm2.bias
        if bias is not None:
            shift = (fc1.weight.flatten(1).double() @ bias.double()).to(bias.dtype)
            fc1.bias = nn.Parameter(shift if fc1.bias is None else fc1.bias + shift)
            block.norm2.bias = None
        fc1.weight.mul_(weight.view(1, -1, 1, 1))
        weight.fill_(1)
    if isinstance(block.layer_scale2, Scale):
        scale = block.layer_scale2.scale
        scaled = fc2.weight * scale.view(-1, 1, 1, 1)
        if not _fits_float16(scaled):
            return
        fc2.weight.copy_(scaled)
        if fc2.bias is not None:
            fc2.bias.mul_(scale)
        block.layer_scale2 = nn.Identity()


def _fits_float16(weight: Tensor) -> bool:
    """Whether inference in float16 keeps a weight's digits, where its smallest number is 6e-8.

    A layer scale at its initial 1e-5 or 1e-6 would leave few of them.
    """
    lost = weight - weight.half().to(weight.dtype)
    return bool(lost.norm() <= 2**-10 * weight.norm())
