"""A classifier's file, as timm or transformers writes it, gives our backbone the same features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from backbones import MetaFormer
from backbones.checkpoints import load_weights

TOLERANCE = 1e-10


def write_pth(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / 'classifier.pth')
    return folder / 'classifier.pth'


def write_safetensors(model: nn.Module, folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / 'classifier.safetensors')
    return folder / 'classifier.safetensors'


writers = pytest.mark.parametrize('write', [write_pth, write_safetensors])


@writers
@pytest.mark.parametrize(
    'arch', ['poolformer_s12', 'poolformerv2_s12', 'convformer_s18', 'caformer_s18']
)
def test_timm(timm: ModuleType, randomise, tmp_path, write, arch):
    peer = getattr(timm, arch)()
    randomise(peer)
    ours = MetaFormer(arch)
    load_weights(ours, write(peer, tmp_path))

    def features(image: Tensor) -> list[Tensor]:
        return peer.double().eval().forward_intermediates(image, intermediates_only=True)

    assert_same_features(ours, features)


@writers
def test_hugging_face(transformers: ModuleType, randomise, tmp_path, write):
    peer = transformers.PoolFormerForImageClassification(transformers.PoolFormerConfig())
    randomise(peer)
    ours = MetaFormer('poolformer_s12')
    load_weights(ours, write(peer, tmp_path))
    assert_same_features(ours, hidden_states_of(peer))


def test_a_folder_of_save_pretrained_by_init_cfg(transformers: ModuleType, randomise, tmp_path):
    peer = transformers.PoolFormerForImageClassification(transformers.PoolFormerConfig())
    randomise(peer)
    peer.save_pretrained(tmp_path)
    file = tmp_path / 'model.safetensors'
    ours = MetaFormer('poolformer_s12', init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    ours.init_weights()
    assert_same_features(ours, hidden_states_of(peer))


def hidden_states_of(peer: nn.Module) -> Callable[[Tensor], tuple[Tensor, ...]]:
    peer.double().eval()
    return lambda image: peer(image, output_hidden_states=True).hidden_states


@torch.no_grad()
def assert_same_features(ours: MetaFormer, features_of_peer: Callable) -> None:
    # a classifier's file has no output norms, so features are compared before them
    ours.output_norms = nn.ModuleDict({i: nn.Identity() for i in ours.output_norms})
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    features, expected = ours.double().eval()(image), features_of_peer(image)
    assert len(features) == len(expected) == 4
    for value, reference in zip(features, expected, strict=True):
        assert value.shape == reference.shape
        assert (value - reference).abs().max() <= TOLERANCE * reference.abs().max()
