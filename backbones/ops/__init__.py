"""Fused operators of the MetaFormer block, each with the reference that specifies it."""

from .modified_layer_norm import modified_layer_norm
from .norm_mlp import MLPInputs, norm_mlp
from .pool_mix import pool_mix
from .selection import BACKENDS, check_backend, resolve_backend, use_backend
from .tracing import is_exporting, plain_layout

__all__ = [
    'BACKENDS',
    'MLPInputs',
    'check_backend',
    'is_exporting',
    'modified_layer_norm',
    'norm_mlp',
    'plain_layout',
    'pool_mix',
    'resolve_backend',
    'use_backend',
]
