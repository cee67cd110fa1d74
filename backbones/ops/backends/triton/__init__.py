"""The operators on a GPU, in Triton."""

from .mlp import norm_mlp_backward, norm_mlp_forward
from .norm import norm_backward, norm_forward
from .pool import pool_mix_backward, pool_mix_forward

__all__ = [
    'norm_backward',
    'norm_forward',
    'norm_mlp_backward',
    'norm_mlp_forward',
    'pool_mix_backward',
    'pool_mix_forward',
]
