"""The released ImageNet weights, by the name of their architecture.

Wherever a checkpoint is asked for, a name of `RELEASED` stands for its URL:
``init_cfg=dict(type='Pretrained', checkpoint='poolformer_s12')``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """One released file.

    Attributes:
        arch: The architecture, a name of `presets.PRESETS`.
        url: Where it is released.
        top1: Published ImageNet-1k accuracy in percent; None where the file has 21,841 classes.
        resolution: Side of the images of that accuracy, in pixels.
        sha256: Checksum of the file where it is known; None otherwise, and then the checksum of
            the first download is recorded beside the file and checked from then on.
        licence: The licence of the repository that released it.
    """

    arch: str
    url: str
    top1: float | None
    resolution: int = 224
    sha256: str | None = None
    licence: str = 'Apache-2.0'


_V1 = 'https://github.com/sail-sg/poolformer/releases/download/v1.0/{name}.pth.tar'
_V2 = 'https://huggingface.co/sail/dl/resolve/main/{family}/{name}.pth'

# arXiv 2111.11418: Table 1 for PoolFormer, Table 5 for the others; github.com/sail-sg/poolformer.
_TOP1_V1 = {
    'poolformer_s12': 77.2,
    'poolformer_s24': 80.3,
    'poolformer_s36': 81.4,
    'poolformer_m36': 82.1,
    'poolformer_m48': 82.5,
    'metaformer_id_s12': 74.3,
    'metaformer_pppa_s12_224': 78.3,
    'metaformer_ppaa_s12_224': 81.0,
    'metaformer_pppf_s12_224': 77.5,
    'metaformer_ppff_s12_224': 77.9,
}
# arXiv 2210.13452 and github.com/sail-sg/metaformer, by family and size.
_TOP1_V2: dict[str, dict[str, float | None]] = {
    'identityformer': {'s12': 74.6, 's24': 78.2, 's36': 79.3, 'm36': 80.0, 'm48': 80.4},
    'randformer': {'s12': 76.6, 's24': 78.2, 's36': 79.5, 'm36': 81.2, 'm48': 81.4},
    'poolformerv2': {'s12': 78.0, 's24': 80.7, 's36': 81.6, 'm36': 82.2, 'm48': 82.6},
    'convformer': {'s18': 83.0, 's36': 84.1, 'm36': 84.5, 'b36': 84.8},
    'caformer': {'s18': 83.6, 's36': 84.5, 'm36': 85.2, 'b36': 85.5},
}
# The same architectures trained further or on more; ImageNet-21k alone has no published accuracy.
_TOP1_V2_VARIANTS: dict[str, dict[str, dict[str, float | None]]] = {
    '_384': {
        'convformer': {'s18': 84.4, 's36': 85.4, 'm36': 85.6, 'b36': 85.7},
        'caformer': {'s18': 85.0, 's36': 85.7, 'm36': 86.2, 'b36': 86.4},
    },
    '_in21ft1k': {
        'convformer': {'s18': 83.7, 's36': 85.4, 'm36': 86.1, 'b36': 87.0},
        'caformer': {'s18': 84.1, 's36': 85.8, 'm36': 86.6, 'b36': 87.4},
    },
    '_384_in21ft1k': {
        'convformer': {'s18': 85.0, 's36': 86.4, 'm36': 86.9, 'b36': 87.6},
        'caformer': {'s18': 85.4, 's36': 86.9, 'm36': 87.5, 'b36': 88.1},
    },
    '_in21k': {
        'convformer': {'s18': None, 's36': None, 'm36': None, 'b36': None},
        'caformer': {'s18': None, 's36': None, 'm36': None, 'b36': None},
    },
}

RELEASED: dict[str, Weights] = {
    name: Weights(name, _V1.format(name=name), top1) for name, top1 in _TOP1_V1.items()
}
for _variant, _families in {'': _TOP1_V2, **_TOP1_V2_VARIANTS}.items():
    for _family, _sizes in _families.items():
        for _size, _top1 in _sizes.items():
            _arch = f'{_family}_{_size}'
            _name = _arch + _variant
            _url = _V2.format(family=_family, name=_name)
            _side = 384 if '_384' in _variant else 224
            RELEASED[_name] = Weights(_arch, _url, _top1, _side)
