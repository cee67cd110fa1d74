"""Published weights tell what they are, and load strictly."""

from __future__ import annotations

import json

import pytest
import safetensors
import torch

from backbones.checkpoints import CheckpointError, read_checkpoint
from poolformer_dense.errors import UserError
from poolformer_dense.exporting.sharing import publish
from poolformer_dense.predict.building import load_predictor
from tests.tiny_models import tiny_predictor


@pytest.fixture
def published(root, tmp_path):
    """A tiny segmentor, and the folder that it is published in."""
    predictor = tiny_predictor(root, 'fpn', tmp_path / 'run' / 'weights.pth')
    log = tmp_path / 'run' / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"loss": 1.0, "step": 1}\n{"aAcc": 97.7, "mIoU": 90.82, "step": 300}\n{"lo')
    folder = tmp_path / 'published'
    header = publish(predictor.cfg, str(tmp_path / 'run' / 'weights.pth'), folder, 'apache-2.0')
    return predictor, folder, header


def test_the_file_loads_like_a_checkpoint(published):
    predictor, folder, _ = published
    loaded = load_predictor(predictor.cfg, str(folder / 'model.safetensors'), 'cpu')
    assert loaded.classes == predictor.classes
    for own, expected in zip(
        loaded.model.state_dict().values(), predictor.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(own, expected, rtol=0, atol=0)


def test_the_header_and_the_card_tell_what_it_is(published):
    predictor, folder, header = published
    with safetensors.safe_open(folder / 'model.safetensors', 'pt') as file:
        texts = file.metadata()
    assert json.loads(texts['classes']) == predictor.classes
    assert json.loads(texts['metrics']) == {'aAcc': 97.7, 'mIoU': 90.82}
    assert "type='EncoderDecoder'" in texts['config']
    assert len(texts['sha256']) == 64
    card = (folder / 'README.md').read_text()
    _, front, body = card.split('---\n', 2)
    assert 'license: apache-2.0' in front
    assert 'pipeline_tag: image-segmentation' in front
    assert 'value: 90.82' in front
    assert header['sha256'] in body
    assert ', '.join(predictor.classes) in body


def test_other_weights_under_the_same_header_are_refused(published):
    _, folder, _ = published
    path = folder / 'model.safetensors'
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='do not have the checksum in its header'):
        read_checkpoint(path)


def test_nothing_is_overwritten(published):
    predictor, folder, _ = published
    with pytest.raises(UserError, match='exists; delete it'):
        publish(predictor.cfg, 'weights.pth', folder, 'apache-2.0')
