"""MetaFormer backbones; importing this package registers them in mmengine's root `MODELS`."""

from . import legacy  # noqa: F401  (registers the release's names)
from .activations import ACTIVATIONS
from .metaformer import (
    CAFormer,
    ConvFormer,
    IdentityFormer,
    MetaFormer,
    PoolFormer,
    PoolFormerV2,
    RandFormer,
)
from .norms import NORMS
from .token_mixers import TOKEN_MIXERS
from .version import __version__

__all__ = [
    'ACTIVATIONS',
    'NORMS',
    'TOKEN_MIXERS',
    'CAFormer',
    'ConvFormer',
    'IdentityFormer',
    'MetaFormer',
    'PoolFormer',
    'PoolFormerV2',
    'RandFormer',
    '__version__',
]
