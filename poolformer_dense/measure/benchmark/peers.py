"""Other implementations of a preset, doing the same work with the same weights.

The work is four feature maps, each after an output norm. mmpretrain includes output
norms. timm and transformers return the maps before them, so they get plain copies of our norms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from backbones import MetaFormer
from backbones.checkpoints import LAYOUTS, to_layout


class PeerUnavailable(Exception):
    """A peer can't take part: the message says which and why."""


class NormedFeatures(nn.Module):
    """A peer's features, each after an output norm; ``features`` maps peer and image to them."""

    def __init__(
        self,
        model: nn.Module,
        norms: nn.ModuleDict,
        features: Callable[[Any, Tensor], Sequence[Tensor]],
    ) -> None:
        super().__init__()
        self.model, self.norms, self.features = model, norms, features

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.features(self.model, image)
        return tuple(norm(x) for norm, x in zip(self.norms.values(), features, strict=True))


def _mmpretrain(preset: str, reference: MetaFormer) -> nn.Module:
    backbones = _import('mmpretrain', 'mmpretrain.models.backbones')
    family, _, size = preset.partition('_')
    if family != 'poolformer':
        raise PeerUnavailable(f'mmpretrain has no {preset}')
    # -1: by default its stem is frozen, which is less work
    model = backbones.PoolFormer(size, out_indices=[0, 2, 4, 6], frozen_stages=-1)
    _load(model, reference, 'mmpretrain')
    return model


def _timm(preset: str, reference: MetaFormer) -> nn.Module:
    build = getattr(_import('timm', 'timm.models.metaformer'), preset, None)
    if build is None:
        raise PeerUnavailable(f'timm has no {preset}')
    model = build(num_classes=0)
    _load(model, reference, 'timm', unused='head.')  # it has a norm, which features do not pass
    return NormedFeatures(
        model,
        copy.deepcopy(reference.output_norms),
        lambda model, image: model.forward_intermediates(image, intermediates_only=True),
    )


def _hugging_face(preset: str, reference: MetaFormer) -> nn.Module:
    transformers = _import('transformers', 'transformers')
    if not preset.startswith('poolformer_'):
        raise PeerUnavailable(f'transformers has no {preset}')
    arch = reference.arch
    config = transformers.PoolFormerConfig(depths=arch.depths, hidden_sizes=arch.dims)
    model = transformers.PoolFormerModel(config)
    _load(model, reference, 'hf')
    return NormedFeatures(
        model,
        copy.deepcopy(reference.output_norms),
        lambda model, image: model(image, output_hidden_states=True).hidden_states,
    )


# Each builds a peer of a preset with the weights of our model, which has backend='reference'.
# It maps an image to four normalised features. What can't take part raises `PeerUnavailable`.
PEERS: dict[str, Callable[[str, MetaFormer], nn.Module]] = {
    'reference': lambda preset, reference: copy.deepcopy(reference),
    'mmpretrain': _mmpretrain,
    'timm': _timm,
    'hf': _hugging_face,
}


def _load(model: nn.Module, reference: MetaFormer, layout: str, unused: str = '') -> None:
    """Copy our weights strictly, but for those of what the features do not pass."""
    prefix = LAYOUTS[layout].prefix
    weights = to_layout(reference.state_dict(), layout)
    weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    own = {k: v for k, v in model.state_dict().items() if unused and k.startswith(unused)}
    model.load_state_dict(own | weights, strict=True)


def _import(package: str, module: str) -> Any:
    if find_spec(package) is None:
        raise PeerUnavailable(f'{package} is not installed here; `make peers` installs it')
    make_torchvision_importable()
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise PeerUnavailable(f'{package} is installed but not importable: {reason}') from error


@cache
def make_torchvision_importable() -> torch.library.Library | None:
    """Let torchvision's CUDA build be imported beside a CPU torch, where its operators don't load.

    timm and mmpretrain import it. It needs the schemas of two operators, which last as long as
    what this returns.
    """
    if find_spec('torchvision') is None:
        return None
    try:
        import_module('torchvision')
    except RuntimeError:
        library = torch.library.Library('torchvision', 'DEF')
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        return library
    return None
