"""Weights load strictly, or nothing changes; reading a file never runs it."""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from torch import nn

from backbones import MetaFormer, PoolFormer
from backbones.checkpoints import (
    CheckpointError,
    check_source,
    load_weights,
    read_checkpoint,
    read_outline,
    to_layout,
)
from poolformer_dense.files import save_sealed, write_checkpoint

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
    weights = {k: v for k, v in model.state_dict().items() if 'output_norms' not in k}
    weights = {k: v.clone() for k, v in to_layout(weights, 'official').items()}
    head = {'norm.weight': 32, 'norm.bias': 32, 'head.weight': (10, 32), 'head.bias': 10}
    return model, weights | {k: torch.zeros(size) for k, size in head.items()}


def _save(folder, content):
    path = folder / 'weights.pth'
    torch.save(content, path)
    return path


def _same(a, b, but=()):
    return all(torch.equal(v, b[k]) for k, v in a.items() if not k.startswith(but or '-'))


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


# What ImageNet classifiers of each code base have beside the backbone.
HEADS = {
    'official': ['norm.weight', 'head.weight'],
    'mmpretrain': ['head.fc.weight'],
    'hf': ['norm.bias', 'classifier.bias'],
    'timm': ['head.norm.weight', 'head.fc.weight'],
    'baselines': ['norm.weight', 'head.bias'],
    'ours': [],
}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('layout', HEADS)
def test_a_classifier_of_every_layout_loads(tmp_path, layout, suffix):
    source = _randomised()
    weights = {k: v for k, v in source.state_dict().items() if 'output_norms' not in k}
    weights = to_layout(weights, layout) | {k: torch.ones(32) for k in HEADS[layout]}
    path = tmp_path / f'weights{suffix}'
    write_checkpoint(weights, path)
    model = PoolFormer(TINY)
    load_weights(model, path)
    assert _same(source.state_dict(), model.state_dict(), but='output_norms')


def test_a_v2_model_loads_from_the_baselines_and_timm(tmp_path):
    arch = dict(
        depths=(1, 1, 1, 1),
        dims=(8, 16, 32, 64),
        token_mixers=['SeparableConv'] * 2 + ['Attention'] * 2,
        downsample_norm=dict(type='ChannelLayerNorm', bias=False),
        activation='StarReLU',
        mlp_bias=False,
        layer_scale_init=None,
        res_scale_init=(None, None, 1.0, 1.0),
    )
    source = MetaFormer(arch)
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    for layout in ('baselines', 'timm'):
        path = tmp_path / f'{layout}.pth'
        write_checkpoint(to_layout(source.state_dict(), layout), path)
        model = MetaFormer(arch)
        load_weights(model, path)
        assert _same(source.state_dict(), model.state_dict(), but='output_norms')


def test_loading_says_how_much_and_what_not(official, tmp_path, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        load_weights(PoolFormer(TINY), _save(tmp_path, official[1]))
    finally:
        logger.removeHandler(caplog.handler)
    assert re.search(
        r'loaded 58 of 66 tensors of PoolFormer from .* \(official layout\); starting afresh: '
        r'output_norms\.0\.weight, .*; not used: 4 tensors \(norm\.weight, ',
        caplog.text,
    )


def test_the_unused_norm_of_a_released_detector_is_tolerated(official, tmp_path):
    source, weights = official
    weights = {f'backbone.{k}': v for k, v in weights.items() if not k.startswith(('norm', 'head'))}
    norms = {
        f'backbone.norm{i}.{leaf}': torch.full((d,), 5.0)
        for i, d in zip((0, 2, 4, 6), TINY['dims'], strict=True)
        for leaf in ('weight', 'bias')
    }
    path = _save(tmp_path, {'state_dict': weights | norms | {'bbox_head.bias': torch.ones(1)}})
    model = PoolFormer(TINY, out_indices=(1, 2, 3))
    load_weights(model, path)
    assert _same(source.state_dict(), model.state_dict() | source.state_dict())
    assert all(norm.weight.eq(5).all() for norm in model.output_norms.values())


def test_a_prefix_of_ones_own(official, tmp_path):
    source, weights = official
    path = _save(
        tmp_path, {f'teacher.body.{k}': v for k, v in weights.items()} | {'x': torch.ones(1)}
    )
    model = PoolFormer(TINY)
    load_weights(model, path, prefix='teacher.body')
    assert _same(source.state_dict(), model.state_dict(), but='output_norms')
    with pytest.raises(CheckpointError, match=r'no tensor is named student\.\*'):
        load_weights(model, path, prefix='student.')


def test_own_weights_load(tmp_path):
    source = _randomised()
    model = PoolFormer(TINY)
    load_weights(model, _save(tmp_path, source.state_dict()))
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
    load_weights(model, _save(tmp_path, weights))
    assert all(n.weight.eq(3).all() and n.bias.eq(4).all() for n in model.output_norms.values())


def test_fewer_stages_than_the_file(official, tmp_path):
    source, weights = official
    model = PoolFormer(TINY, out_indices=(0, 1))
    load_weights(model, _save(tmp_path, weights))
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
            lambda w: [w.pop(k) for k in list(w) if k.startswith('network.4.1.')],
            r'10 missing \(stages\.2\.1\.norm1\.weight, .* and 4 more\); 0 left over',
        ),
        (
            lambda w: (w.clear(), w.update({'conv1.weight': torch.ones(1)})),
            r'PoolFormer: 1 tensors \(conv1\.weight\), none named as in a MetaFormer',
        ),
        (
            lambda w: w.update({'patch_embed.norm.weight': torch.ones(8)}),
            r'1 left over \(patch_embed\.norm\.weight\)',
        ),
        (
            lambda w: w.update({'network.2.0.mlp.fc1.weight': torch.ones(64, 16, 3, 3)}),
            r'network\.2\.0\.mlp\.fc1\.weight has shape \(64, 16, 3, 3\), neither',
        ),
    ],
    ids=['missing', 'left over', 'shape', 'block', 'another network', 'norm', 'kernel'],
)
def test_what_does_not_fit_raises_and_changes_nothing(official, tmp_path, spoil, message):
    _, weights = official
    spoil(weights)
    model = PoolFormer(TINY)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(model, _save(tmp_path, weights))
    assert '\n' not in str(error.value)
    assert _same(before, model.state_dict())


def test_another_family_is_named(tmp_path):
    weights = to_layout(MetaFormer('convformer_s18').state_dict(), 'baselines')
    with pytest.raises(
        CheckpointError, match=r'\d+ missing .*; \d+ left over .*; \d+ other shapes'
    ):
        load_weights(PoolFormer('s12'), _save(tmp_path, weights))


def test_another_size_is_named(official, tmp_path):
    path = _save(tmp_path, official[1])
    with pytest.raises(CheckpointError, match=r'does not fit PoolFormer.*another architecture'):
        load_weights(PoolFormer('s12'), path)


class _Payload:
    def __reduce__(self):
        return os.mkdir, ('harmed',)


@pytest.mark.parametrize(
    ('container', 'reason'),
    [('zip', 'never run'), ('pickle', r'not written by torch\.save')],
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


@pytest.mark.parametrize('keep', [0.0, 0.1, 0.99])
def test_truncated_safetensors(tmp_path, keep):
    path = tmp_path / 'weights.safetensors'
    write_checkpoint(_randomised().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError, match='truncated') as error:
        read_checkpoint(path)
    assert '\n' not in str(error.value)


def test_safetensors_keep_values_types_and_shared_memory(tmp_path):
    shared = torch.arange(6.0)
    tensors = {
        'a': shared,
        'b': shared[::2],
        'c': torch.tensor(3),
        'd': torch.ones(2, dtype=torch.bfloat16),
    }
    path = tmp_path / 'some.safetensors'
    write_checkpoint(tensors, path)
    read = read_checkpoint(path)
    assert _same(tensors, read)
    assert read['d'].dtype == torch.bfloat16
    assert all(v.is_meta for v in read_checkpoint(path, map_location='meta').values())


@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors'])
def test_writing_overwrites_nothing_and_leaves_nothing_behind(tmp_path, name):
    path = tmp_path / name
    write_checkpoint({'a': torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match='exists; delete it'):
        write_checkpoint({'a': torch.zeros(1)}, path)
    assert read_checkpoint(path)['a'] == 1
    with pytest.raises(CheckpointError, match=r'nowhere.* could not be written'):
        write_checkpoint({'a': torch.zeros(1)}, tmp_path / 'nowhere' / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_missing_file():
    with pytest.raises(CheckpointError, match=r'nowhere\.pth does not exist'):
        read_checkpoint('nowhere.pth')


def test_no_tensors(tmp_path):
    with pytest.raises(CheckpointError, match='holds no tensors'):
        load_weights(PoolFormer(TINY), _save(tmp_path, {'epoch': 3}))


SAVED = {
    'views': (lambda x: [x, x[3:9], x.view(4, 6).t()[1:, ::2], x[:0], x[0]])(torch.arange(24.0)),
    'types': [torch.ones(2, dtype=t) for t in (torch.bool, torch.bfloat16, torch.complex64)]
    + [torch.ones(2, dtype=torch.uint16), torch.ones(2).to(torch.float8_e4m3fn)],
    'gradients': [nn.Parameter(torch.ones(3)), torch.ones(2, requires_grad=True)],
    'a module': nn.Sequential(nn.BatchNorm2d(3), nn.Linear(2, 2)).state_dict(),
    'arrays': [np.asfortranarray(np.eye(2, 3)), np.array(3.5), np.empty((0, 3)), np.float32(2)],
    'random states': [torch.get_rng_state(), np.random.get_state()],
    'objects': [{1, 'a'}, Counter({3: 1}), torch.Size([1, 2]), torch.device('cuda', 1)],
    'data': {'a': (1, [2.5, None, True, 1 << 70, -5]), 'ü': '€' * 9, 3: (b'', b'\xff'), True: {}},
    'a type': torch.float16,
}


def _identical(a, b):
    """Whether two objects are the same in type, content and memory layout."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        same = ('dtype', 'shape', 'requires_grad', 'is_leaf')
        return (
            all(getattr(a, name) == getattr(b, name) for name in same)
            and (a.stride(), a.storage_offset()) == (b.stride(), b.storage_offset())
            and a.detach().flatten().tolist() == b.detach().flatten().tolist()
        )
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        a, b = ([*x.items(), getattr(x, '_metadata', None)] for x in (a, b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_identical, a, b))
    return a == b


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('name', SAVED)
def test_what_torch_saves_comes_back_the_same(tmp_path, name, old):
    path = tmp_path / 'saved.pth'
    torch.save({'x': SAVED[name]}, path, _use_new_zipfile_serialization=not old)
    check_source(path)
    assert _identical({'x': SAVED[name]}, read_checkpoint(path))
    on_meta = read_checkpoint(path, 'meta')['x']
    if name == 'views':
        assert [x.shape for x in on_meta] == [x.shape for x in SAVED[name]]
        assert all(x.is_meta for x in on_meta)
        views = read_checkpoint(path)['x']
        views[0][3] = 99
        assert views[1][0] == 99  # they share memory, as before


def test_an_outline_is_read_though_tensors_are_damaged(tmp_path):
    path = tmp_path / 'sealed.pth'
    save_sealed({'step': 3, 'weights': torch.zeros(500)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b'\0' * 2000) + 1000] = 1
    path.write_bytes(content)
    outline = read_outline(path)
    assert outline['step'] == 3
    assert outline['weights'].is_meta
    assert outline['weights'].shape == (500,)
    with pytest.raises(CheckpointError, match='damaged'):
        read_checkpoint(path)


def test_mmengine_log_buffers_are_read(tmp_path):
    # mmengine's own checkpoints hold these; their pickle refers to getattr.
    buffer = HistoryBuffer()
    buffer.update(2.0)
    buffer.update(4.0)
    path = _save(tmp_path, {'state_dict': {}, 'message_hub': {'log_scalars': {'loss': buffer}}})
    read = read_checkpoint(path)['message_hub']['log_scalars']['loss']
    assert read.mean() == 3.0
    assert read.current() == 4.0
