"""The MetaFormer block and its parts."""

# torch declares that modules return Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import ops
from .norms import ModifiedLayerNorm
from .token_mixers import Pooling


class Scale(nn.Module):
    """A learned factor per channel: layer scale (arXiv 2103.17239), residual scale (2110.09456)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(-1, 1, 1)


class ChannelMLP(nn.Module):
    """Two 1x1 convolutions with an activation between; weights start truncated normal, std 0.02."""

    def __init__(self, dim: int, ratio: float, activation: nn.Module, bias: bool) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1, bias=bias)
        self.act = activation
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1, bias=bias)
        self.fusable = type(activation) is nn.GELU and activation.approximate == 'none'
        for conv in (self.fc1, self.fc2):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class MetaFormerBlock(nn.Module):
    """One block: token mixer and channel MLP, each normalised first and added to its input.

    Equations 2 and 3 of arXiv 2111.11418, with layer scale, residual scale and drop path. Branches
    that `backbones.ops` has as one operator are computed by it.

    Args:
        dim: Channels C.
        norm: Builds a norm from its channels.
        token_mixer: A module that maps (B, C, H, W) to (B, C, H, W).
        mlp: The channel MLP; None leaves the second branch out.
        layer_scale_init: Initial factor of both branches; None for no layer scale.
        res_scale_init: Initial factor of both residuals; None for no residual scale.
        residual: Whether each branch is added to its input.

    Attributes:
        backend: As in `backbones.ops.use_backend`.
        recompute_mlp: Compute the MLP's hidden activations again in backward.
    """

    backend = 'auto'
    recompute_mlp = False

    def __init__(
        self,
        dim: int,
        norm: Callable[[int], nn.Module],
        token_mixer: nn.Module,
        mlp: ChannelMLP | None,
        layer_scale_init: float | None,
        res_scale_init: float | None,
        residual: bool,
    ) -> None:
        super().__init__()

        def scale(init: float | None) -> nn.Module:
            return nn.Identity() if init is None else Scale(dim, init)

        self.residual = residual
        self.norm1 = norm(dim)
        self.token_mixer = token_mixer
        self.layer_scale1 = scale(layer_scale_init)
        self.res_scale1 = scale(res_scale_init if residual else None)
        self.mlp = mlp
        if mlp is not None:
            self.norm2 = norm(dim)
            self.layer_scale2 = scale(layer_scale_init)
            self.res_scale2 = scale(res_scale_init if residual else None)

        plain = residual and res_scale_init is None and type(self.norm1) is ModifiedLayerNorm
        pools = isinstance(token_mixer, Pooling) and token_mixer.pool_size == 3
        self.fuses_mixing = plain and pools
        self.fuses_mlp = plain and mlp is not None and mlp.fusable

    def forward(self, x: Tensor, drops: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to the same shape.

        Args:
            x: The map.
            drops: (2, B), drop path's factor of each branch and sample; None for 1.
        """
        mixing, mlp = self.backends(x.device.type)
        first, second = (None, None) if drops is None else drops
        x = (self._mixing if mixing == 'reference' else self._fused_mixing)(x, first)
        if self.mlp is not None:
            x = (self._mlp if mlp == 'reference' else self._fused_mlp)(x, self.mlp, second)
        return x

    def backends(self, device_type: str) -> tuple[str, str]:
        """Return which backend of `backbones.ops` computes each branch on a type of device.

        A branch that is no operator is computed by its modules, as by 'reference'.
        """
        backend = ops.resolve_backend(self.backend, device_type)
        return (
            backend if self.fuses_mixing else 'reference',
            backend if self.fuses_mlp else 'reference',
        )

    def _mixing(self, x: Tensor, drop: Tensor | None) -> Tensor:
        branch = self.layer_scale1(self.token_mixer(self.norm1(x)))
        return self._add(self.res_scale1(x), branch, drop)

    def _mlp(self, x: Tensor, mlp: ChannelMLP, drop: Tensor | None) -> Tensor:
        if self.recompute_mlp and torch.is_grad_enabled():
            branch = checkpoint(lambda x: mlp(self.norm2(x)), x, use_reentrant=False)
        else:
            branch = mlp(self.norm2(x))
        return self._add(self.res_scale2(x), self.layer_scale2(branch), drop)

    def _add(self, shortcut: Tensor, branch: Tensor, drop: Tensor | None) -> Tensor:
        if drop is not None:
            branch = (branch * drop.view(-1, 1, 1, 1)).to(branch.dtype)
        return shortcut + branch if self.residual else branch

    def _fused_mixing(self, x: Tensor, drop: Tensor | None) -> Tensor:
        norm, scale = cast(ModifiedLayerNorm, self.norm1), getattr(self.layer_scale1, 'scale', None)
        return ops.pool_mix(x, norm.weight, norm.bias, scale, drop, norm.eps, self.backend)

    def _fused_mlp(self, x: Tensor, mlp: ChannelMLP, drop: Tensor | None) -> Tensor:
        norm = cast(ModifiedLayerNorm, self.norm2)
        inputs = ops.MLPInputs(
            x=x,
            weight=norm.weight,
            bias=norm.bias,
            w1=mlp.fc1.weight,
            b1=mlp.fc1.bias,
            w2=mlp.fc2.weight,
            b2=mlp.fc2.bias,
            scale=getattr(self.layer_scale2, 'scale', None),
            drop=drop,
        )
        return ops.norm_mlp(inputs, norm.eps, self.recompute_mlp, self.backend)
