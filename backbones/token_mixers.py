"""Token mixers: each maps (B, C, H, W) to (B, C, H, W) and owns its reshapes.

A new mixer is a module whose constructor takes the channels ``dim`` first, registered in
`TOKEN_MIXERS`; see docs/add_a_mixer.md.
"""

# torch declares that modules return Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import Registry
from torch import Tensor, nn

from . import ops
from .activations import StarReLU

TOKEN_MIXERS = Registry('token mixer')


@TOKEN_MIXERS.register_module()
class Pooling(nn.Module):
    """Average pooling minus its input (arXiv 2111.11418, equation 4 and algorithm 1).

    The block around it adds its input back, so the mixer subtracts it. The border averages over
    the pixels that exist, hence a constant map is mapped to zero.

    Args:
        dim: Channels C; pooling does not depend on them.
        pool_size: Odd side of the window, in pixels.
    """

    def __init__(self, dim: int, pool_size: int = 3) -> None:
        super().__init__()
        self.pool_size = _odd('pool_size', pool_size)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(
            x, self.pool_size, stride=1, padding=self.pool_size // 2, count_include_pad=False
        )
        return pooled - x

    def extra_repr(self) -> str:
        return f'pool_size={self.pool_size}'


@TOKEN_MIXERS.register_module()
class IdentityMixing(nn.Identity):
    """No mixing at all (arXiv 2111.11418, Table 5; IdentityFormer of arXiv 2210.13452)."""


class _FixedTokens(nn.Module):
    """Mixing by a matrix over all tokens, so over a fixed number of them.

    Args:
        resolution: Height and width of the map in tokens, e.g. 14 and 14 in stage 3 at 224x224.
        interpolate: Resize a map of another size to ``resolution`` and back, bilinearly, instead
            of raising; a detector's images have many sizes.
    """

    def __init__(self, resolution: Sequence[int], interpolate: bool) -> None:
        super().__init__()
        self.resolution = tuple(resolution)
        self.interpolate = interpolate

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        # A trace is for any size; a map that is resized to its own size stays as it is.
        any_size = self.interpolate and ops.is_exporting()
        if not any_size and size == self.resolution:
            return self.mix(x.flatten(2)).reshape(x.shape)
        if not self.interpolate:
            raise ValueError(
                f'{type(self).__name__} is built for {self.resolution} tokens, got {size}; feed '
                'images of the size it was built for, or set interpolate=True'
            )
        x = F.interpolate(x, self.resolution, mode='bilinear')
        x = self.mix(x.flatten(2)).reshape(x.shape)
        return F.interpolate(x, size, mode='bilinear')

    def mix(self, tokens: Tensor) -> Tensor:
        """Mix (B, C, N) over its tokens N."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f'resolution={self.resolution}, interpolate={self.interpolate}'


@TOKEN_MIXERS.register_module()
class RandomMixing(_FixedTokens):
    """A frozen random matrix over all tokens, rows normalised by softmax (arXiv 2210.13452, 2.2).

    See `_FixedTokens` for ``resolution`` and ``interpolate``; C does not matter.
    """

    def __init__(self, dim: int, resolution: Sequence[int], interpolate: bool = False) -> None:
        super().__init__(resolution, interpolate)
        tokens = self.resolution[0] * self.resolution[1]
        matrix = torch.rand(tokens, tokens).softmax(dim=-1)
        self.matrix = nn.Parameter(matrix, requires_grad=False)

    def mix(self, tokens: Tensor) -> Tensor:
        return tokens @ self.matrix.T  # out[n] = sum_m matrix[n, m] tokens[m]


@TOKEN_MIXERS.register_module()
class SpatialMLP(_FixedTokens):
    """A learned matrix over all tokens, without bias (arXiv 2111.11418, Table 5, "spatial fc").

    See `_FixedTokens` for ``resolution`` and ``interpolate``; C does not matter.
    """

    def __init__(self, dim: int, resolution: Sequence[int], interpolate: bool = False) -> None:
        super().__init__(resolution, interpolate)
        tokens = self.resolution[0] * self.resolution[1]
        self.fc = nn.Linear(tokens, tokens, bias=False)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)

    def mix(self, tokens: Tensor) -> Tensor:
        return self.fc(tokens)


@TOKEN_MIXERS.register_module()
class DepthwiseConv(nn.Module):
    """A depthwise convolution (arXiv 2111.11418, Table 5).

    Args:
        dim: Channels C.
        kernel_size: Odd side of the kernel, in pixels.
    """

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        kernel_size = _odd('kernel_size', kernel_size)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@TOKEN_MIXERS.register_module()
class SeparableConv(nn.Module):
    """Inverted separable convolution: expand, activate, depthwise, project (arXiv 2210.13452, 2.2).

    Args:
        dim: Channels C.
        expansion: Channels of the depthwise convolution over C.
        kernel_size: Odd side of the depthwise kernel, in pixels.
    """

    def __init__(self, dim: int, expansion: float = 2, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        kernel_size = _odd('kernel_size', kernel_size)
        self.expand = nn.Conv2d(dim, hidden, kernel_size=1, bias=False)
        self.act = StarReLU()
        self.depthwise = nn.Conv2d(
            hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=False
        )
        self.project = nn.Conv2d(hidden, dim, kernel_size=1, bias=False)
        for conv in (self.expand, self.depthwise, self.project):
            nn.init.trunc_normal_(conv.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.depthwise(self.act(self.expand(x))))


@TOKEN_MIXERS.register_module()
class Attention(nn.Module):
    """Multi-head self-attention over all tokens (arXiv 1706.03762), heads of ``head_dim`` channels.

    Args:
        dim: Channels C, a multiple of ``head_dim``.
        head_dim: Channels of one head.
        proj_bias: Whether the output projection has a bias; query, key and value have none.
    """

    def __init__(self, dim: int, head_dim: int = 32, proj_bias: bool = False) -> None:
        super().__init__()
        if dim % head_dim:
            raise ValueError(f'Attention: dim {dim} is not a multiple of head_dim {head_dim}')
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        if proj_bias:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        qkv = self.qkv(tokens).unflatten(2, (3, -1, self.head_dim))  # (B, N, 3, heads, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, D) each
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = self.proj(mixed.transpose(1, 2).flatten(2))  # (B, N, C)
        return ops.plain_layout(mixed.transpose(1, 2).unflatten(2, size))


def _odd(name: str, value: int) -> int:
    if value < 1 or value % 2 == 0:
        raise ValueError(f'{name} must be a positive odd integer, got {value}')
    return value
