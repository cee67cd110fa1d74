"""The names by which configs of the PoolFormer release call its backbones."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS

from .metaformer import PoolFormer


def _builder(name: str, arch: str) -> Callable[..., PoolFormer]:
    @functools.wraps(PoolFormer, updated=())  # its signature is what --cfg-options may set
    def build(style: str = 'pytorch', **arguments: Any) -> PoolFormer:
        if style != 'pytorch':
            raise ValueError(f"{name}: style must be 'pytorch', got {style!r}; leave it out")
        print_log(
            f"type='{name}' is deprecated; write type='PoolFormer', arch='{arch}'",
            logger='current',
            level=logging.WARNING,
        )
        return PoolFormer(arch, **arguments)

    return build


for _arch in PoolFormer.presets:
    _name = f'poolformer_{_arch}_feat'
    MODELS.register_module(name=_name, module=_builder(_name, _arch))
