"""Reading checkpoints of the layouts people have, loading them strictly, converting them."""

from .convert import convert, detect_layout, from_layout, to_layout
from .download import MIRROR_VARIABLE, is_url, localise
from .errors import CheckpointError, listed
from .files import read_checkpoint, write_checkpoint
from .layouts import LAYOUTS
from .load import backbone_weights, load_pretrained

__all__ = [
    'LAYOUTS',
    'MIRROR_VARIABLE',
    'CheckpointError',
    'backbone_weights',
    'convert',
    'detect_layout',
    'from_layout',
    'is_url',
    'listed',
    'load_pretrained',
    'localise',
    'read_checkpoint',
    'to_layout',
    'write_checkpoint',
]
