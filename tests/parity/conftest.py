"""Independent implementations of our networks ("peers"), each by the fixture of its name.

They are in an environment of their own, .venv-peers, which `make test` prepares; in any other the
tests skip. A peer that is installed but can't be imported is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import nn

from poolformer_dense.measure.benchmark.peers import make_torchvision_importable


def _peer(package: str, module: str) -> ModuleType:
    if find_spec(package) is None:
        pytest.skip(f'{package} is not installed here; `make peers` installs it in .venv-peers')
    make_torchvision_importable()
    return import_module(module)


@pytest.fixture(scope='session', autouse=True)
def _one_thread() -> Iterator[None]:
    """Maps are so small that threads mostly wait for each other, minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def timm() -> ModuleType:
    return _peer('timm', 'timm.models.metaformer')


@pytest.fixture(scope='session')
def transformers() -> ModuleType:
    return _peer('transformers', 'transformers')


@pytest.fixture(scope='session')
def mmpretrain() -> ModuleType:
    return _peer('mmpretrain', 'mmpretrain.models.backbones')


@pytest.fixture(scope='session')
def randomise() -> Callable[[nn.Module], None]:
    """Draw parameters that keep a deep network's features of order 1 and hide no branch."""

    @torch.no_grad()
    def draw(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith('matrix'):  # of random mixing
                parameter.copy_(torch.randn_like(parameter).mul(2).softmax(dim=-1))
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif name.endswith('bias'):
                parameter.normal_(std=0.5)
            else:  # of a norm, a layer scale, a residual scale or StarReLU
                parameter.uniform_(0.5, 1.5)

    return draw
