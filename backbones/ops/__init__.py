"""Fused operators of the MetaFormer block, each with the reference that specifies it."""

from .modified_layer_norm import modified_layer_norm
from .norm_mlp import MLPInputs, norm_mlp
from .pool_mix import pool_mix
from .selection import BACKENDS, check_backend, resolve_backend, use_backend

__all__ = [
    'BACKENDS',
    'MLPInputs',
    'check_backend',
    'modified_layer_norm',
    'norm_mlp',
    'pool_mix',
    'resolve_backend',
    'use_backend',
]
