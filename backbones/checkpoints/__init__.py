"""Reading checkpoints of the layouts people have, and loading them strictly."""

from .files import CheckpointError, read_checkpoint
from .load import load_pretrained

__all__ = ['CheckpointError', 'load_pretrained', 'read_checkpoint']
