"""Weights load strictly, or nothing changes; reading a file never runs it."""

from __future__ import annotations

import copy
import os
import pickle
import re

import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from backbones import PoolFormer
from backbones.checkpoints import CheckpointError, load_pretrained, read_checkpoint
from backbones.checkpoints.layouts import OFFICIAL, rename

TINY = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


def _randomised(**arguments):
    model = PoolFormer(TINY, **arguments)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.fixture
def official():
    """A model and its weights as an official ImageNet file names them."""
    model = _randomised()
    names = rename(model.state_dict(), OFFICIAL)
    weights = {
        names[k]: v.clone() for k, v in model.state_dict().items() if 'output_norms' not in k
    }
    head = {'norm.weight': 32, 'norm.bias': 32, 'head.weight': (10, 32), 'head.bias': 10}
    return model, weights | {k: torch.zeros(size) for k, size in head.items()}


def _save(folder, content):
    path = folder / 'weights.pth'
    torch.save(content, path)
    return path


def _same(a, b, but=()):
    return all(torch.equal(v, b[k]) for k, v in a.items() if not k.startswith(but or '-'))


def test_official_names():
    # The names of the released files, written out.
    expected = {
        'downsamples.0.conv.weight': 'patch_embed.proj.weight',
        'downsamples.1.conv.bias': 'network.1.proj.bias',
        'downsamples.3.conv.weight': 'network.5.proj.weight',
        'stages.0.1.norm1.weight': 'network.0.1.norm1.weight',
        'stages.1.0.norm2.bias': 'network.2.0.norm2.bias',
        'stages.2.5.mlp.fc1.weight': 'network.4.5.mlp.fc1.weight',
        'stages.2.11.mlp.fc2.bias': 'network.4.11.mlp.fc2.bias',
        'stages.3.0.layer_scale1.scale': 'network.6.0.layer_scale_1',
        'stages.3.1.layer_scale2.scale': 'network.6.1.layer_scale_2',
        'output_norms.0.weight': 'norm0.weight',
        'output_norms.3.bias': 'norm6.bias',
    }
    assert rename(expected, OFFICIAL) == expected


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: w,
        lambda w: {'state_dict': w},
        lambda w: {'model': w, 'epoch': 300},
        lambda w: {'state_dict': {f'backbone.{k}': v for k, v in w.items() if 'head' not in k}},
        lambda w: {
            'state_dict': {f'backbone.{k}': v for k, v in w.items() if not k.startswith('norm.')}
            | {'neck.convs.0.weight': torch.ones(1), 'bbox_head.bias': torch.ones(1)}
        },
    ],
    ids=['bare', 'state_dict', 'model', 'classifier', 'detector'],
)
def test_official_weights_load(official, tmp_path, wrap):
    source, weights = official
    path = _save(tmp_path, wrap(weights))
    model = PoolFormer(TINY, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    assert _same(source.state_dict(), model.state_dict(), but='output_norms')
    assert model.output_norms['3'].weight.eq(1).all()


def test_own_weights_load(tmp_path):
    source = _randomised()
    model = PoolFormer(TINY)
    load_pretrained(model, _save(tmp_path, source.state_dict()))
    assert _same(source.state_dict(), model.state_dict())


def test_norms_of_a_dense_official_file_load(official, tmp_path):
    _, weights = official
    weights |= {
        f'norm{i}.weight': torch.full((d,), 3.0)
        for i, d in zip((0, 2, 4, 6), TINY['dims'], strict=True)
    }
    weights |= {
        f'norm{i}.bias': torch.full((d,), 4.0)
        for i, d in zip((0, 2, 4, 6), TINY['dims'], strict=True)
    }
    model = PoolFormer(TINY, out_indices=(1, 2, 3))
    load_pretrained(model, _save(tmp_path, weights))
    assert all(n.weight.eq(3).all() and n.bias.eq(4).all() for n in model.output_norms.values())


def test_fewer_stages_than_the_file(official, tmp_path):
    source, weights = official
    model = PoolFormer(TINY, out_indices=(0, 1))
    load_pretrained(model, _save(tmp_path, weights))
    own = {k: v for k, v in model.state_dict().items() if 'output_norms' not in k}
    assert _same(own, source.state_dict())


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda w: w.pop('network.4.1.mlp.fc1.weight'), r'1 missing \(stages.2.1.mlp.fc1.weight\)'),
        (
            lambda w: w.update({'network.4.2.norm1.weight': torch.ones(24)}),
            r'1 left over \(network.4.2.norm1.weight\)',
        ),
        (
            lambda w: w.update({'patch_embed.proj.weight': torch.ones(9, 3, 7, 7)}),
            r'1 other shapes \(downsamples.0.conv.weight \(9, 3, 7, 7\) for \(8, 3, 7, 7\)\)',
        ),
        (
            lambda w: (copy.copy(w), w.clear(), w.update(conv1=torch.ones(1))),
            r'\d+ missing .*1 left over',
        ),
    ],
    ids=['missing', 'left over', 'shape', 'another network'],
)
def test_what_does_not_fit_raises_and_changes_nothing(official, tmp_path, spoil, message):
    _, weights = official
    spoil(weights)
    model = PoolFormer(TINY)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, _save(tmp_path, weights))
    assert _same(before, model.state_dict())


def test_another_size_is_named(official, tmp_path):
    path = _save(tmp_path, official[1])
    with pytest.raises(CheckpointError, match=r'does not fit PoolFormer.*another architecture'):
        load_pretrained(PoolFormer('s12'), path)


class _Payload:
    def __reduce__(self):
        return os.mkdir, ('harmed',)


@pytest.mark.parametrize(
    ('container', 'reason'),
    [('zip', 'never run'), ('pickle', r'not a file written by torch\.save')],
)
def test_a_file_is_never_run(tmp_path, monkeypatch, container, reason):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'evil.pth'
    if container == 'zip':
        torch.save({'state_dict': _Payload()}, path)
    else:
        path.write_bytes(pickle.dumps({'state_dict': _Payload()}))
    with pytest.raises(CheckpointError, match=f'{re.escape(str(path))} .*{reason}'):
        read_checkpoint(path)
    assert not (tmp_path / 'harmed').exists()


@pytest.mark.parametrize(
    'content',
    [b'', b'hello world\n' * 50, b'PK\x03\x04' + b'\0' * 100],
    ids=['empty', 'text', 'zip'],
)
def test_not_a_checkpoint(tmp_path, content):
    path = tmp_path / 'weights.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'was not loaded: .*torch\.save'):
        read_checkpoint(path)


@pytest.mark.parametrize('keep', [0.1, 0.5, 0.99])
def test_truncated(official, tmp_path, keep):
    path = _save(tmp_path, official[1])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError, match='truncated'):
        read_checkpoint(path)


def test_missing_file():
    with pytest.raises(CheckpointError, match=r'nowhere\.pth does not exist'):
        read_checkpoint('nowhere.pth')


def test_no_tensors(tmp_path):
    with pytest.raises(CheckpointError, match='holds no tensors'):
        load_pretrained(PoolFormer(TINY), _save(tmp_path, {'epoch': 3}))


def test_unreachable_url_names_the_place_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=f'could not be downloaded.*{tmp_path}'):
        read_checkpoint('http://127.0.0.1:9/poolformer_s12.pth.tar')


def test_mmengine_log_buffers_are_read(tmp_path):
    # mmengine's own checkpoints hold these; their pickle refers to getattr.
    buffer = HistoryBuffer()
    buffer.update(2.0)
    buffer.update(4.0)
    path = _save(tmp_path, {'state_dict': {}, 'message_hub': {'log_scalars': {'loss': buffer}}})
    read = read_checkpoint(path)['message_hub']['log_scalars']['loss']
    assert read.mean() == 3.0
    assert read.current() == 4.0
