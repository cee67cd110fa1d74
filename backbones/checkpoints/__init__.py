"""Reading checkpoints of the layouts people have, loading them strictly, converting them."""

from .conversion import convert_names, detect_layout, from_layout, to_layout
from .fetching import MIRROR_VARIABLE, is_url, localise
from .fitting import Fit, fit, load_weights, reorder_optimizer, weights_of
from .layouts import LAYOUTS
from .reading import check_source, read_checkpoint, read_outline, safe_reading
from .refusals import CheckpointError, listed
from .seal import seal_holds

__all__ = [
    'LAYOUTS',
    'MIRROR_VARIABLE',
    'CheckpointError',
    'Fit',
    'check_source',
    'convert_names',
    'detect_layout',
    'fit',
    'from_layout',
    'is_url',
    'listed',
    'load_weights',
    'localise',
    'read_checkpoint',
    'read_outline',
    'reorder_optimizer',
    'safe_reading',
    'seal_holds',
    'to_layout',
    'weights_of',
]
