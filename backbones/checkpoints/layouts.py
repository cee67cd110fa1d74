"""How each code base names and shapes the parameters of a MetaFormer: data only.

A row pairs a template of our name with one of theirs; `conversion.py` fills them, in both
directions. The fields of a template:

``{s}``
    the stage, 0 to 3
``{d}``
    the stage that a downsampling leads to, 1 to 3
``{b}``
    the block in its stage
``{leaf}``
    weight, bias, or a buffer of batch norm
``{rest}``
    anything
``{stage}``, ``{down}``, ``{pos}``
    where stage s, the downsampling before it and its position embedding stand in the official
    ``network`` list: 0, 1, 2, ... in the order downsampling, embedding, stage
"""

from __future__ import annotations

from dataclasses import dataclass

Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """One code base's names.

    Attributes:
        rows: (ours, theirs), first match wins.
        theirs_only: What a file may have beside the backbone: classifiers and the norm after
            their pooling. The allow-list of what is dropped when reading.
        ours_only: What of ours has no place there, and is dropped when writing.
        linear: Which of our 1x1 convolutions are 2-D linear layers there: 'none', 'all', or
            'attention' (the channel MLPs of blocks that mix with attention).
        prefix: What stands before every name.
        wrapper: The entry of a .pth file that holds the tensors; None if they are at its top.
    """

    rows: Rows
    theirs_only: tuple[str, ...] = ()
    ours_only: tuple[str, ...] = ()
    linear: str = 'none'
    prefix: str = ''
    wrapper: str | None = None


# Weights of our 1x1 convolutions, (O, I, 1, 1); everything else has one shape in every layout.
POINTWISE = (
    'stages.{s}.{b}.mlp.fc1.weight',
    'stages.{s}.{b}.mlp.fc2.weight',
    'stages.{s}.{b}.token_mixer.expand.weight',
    'stages.{s}.{b}.token_mixer.project.weight',
)
# The 2-D weight that tells a block with attention.
ATTENTION = 'stages.{s}.{b}.token_mixer.qkv.weight'


def _in_blocks(theirs: str, *tables: Rows) -> Rows:
    """Rows of a block's parameters, given where a block stands in the other layout."""
    return tuple((f'stages.{{s}}.{{b}}.{a}', f'{theirs}.{b}') for t in tables for a, b in t)


_SAME = (
    ('norm1.{leaf}', 'norm1.{leaf}'),
    ('norm2.{leaf}', 'norm2.{leaf}'),
    ('mlp.fc1.{leaf}', 'mlp.fc1.{leaf}'),
    ('mlp.fc2.{leaf}', 'mlp.fc2.{leaf}'),
    ('token_mixer.qkv.{leaf}', 'token_mixer.qkv.{leaf}'),
    ('token_mixer.proj.{leaf}', 'token_mixer.proj.{leaf}'),
)
_LAYER_SCALE_V1 = (
    ('layer_scale1.scale', 'layer_scale_1'),
    ('layer_scale2.scale', 'layer_scale_2'),
)
_SCALES = (
    ('layer_scale1.scale', 'layer_scale1.scale'),
    ('layer_scale2.scale', 'layer_scale2.scale'),
    ('res_scale1.scale', 'res_scale1.scale'),
    ('res_scale2.scale', 'res_scale2.scale'),
)
_STAR_RELU = (
    ('mlp.act.scale', 'mlp.act.scale'),
    ('mlp.act.bias', 'mlp.act.bias'),
)
_SEPARABLE = (
    ('token_mixer.expand.{leaf}', 'token_mixer.pwconv1.{leaf}'),
    ('token_mixer.act.scale', 'token_mixer.act1.scale'),
    ('token_mixer.act.bias', 'token_mixer.act1.bias'),
    ('token_mixer.depthwise.{leaf}', 'token_mixer.dwconv.{leaf}'),
    ('token_mixer.project.{leaf}', 'token_mixer.pwconv2.{leaf}'),
)

_OFFICIAL: Rows = (
    ('downsamples.0.conv.{leaf}', 'patch_embed.proj.{leaf}'),
    ('downsamples.{d}.conv.{leaf}', 'network.{down}.proj.{leaf}'),
    ('position_embeddings.{s}.embedding', 'network.{pos}.pos_embed'),
    *_in_blocks(
        'network.{stage}.{b}',
        _SAME,
        _LAYER_SCALE_V1,
        (('token_mixer.fc.{leaf}', 'token_mixer.fc.{leaf}'),),
    ),
    ('output_norms.{s}.{leaf}', 'norm{stage}.{leaf}'),
)
_OUTPUT_NORMS = ('output_norms.{s}.{leaf}',)

LAYOUTS: dict[str, Layout] = {
    # This project.
    'ours': Layout(
        rows=(
            ('downsamples.{s}.{rest}', 'downsamples.{s}.{rest}'),
            ('position_embeddings.{s}.{rest}', 'position_embeddings.{s}.{rest}'),
            ('stages.{s}.{b}.{rest}', 'stages.{s}.{b}.{rest}'),
            ('output_norms.{s}.{rest}', 'output_norms.{s}.{rest}'),
        ),
        theirs_only=('norm.{leaf}', 'head.{rest}'),
        wrapper='state_dict',
    ),
    # sail-sg/poolformer v1.0, PoolFormer and hybrids. Its `norm` acts after the pooling of the
    # classifier, so it isn't our last output norm; `norm{0,2,4,6}` exist in dense models only.
    'official': Layout(_OFFICIAL, theirs_only=('norm.{leaf}', 'head.{leaf}')),
    # mmpretrain, and every detector and segmentor of the release and of mmseg's zoo.
    'mmpretrain': Layout(
        _OFFICIAL,
        theirs_only=('norm.{leaf}', 'head.{leaf}'),
        prefix='backbone.',
        wrapper='state_dict',
    ),
    # sail-sg/metaformer: IdentityFormer, RandFormer, PoolFormerV2, ConvFormer, CAFormer.
    'baselines': Layout(
        rows=(
            ('downsamples.0.conv.{leaf}', 'downsample_layers.0.conv.{leaf}'),
            ('downsamples.0.norm.{leaf}', 'downsample_layers.0.post_norm.{leaf}'),
            ('downsamples.{d}.norm.{leaf}', 'downsample_layers.{d}.pre_norm.{leaf}'),
            ('downsamples.{d}.conv.{leaf}', 'downsample_layers.{d}.conv.{leaf}'),
            *_in_blocks(
                'stages.{s}.{b}',
                _SAME,
                _SCALES,
                _STAR_RELU,
                _SEPARABLE,
                (('token_mixer.matrix', 'token_mixer.random_matrix'),),
            ),
        ),
        theirs_only=('norm.{leaf}', 'head.{rest}'),
        ours_only=_OUTPUT_NORMS,
        linear='all',
    ),
    # timm's metaformer.py: every family but the random one and the hybrids.
    'timm': Layout(
        rows=(
            ('downsamples.0.conv.{leaf}', 'stem.conv.{leaf}'),
            ('downsamples.0.norm.{leaf}', 'stem.norm.{leaf}'),
            ('downsamples.{d}.norm.{leaf}', 'stages.{d}.downsample.norm.{leaf}'),
            ('downsamples.{d}.conv.{leaf}', 'stages.{d}.downsample.conv.{leaf}'),
            *_in_blocks('stages.{s}.blocks.{b}', _SAME, _SCALES, _STAR_RELU, _SEPARABLE),
        ),
        theirs_only=('head.{rest}',),
        ours_only=_OUTPUT_NORMS,
        linear='attention',
    ),
    # transformers' PoolFormer; a model without a classifier lacks the prefix.
    'hf': Layout(
        rows=(
            ('downsamples.{s}.conv.{leaf}', 'encoder.patch_embeddings.{s}.projection.{leaf}'),
            *_in_blocks(
                'encoder.block.{s}.{b}',
                (
                    ('norm1.{leaf}', 'before_norm.{leaf}'),
                    ('norm2.{leaf}', 'after_norm.{leaf}'),
                    ('mlp.fc1.{leaf}', 'output.conv1.{leaf}'),
                    ('mlp.fc2.{leaf}', 'output.conv2.{leaf}'),
                ),
                _LAYER_SCALE_V1,
            ),
        ),
        theirs_only=('norm.{leaf}', 'classifier.{leaf}'),
        ours_only=_OUTPUT_NORMS,
        prefix='poolformer.',
    ),
}
