"""Fixtures of the tests of configs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from poolformer_dense.config.load import load_config


@pytest.fixture(scope='session')
def load(root) -> Callable[[str], Config]:
    """Read a config by its name below configs/, once; return a copy and set its default scope."""
    cached = functools.cache(lambda name: load_config(str(root / f'configs/{name}.py')))

    def load_copy(name: str) -> Config:
        cfg = copy.deepcopy(cached(name))
        init_default_scope(cfg.default_scope)
        return cfg

    return load_copy


@pytest.fixture(scope='session')
def meta_model(load) -> Callable[[str], nn.Module]:
    """Build a config's model without data, once; not to be changed."""

    @functools.cache
    def build(name: str) -> nn.Module:
        with torch.device('meta'):
            return MODELS.build(load(name).model)

    return build
