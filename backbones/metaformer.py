"""The MetaFormer skeleton: downsampling, stages, multi-scale outputs, freezing."""

# torch declares that modules return Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS, Registry
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .activations import ACTIVATIONS
from .blocks import ChannelMLP, MetaFormerBlock
from .checkpoints import load_weights
from .fuse import fold_block
from .norms import NORMS, ModifiedLayerNorm
from .ops import check_backend, is_exporting, resolve_backend
from .presets import FAMILIES, NUM_STAGES, PRESETS, Arch, PerStage, Spec, resolve_arch
from .token_mixers import TOKEN_MIXERS


class Stem(nn.Module):
    """A 7x7 convolution of stride 4, then its norm."""

    def __init__(self, in_channels: int, dim: int, norm: Spec) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, kernel_size=7, stride=4, padding=2)
        self.norm = _build(NORMS, norm, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Downsample(nn.Module):
    """The step between two stages: a norm, then a 3x3 convolution of stride 2."""

    def __init__(self, in_channels: int, dim: int, norm: Spec) -> None:
        super().__init__()
        self.norm = _build(NORMS, norm, in_channels)
        self.conv = nn.Conv2d(in_channels, dim, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class PositionEmbedding(nn.Module):
    """A learned map added to the features, resized bicubically to maps of another size."""

    def __init__(self, dim: int, resolution: Sequence[int]) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(1, dim, *resolution))

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.embedding
        # A trace is for any size; a map that is resized to its own size stays as it is.
        if is_exporting() or x.shape[2:] != embedding.shape[2:]:
            embedding = F.interpolate(embedding, x.shape[2:], mode='bicubic')
        return x + embedding


class MetaFormer(BaseModule):
    """A four-stage MetaFormer that returns feature maps of strides 4, 8, 16 and 32.

    Stages after the last one of ``out_indices`` and norms of stages that are not in it do not
    exist, so that every parameter takes part in the loss and DDP needs no
    ``find_unused_parameters``.

    Args:
        arch: A name from the table in ``backbones/presets.py`` (without the family's name where
            the class is a family), or a spec of `Arch`'s attributes such as
            ``dict(depths=(2, 2, 6, 2), dims=(64, 128, 320, 512))``.
        out_indices: The stages to return, in rising order, each normalised by its own norm.
        drop_path_rate: Drop path of the last block, rising linearly from 0 at the first, [0, 1).
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages with the
            downsampling before them. Output norms are never frozen: ImageNet files lack them.
        with_cp: Recompute each block in backward instead of keeping its activations.
        backend: What computes the blocks and their norms: 'auto' takes fused operators on a CPU
            where they cover the block, 'triton' kernels for a GPU, 'reference' plain torch; see
            `backbones.ops.use_backend`.
        recompute: 'mlp' recomputes the hidden activations of the channel MLPs in backward: a third
            of the memory for a few percent of the time.
        in_channels: Channels of the input image.
        token_mixers: In place of the arch's: a registered name or a spec, or one for each stage.
        norm: In place of the arch's norm of blocks and outputs.
        activation: In place of the arch's activation of the channel MLP.
        mlp_ratio: In place of the arch's; 0 leaves the channel MLP out.
        residual: In place of the arch's; False leaves the residual connections out.
        ops: The former name of ``backend``, refused.
        init_cfg: mmengine's; ``dict(type='Pretrained', checkpoint=PATH_OR_URL)`` loads weights,
            strictly, in any layout that ``backbones/checkpoints`` knows.

    Attributes:
        out_channels: Channels of each output, as a neck's ``in_channels`` needs them.
        out_strides: Pixels of the image from one value of each output to the next.
        contiguous: Whether the outputs are (the default). False hands them on in the layout that
            the stages compute in, on CPUs channels_last: faster for the layers behind, but mmcv's
            operators on CPUs take it for contiguous without a word, and RoIAlign pools other
            pixels. Only where nothing behind is of that kind, or is given contiguous maps.

    Raises:
        ValueError: An argument is outside what is named above.
    """

    presets: Mapping[str, Arch] = PRESETS
    contiguous = True
    is_init: bool  # mmengine's

    def __init__(
        self,
        arch: Spec | Arch,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        backend: str = 'auto',
        recompute: str | None = None,
        in_channels: int = 3,
        token_mixers: Spec | PerStage | None = None,
        norm: Spec | None = None,
        activation: Spec | None = None,
        mlp_ratio: float | None = None,
        residual: bool | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        ops: str | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if ops is not None:
            raise ValueError(
                f'ops={ops!r}: the argument is now called backend; write backend={ops!r}'
            )
        changes: dict[str, Any] = dict(
            token_mixers=token_mixers,
            norm=norm,
            activation=activation,
            mlp_ratio=mlp_ratio,
            residual=residual,
        )
        changes = {name: value for name, value in changes.items() if value is not None}
        self.arch = replace(resolve_arch(arch, self.presets), **changes)
        self.out_indices = _checked_out_indices(out_indices)
        self.out_channels = tuple(self.arch.dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2**i for i in self.out_indices)
        num_stages = self.out_indices[-1] + 1
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}')
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(
                f'frozen_stages must be from -1 (nothing) to {num_stages} (all stages built for '
                f'out_indices={self.out_indices}), got {frozen_stages}'
            )
        if recompute not in (None, 'mlp'):
            raise ValueError(f"recompute must be None or 'mlp', got {recompute!r}")
        self.drop_path_rate = drop_path_rate
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        dims, norm = self.arch.dims, self.arch.downsample_norm
        self.downsamples = nn.ModuleList([Stem(in_channels, dims[0], norm)])
        for i in range(1, num_stages):
            self.downsamples.append(Downsample(dims[i - 1], dims[i], norm))
        self.position_embeddings = nn.ModuleDict()
        self.stages = nn.ModuleList()
        for i in range(num_stages):
            if resolution := self.arch.position_embeddings[i]:
                self.position_embeddings[str(i)] = PositionEmbedding(dims[i], resolution)
            blocks = [build_block(self.arch, i) for _ in range(self.arch.depths[i])]
            self.stages.append(nn.Sequential(*blocks))
        self.output_norms = nn.ModuleDict(
            {str(i): _build(NORMS, self.arch.norm, dims[i]) for i in self.out_indices}
        )
        for module in self.modules():
            if isinstance(module, MetaFormerBlock):
                module.recompute_mlp = recompute == 'mlp'
        self.set_backend(backend)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, in_channels, H, W) to a map (B, C_i, H_i, W_i) for each output stage."""
        if resolve_backend(self.backend, x.device.type) != 'reference':
            # Fused operators and convolutions are faster on it; shapes and values are the same.
            x = x.contiguous(memory_format=torch.channels_last)
        drops = iter(self.draw_drops(x))
        outputs = []
        for i, (downsample, blocks) in enumerate(zip(self.downsamples, self.stages, strict=True)):
            x = downsample(x)
            if str(i) in self.position_embeddings:
                x = self.position_embeddings[str(i)](x)
            for block in blocks.children():
                if self.with_cp and torch.is_grad_enabled():
                    # The reentrant variant loses gradients when its input needs none, as behind a
                    # frozen stem.
                    x = checkpoint(block, x, next(drops), use_reentrant=False)
                else:
                    x = block(x, next(drops))
            if i in self.out_indices:
                output = self.output_norms[str(i)](x)
                outputs.append(output.contiguous() if self.contiguous else output)
        return tuple(outputs)

    def set_backend(self, backend: str) -> None:
        """Choose what computes the blocks and their norms, as the constructor does.

        Raises:
            ValueError: There is no such backend, or it can't run here.
        """
        self.backend = check_backend(backend)
        for module in self.modules():
            if isinstance(module, (MetaFormerBlock, ModifiedLayerNorm)):
                module.backend = backend

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
        load_weights(self, pretrained[0]['checkpoint'], prefix=pretrained[0].get('prefix'))
        self.is_init = True

    def train(self, mode: bool = True) -> MetaFormer:
        """Set training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def fuse(self, dtype: torch.dtype | None = None) -> MetaFormer:
        """Fold norms and layer scales into the convolutions, in place, for inference.

        Load weights before: the folded model's state dict has no layer scales. It can't be trained.

        Args:
            dtype: Convert the convolutions to it, once; for inference under autocast to this dtype.

        Returns:
            The model, in evaluation mode, without gradients.
        """
        for block in self.modules():
            if isinstance(block, MetaFormerBlock):
                fold_block(block)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d) and dtype is not None:
                conv.to(dtype)
        self.requires_grad_(False).eval()
        return self

    def draw_drops(self, images: Tensor) -> list[Tensor | None]:
        """Draw what drop path multiplies the branches of each block by, (2, B), or None for 1.

        Branches of whole samples are dropped in training (arXiv 1603.09382). All is drawn at once,
        which a GPU launches three kernels for instead of four a block. A seed drops the same in
        each dtype. In float32 at least: in bfloat16 one over the rate to keep is off by up to 0.4%.
        """
        blocks = [block for stage in self.stages for block in stage.children()]
        if not self.drop_path_rate or not any(block.training for block in blocks):
            return [None] * len(blocks)
        count, dtype = sum(self.arch.depths), torch.promote_types(images.dtype, torch.float32)
        keep = torch.linspace(1, 1 - self.drop_path_rate, count, dtype=dtype, device=images.device)
        keep = keep[1:, None, None]  # the first block drops nothing
        kept = torch.bernoulli(keep.float().expand(-1, 2, images.shape[0]))  # (count - 1, 2, B)
        drawn = kept / keep
        pairs = zip(blocks, [None, *drawn], strict=False)  # stages that don't exist have blocks too
        return [drops if block.training else None for block, drops in pairs]

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [*self.downsamples[: max(1, self.frozen_stages)]]
        frozen += self.stages[: self.frozen_stages]
        frozen += [m for i, m in self.position_embeddings.items() if int(i) < self.frozen_stages]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)


def build_block(arch: Arch, stage: int) -> MetaFormerBlock:
    """Build one block of a stage (0 to 3) from what is exchangeable in it."""
    dim = arch.dims[stage]
    mlp = None
    if arch.mlp_ratio:
        mlp = ChannelMLP(dim, arch.mlp_ratio, _build(ACTIVATIONS, arch.activation), arch.mlp_bias)
    return MetaFormerBlock(
        dim=dim,
        norm=partial(_build, NORMS, arch.norm),
        token_mixer=_build(TOKEN_MIXERS, cast(PerStage, arch.token_mixers)[stage], dim),
        mlp=mlp,
        layer_scale_init=arch.layer_scale_init,
        res_scale_init=arch.res_scale_init[stage],
        residual=arch.residual,
    )


def _build(registry: Registry, spec: Spec, *arguments: Any) -> nn.Module:
    options = dict(type=spec) if isinstance(spec, str) else dict(spec)
    name = options.pop('type', None)
    module = registry.get(name) if isinstance(name, str) else None
    if module is None:
        choices = ', '.join(sorted(registry.module_dict))
        raise ValueError(f'unknown {registry.name} {name!r}; choose from {choices}')
    return module(*arguments, **options)


MODELS.register_module(module=MetaFormer)


def _register_family(family: type[MetaFormer]) -> type[MetaFormer]:
    """Register a family, and let its documentation tell the arguments, which all share."""
    about, shared = family.__doc__, inspect.getdoc(MetaFormer)
    if about and shared:  # python -OO has neither
        family.__doc__ = f'{about}\n\n{shared[shared.index("Args:") :]}\n'
    return cast(type[MetaFormer], MODELS.register_module(module=family))


@_register_family
class PoolFormer(MetaFormer):
    """Average pooling (arXiv 2111.11418): s12, s24, s36, m36, m48."""

    presets = FAMILIES['poolformer']


@_register_family
class PoolFormerV2(MetaFormer):
    """Average pooling in the improved framework (arXiv 2210.13452): s12, s24, s36, m36, m48."""

    presets = FAMILIES['poolformerv2']


@_register_family
class IdentityFormer(MetaFormer):
    """No token mixing (arXiv 2210.13452): s12, s24, s36, m36, m48."""

    presets = FAMILIES['identityformer']


@_register_family
class RandFormer(MetaFormer):
    """Frozen random mixing in stages 3 and 4, at 224x224 (arXiv 2210.13452): s12 to m48."""

    presets = FAMILIES['randformer']


@_register_family
class ConvFormer(MetaFormer):
    """Inverted separable convolutions (arXiv 2210.13452): s18, s36, m36, b36."""

    presets = FAMILIES['convformer']


@_register_family
class CAFormer(MetaFormer):
    """Separable convolutions, then attention (arXiv 2210.13452): s18, s36, m36, b36."""

    presets = FAMILIES['caformer']


def _checked_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices) & set(range(NUM_STAGES))):
        raise ValueError(
            f'out_indices must be rising stage numbers out of 0, 1, 2, 3, got {out_indices!r}'
        )
    return indices
