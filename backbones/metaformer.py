"""The MetaFormer skeleton: downsampling, stages, multi-scale outputs, freezing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import MetaFormerBlock, ModifiedLayerNorm
from .checkpoints import load_pretrained
from .presets import POOLFORMER, Arch, resolve_arch
from .token_mixers import Pooling

NUM_STAGES = 4


class Downsample(nn.Module):
    """A strided convolution: the 7x7/4 stem, or the 3x3/2 step between two stages."""

    def __init__(self, in_channels: int, dim: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MetaFormer(BaseModule):
    """A four-stage MetaFormer that returns feature maps of strides 4, 8, 16 and 32.

    Stages after the last one of ``out_indices`` and norms of stages that are not in it do not
    exist, so that every parameter takes part in the loss and DDP needs no
    ``find_unused_parameters``.

    Args:
        arch: A name from the family's table in ``backbones/presets.py``, or a spec such as
            ``dict(depths=(2, 2, 6, 2), dims=(64, 128, 320, 512))``.
        out_indices: The stages to return, in rising order, each normalised by its own norm.
        drop_path_rate: Drop path of the last block, rising linearly from 0 at the first, [0, 1).
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages with the
            downsampling before them. Output norms are never frozen: ImageNet files lack them.
        with_cp: Recompute each block in backward instead of keeping its activations.
        in_channels: Channels of the input image.
        init_cfg: mmengine's; ``dict(type='Pretrained', checkpoint=PATH_OR_URL)`` loads weights,
            strictly, in any layout that ``backbones/checkpoints`` knows.

    Raises:
        ValueError: An argument is outside what is named above.
    """

    presets: ClassVar[Mapping[str, Arch]] = {}

    def __init__(
        self,
        arch: str | Mapping | Arch,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = resolve_arch(arch, self.presets)
        self.out_indices = _checked_out_indices(out_indices)
        num_stages = self.out_indices[-1] + 1
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}')
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(
                f'frozen_stages must be from -1 (nothing) to {num_stages} (all stages built for '
                f'out_indices={self.out_indices}), got {frozen_stages}'
            )
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        dims = self.arch.dims
        self.downsamples = nn.ModuleList(
            [Downsample(in_channels, dims[0], kernel_size=7, stride=4, padding=2)]
            + [
                Downsample(dims[i - 1], dims[i], kernel_size=3, stride=2, padding=1)
                for i in range(1, num_stages)
            ]
        )
        num_blocks = sum(self.arch.depths)
        rates = [drop_path_rate * i / max(1, num_blocks - 1) for i in range(num_blocks)]
        self.stages = nn.ModuleList()
        for i in range(num_stages):
            first = sum(self.arch.depths[:i])
            blocks = [self.build_block(i, rates[first + j]) for j in range(self.arch.depths[i])]
            self.stages.append(nn.Sequential(*blocks))
        self.output_norms = nn.ModuleDict(
            {str(i): ModifiedLayerNorm(dims[i]) for i in self.out_indices}
        )
        self._freeze()

    def build_block(self, stage: int, drop_path: float) -> MetaFormerBlock:
        """Build one block of a stage (0 to 3)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, in_channels, H, W) to a map (B, C_i, H_i, W_i) for each output stage."""
        outputs = []
        for i, (downsample, blocks) in enumerate(zip(self.downsamples, self.stages, strict=True)):
            x = downsample(x)
            for block in blocks:
                if self.with_cp and torch.is_grad_enabled():
                    # The reentrant variant loses gradients when its input needs none, as behind a
                    # frozen stem.
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            if i in self.out_indices:
                outputs.append(self.output_norms[str(i)](x))
        return tuple(outputs)

    def init_weights(self) -> None:
        """Load ``init_cfg``'s checkpoint, if it names one; constructors have done the rest."""
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        pretrained = [cfg for cfg in configs if cfg and cfg['type'] == 'Pretrained']
        if not pretrained or self.is_init:
            super().init_weights()
            return
        if len(configs) > 1:
            raise ValueError(
                "init_cfg: 'Pretrained' sets every weight, nothing may stand beside it"
            )
        load_pretrained(self, pretrained[0]['checkpoint'], pretrained[0].get('prefix'))
        self.is_init = True

    def train(self, mode: bool = True) -> MetaFormer:
        """Set training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        stem_and_steps = self.downsamples[: max(1, self.frozen_stages)]
        for module in (*stem_and_steps, *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)


@MODELS.register_module()
class PoolFormer(MetaFormer):
    """PoolFormer: the MetaFormer whose token mixer is average pooling (arXiv 2111.11418).

    ``arch`` is one of s12, s24, s36, m36, m48 or a spec; see `MetaFormer` for all arguments.
    """

    presets = POOLFORMER

    def build_block(self, stage: int, drop_path: float) -> MetaFormerBlock:
        return MetaFormerBlock(
            dim=self.arch.dims[stage],
            token_mixer=Pooling(self.arch.pool_size),
            mlp_ratio=self.arch.mlp_ratio,
            layer_scale_init=self.arch.layer_scale_init,
            drop_path=drop_path,
        )


def _checked_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices) & set(range(NUM_STAGES))):
        raise ValueError(
            f'out_indices must be rising stage numbers out of 0, 1, 2, 3, got {out_indices!r}'
        )
    return indices
