"""MetaFormer backbones; importing this package registers them in mmengine's root `MODELS`."""

from .metaformer import MetaFormer, PoolFormer
from .version import __version__

__all__ = ['MetaFormer', 'PoolFormer', '__version__']
