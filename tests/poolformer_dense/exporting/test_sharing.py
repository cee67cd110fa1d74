"""Published weights tell what they are, and load strictly."""

from __future__ import annotations

import json

import pytest
import safetensors
import torch
import yaml

from backbones.checkpoints import CheckpointError, read_checkpoint
from poolformer_dense.errors import UserError
from poolformer_dense.exporting.sharing import publish
from poolformer_dense.predict.building import load_predictor
from tests.tiny_models import tiny_predictor


@pytest.fixture
def published(root, tmp_path):
    """A tiny segmentor, and the folder that it is published in."""
    predictor = tiny_predictor(root, 'fpn', tmp_path / 'run' / 'weights.pth')
    weights = tmp_path / 'run' / 'weights.pth'
    torch.save(torch.load(weights) | dict(meta=dict(iter=200, epoch=1)), weights)
    log = tmp_path / 'run' / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    lines = [
        {'loss': 1.0, 'step': 1},
        {'aAcc': 97.7, 'mIoU': 90.82, 'step': 200},
        {'aAcc': 99.9, 'mIoU': 99.9, 'step': 300},
    ]
    log.write_text('\n'.join([*map(json.dumps, lines), '{"lo']))
    folder = tmp_path / 'published'
    header = publish(predictor.cfg, str(weights), folder, 'apache-2.0')
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
    front = yaml.safe_load(front)
    assert front['license'] == 'apache-2.0'
    assert front['pipeline_tag'] == 'image-segmentation'
    [result] = front['model-index'][0]['results']
    assert dict(type='mIoU', value=90.82) in result['metrics']
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


@pytest.mark.parametrize('left', ['model.safetensors', 'config.py', 'README.md'])
def test_nothing_is_overwritten(published, left):
    predictor, folder, _ = published
    for path in folder.iterdir():
        if path.name != left:
            path.unlink()
    with pytest.raises(UserError, match=f'{left} exists; delete it'):
        publish(predictor.cfg, 'weights.pth', folder, 'apache-2.0')
    assert [path.name for path in folder.iterdir()] == [left]


def test_an_exported_file_has_no_weights_to_publish(published, tmp_path):
    predictor, _, _ = published
    with pytest.raises(UserError, match='is an exported file'):
        publish(predictor.cfg, 'model.onnx', tmp_path / 'new', 'apache-2.0')
    assert not (tmp_path / 'new').exists()
