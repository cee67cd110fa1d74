"""Every published architecture as one row of one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

NUM_STAGES = 4
Spec = str | Mapping[str, Any]
PerStage = Sequence[Any]


@dataclass(frozen=True)
class Arch:
    """What defines a MetaFormer. A spec of a module is its registered name or a dict with `type`.

    Attributes:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        token_mixers: Spec of the mixer of each stage, or one for all (`TOKEN_MIXERS`).
        norm: Spec of the blocks' norms and of the output norms (`NORMS`).
        downsample_norm: Spec of the norm after the stem and before each later downsampling.
        activation: Spec of the channel MLP's activation (`ACTIVATIONS`).
        mlp_ratio: Hidden channels of the channel MLP over its input; 0 leaves the MLP out.
        mlp_bias: Whether its two layers have biases.
        layer_scale_init: Initial factor of each branch, per channel; None for no layer scale.
        res_scale_init: Initial factor of the residual of each stage, per channel; None for none.
        residual: Whether a block adds its input to its branches.
        position_embeddings: Height and width of a learned embedding added before each stage.
    """

    depths: Sequence[int]
    dims: Sequence[int]
    token_mixers: Spec | PerStage = 'Pooling'
    norm: Spec = 'ModifiedLayerNorm'
    downsample_norm: Spec = 'NoNorm'
    activation: Spec = 'GELU'
    mlp_ratio: float = 4.0
    mlp_bias: bool = True
    layer_scale_init: float | None = 1e-5
    res_scale_init: PerStage = field(default=(None,) * NUM_STAGES)
    residual: bool = True
    position_embeddings: PerStage = field(default=(None,) * NUM_STAGES)

    def __post_init__(self) -> None:
        if isinstance(self.token_mixers, (str, Mapping)):
            object.__setattr__(self, 'token_mixers', (self.token_mixers,) * NUM_STAGES)
        for name in ('depths', 'dims'):
            values = tuple(getattr(self, name))
            if len(values) != NUM_STAGES or not all(isinstance(v, int) and v > 0 for v in values):
                raise ValueError(f'arch.{name} must be four positive integers, got {values!r}')
        for name in ('depths', 'dims', 'token_mixers', 'res_scale_init', 'position_embeddings'):
            values = tuple(getattr(self, name))
            if len(values) != NUM_STAGES:
                raise ValueError(f'arch.{name} must have one entry a stage (4), got {len(values)}')
            object.__setattr__(self, name, values)


def _sizes(
    names: str, depths: Sequence[Sequence[int]], dims: Sequence[Sequence[int]], **shared: Any
) -> dict[str, Arch]:
    rows = zip(names.split(), depths, dims, strict=True)
    return {name: Arch(depths=depth, dims=dim, **shared) for name, depth, dim in rows}


_S, _M = (64, 128, 320, 512), (96, 192, 384, 768)
_BASIC = [(2, 2, 6, 2), (4, 4, 12, 4), (6, 6, 18, 6), (6, 6, 18, 6), (8, 8, 24, 8)]
_CONV = [(3, 3, 9, 3), (3, 12, 18, 3), (3, 12, 18, 3), (3, 12, 18, 3)]
_CONV_DIMS = [_S, _S, (96, 192, 384, 576), (128, 256, 512, 768)]
# arXiv 2210.13452, section 2 and appendix: what all of its models share.
_V2 = dict(
    downsample_norm=dict(type='ChannelLayerNorm', eps=1e-6, bias=False),
    activation='StarReLU',
    mlp_bias=False,
    layer_scale_init=None,
    res_scale_init=(None, None, 1.0, 1.0),
)
_V2_BASIC = _V2 | dict(norm=dict(type='ModifiedLayerNorm', eps=1e-6, bias=False))
_V2_CONV = _V2 | dict(norm=dict(type='ChannelLayerNorm', eps=1e-6, bias=False))
_BASIC_DIMS = [_S, _S, _S, _M, _M]
_RANDOM = (
    'IdentityMixing',
    'IdentityMixing',
    dict(type='RandomMixing', resolution=(14, 14)),
    dict(type='RandomMixing', resolution=(7, 7)),
)

# arXiv 2111.11418, Table 1; section 4.1 gives the layer-scale values.
_POOLFORMER = {
    name: replace(arch, layer_scale_init=1e-5 if name in ('s12', 's24') else 1e-6)
    for name, arch in _sizes('s12 s24 s36 m36 m48', _BASIC, _BASIC_DIMS).items()
}
FAMILIES: dict[str, dict[str, Arch]] = {
    'poolformer': _POOLFORMER,
    # arXiv 2210.13452, Tables 1 (sizes) and 2; the same sizes for the three basic mixers.
    'identityformer': _sizes(
        's12 s24 s36 m36 m48', _BASIC, _BASIC_DIMS, token_mixers='IdentityMixing', **_V2_BASIC
    ),
    'randformer': _sizes(
        's12 s24 s36 m36 m48', _BASIC, _BASIC_DIMS, token_mixers=_RANDOM, **_V2_BASIC
    ),
    'poolformerv2': _sizes(
        's12 s24 s36 m36 m48', _BASIC, _BASIC_DIMS, token_mixers='Pooling', **_V2_BASIC
    ),
    # arXiv 2210.13452, Table 1.
    'convformer': _sizes(
        's18 s36 m36 b36', _CONV, _CONV_DIMS, token_mixers='SeparableConv', **_V2_CONV
    ),
    'caformer': _sizes(
        's18 s36 m36 b36',
        _CONV,
        _CONV_DIMS,
        token_mixers=('SeparableConv', 'SeparableConv', 'Attention', 'Attention'),
        **_V2_CONV,
    ),
}
PRESETS: dict[str, Arch] = {
    f'{family}_{size}': arch for family, sizes in FAMILIES.items() for size, arch in sizes.items()
}

# arXiv 2111.11418, Table 5, the hybrids and the identity, as released: attention comes with channel
# layer norm in all stages and a position embedding before the first attention stage.
_S12 = PRESETS['poolformer_s12']
_ATTENTION = dict(type='Attention', proj_bias=True)
_FC3, _FC4 = (dict(type='SpatialMLP', resolution=size) for size in ((14, 14), (7, 7)))
PRESETS |= {
    'metaformer_id_s12': replace(_S12, token_mixers='IdentityMixing'),
    'metaformer_pppa_s12_224': replace(
        _S12,
        token_mixers=('Pooling', 'Pooling', 'Pooling', _ATTENTION),
        norm='ChannelLayerNorm',
        position_embeddings=(None, None, None, (7, 7)),
    ),
    'metaformer_ppaa_s12_224': replace(
        _S12,
        token_mixers=('Pooling', 'Pooling', _ATTENTION, _ATTENTION),
        norm='ChannelLayerNorm',
        position_embeddings=(None, None, (14, 14), None),
    ),
    'metaformer_pppf_s12_224': replace(_S12, token_mixers=('Pooling', 'Pooling', 'Pooling', _FC4)),
    'metaformer_ppff_s12_224': replace(_S12, token_mixers=('Pooling', 'Pooling', _FC3, _FC4)),
}


def resolve_arch(arch: Spec | Arch, presets: Mapping[str, Arch]) -> Arch:
    """Return the architecture that a name or a spec stands for.

    Args:
        arch: A name of ``presets``, or a mapping of `Arch`'s attributes (``depths`` and ``dims``
            at least), or an `Arch`.
        presets: The named architectures to choose from.

    Raises:
        ValueError: The name is not in the table, or the spec is incomplete or has unknown entries.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in presets:
            raise ValueError(f'unknown arch {arch!r}; choose from {", ".join(presets)}')
        return presets[arch]
    known = [f.name for f in fields(Arch)]
    if unknown := sorted(set(arch) - set(known)):
        raise ValueError(f'unknown entries {unknown} in arch; it takes {", ".join(known)}')
    if missing := [name for name in ('depths', 'dims') if name not in arch]:
        raise ValueError(f'arch lacks {" and ".join(missing)}; it takes {", ".join(known)}')
    return Arch(**arch)
