"""Fused operators of the MetaFormer block; `reference` is their specification."""

from .dispatch import modified_layer_norm, norm_mlp, pool_mix
from .paths import PATHS, checked, resolve, use

__all__ = ['PATHS', 'checked', 'modified_layer_norm', 'norm_mlp', 'pool_mix', 'resolve', 'use']
