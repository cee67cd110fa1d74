"""Checkpoints of whole detectors load entirely or not at all, in any layout of the backbone."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper

from backbones.checkpoints import CheckpointError, fit, reorder_optimizer, to_layout
from poolformer_dense.config.load import load_config
from poolformer_dense.errors import UserError
from poolformer_dense.runner.runner import build_runner


@pytest.fixture(scope='module')
def detector(root, shapes, tmp_path_factory):
    """A runner of the demo's detector; tests change its weights only through `fit`."""
    path = str(root / 'configs/demo/retinanet_poolformer_s12.py')
    overrides = {'data_root': str(shapes / 'coco')}
    return build_runner(load_config(path, overrides, str(tmp_path_factory.mktemp('runner'))))


@pytest.fixture
def weights(detector):
    torch.manual_seed(1)
    return {k: torch.randn_like(v) for k, v in detector.model.state_dict().items()}


def _renamed(weights, layout):
    backbone = {k[9:]: v for k, v in weights.items() if k.startswith('backbone.')}
    renamed = {f'backbone.{k}': v for k, v in to_layout(backbone, layout).items()}
    return renamed | {k: v for k, v in weights.items() if not k.startswith('backbone.')}


@pytest.mark.parametrize('layout', ['ours', 'official'])
@pytest.mark.parametrize('wrap', [lambda w: {'state_dict': w}, lambda w: dict(w)])
def test_every_tensor_arrives(detector, weights, tmp_path, layout, wrap):
    path = tmp_path / 'detector.pth'
    given = _renamed(weights, layout)
    if layout == 'official':
        given['backbone.norm0.weight'] = torch.ones(64)  # the release's unused norm
    torch.save(wrap(given), path)
    detector.load_checkpoint(str(path))
    for key, value in detector.model.state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda w: w.pop('bbox_head.retina_cls.bias'), r'1 missing \(bbox_head.retina_cls.bias\)'),
        (lambda w: w.update({'mask_head.bias': torch.ones(1)}), r'1 left over \(mask_head.bias\)'),
        (
            lambda w: w.update({'bbox_head.retina_cls.bias': torch.ones(720)}),
            r'1 other shapes \(bbox_head.retina_cls.bias \(720,\) for \(27,\)\)',
        ),
        (
            lambda w: [w.pop(k) for k in list(w) if k.startswith('backbone.')],
            r'not of a detector or segmentor.*init_cfg',
        ),
        (
            lambda w: w['backbone.downsamples.3.conv.weight'].view(-1)[7:9].fill_(float('nan')),
            r'pth was not loaded: 1 NaN or infinite \(backbone.downsamples.3.conv.weight\)',
        ),
        (
            lambda w: w['bbox_head.retina_cls.bias'].fill_(float('-inf')),
            r'1 NaN or infinite \(bbox_head.retina_cls.bias\)',
        ),
    ],
    ids=['missing', 'left over', 'shape', 'no backbone', 'NaN', 'infinite'],
)
def test_what_does_not_fit_raises_and_changes_nothing(detector, weights, tmp_path, spoil, message):
    before = copy.deepcopy(detector.model.state_dict())
    spoil(weights)
    path = tmp_path / 'detector.pth'
    torch.save({'state_dict': weights}, path)
    with pytest.raises(CheckpointError, match=message):
        detector.load_checkpoint(str(path))
    for key, value in detector.model.state_dict().items():
        assert torch.equal(value, before[key])


def test_what_is_infinite_in_the_model_may_be_so_in_a_file():
    model = torch.nn.Linear(2, 2)
    model.register_buffer('least', torch.tensor(float('inf')))
    fit(copy.deepcopy(model.state_dict()), model)
    model.least.fill_(0)
    with pytest.raises(CheckpointError, match=r'1 NaN or infinite \(least\)'):
        fit({**model.state_dict(), 'least': torch.tensor(float('inf'))}, model)


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=('square', 'disc', 'triangle'))),
        dict(dataset_meta=[dict(classes=['square', 'disc', 'triangle'])] * 2),
        dict(CLASSES=('square', 'disc', 'triangle')),  # of mmdet 2
    ],
)
def test_a_checkpoint_of_another_order_of_classes(detector, weights, tmp_path, meta):
    assert detector.test_loop
    path = str(tmp_path / 'detector.pth')
    torch.save(dict(state_dict=weights, meta=meta), path)
    with pytest.raises(UserError, match=r'another order \(square, disc, tri.* has \(disc, square'):
        detector.load_checkpoint(path)
    torch.save(dict(state_dict=weights, meta=dict(dataset_meta=dict(classes='abc'))), path)
    detector.load_checkpoint(path)  # other classes are a warning


def test_fine_tuning_lets_heads_start_afresh(detector, weights):
    model = detector.model
    weights['bbox_head.retina_cls.bias'] = torch.ones(720)
    found = fit(weights, model, new_heads=True)
    assert (
        set(found.fresh)
        == set(model.state_dict()) - set(found.tensors)
        == {'bbox_head.retina_cls.bias'}
    )
    weights['neck.fpn_convs.0.conv.bias'] = torch.ones(3)
    with pytest.raises(CheckpointError, match=r'1 other shapes \(neck.fpn_convs.0.conv.bias '):
        fit(weights, model, new_heads=True)


def test_a_training_starts_from_another_detectors_weights(detector, weights, tmp_path, monkeypatch):
    path = tmp_path / 'coco.pth'
    weights['bbox_head.retina_cls.bias'] = torch.ones(720)
    torch.save({'state_dict': weights}, path)
    with pytest.raises(CheckpointError, match='other shapes'):
        detector.load_checkpoint(str(path))
    optimizer = torch.optim.SGD(detector.model.parameters(), lr=0.1)
    monkeypatch.setattr(detector, 'optim_wrapper', OptimWrapper(optimizer))
    detector.load_checkpoint(str(path))
    bias = detector.model.state_dict()['neck.fpn_convs.0.conv.bias']
    assert torch.equal(bias, weights['neck.fpn_convs.0.conv.bias'])


def test_resuming_from_bare_weights_names_the_remedy(detector, weights, tmp_path, monkeypatch):
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': weights}, path)
    monkeypatch.setattr(detector, '_resume', True)
    with pytest.raises(CheckpointError, match='load_from=PATH instead of --resume'):
        detector.load_checkpoint(str(path))


@pytest.mark.parametrize('unused_norm', [False, True])
def test_resuming_from_other_names_keeps_each_optimizer_state(detector, weights, unused_norm):
    # Another code base registers its parameters in another order; a state goes by position.
    model = detector.model
    theirs = _renamed(weights, 'official')
    theirs = {k: theirs[k] for k in reversed(theirs)}
    if unused_norm:
        theirs['backbone.norm0.weight'] = torch.ones(64)
    names = fit(theirs, model).names
    state = {
        'state': {
            i: {'exp_avg': value + 1, 'step': 3.0} for i, value in enumerate(theirs.values())
        },
        'param_groups': [{'lr': 0.1, 'params': list(range(len(theirs)))}],
    }
    moved = reorder_optimizer(state, names.values(), model)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict() | moved)
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]['exp_avg'], weights[name] + 1), name
    with pytest.raises(CheckpointError, match='load_from='):
        reorder_optimizer(state, list(names.values())[1:], model)


def test_the_stock_configs_name_our_runner(root):
    for path in sorted((root / 'configs').glob('*.py')):
        assert load_config(str(path)).runner_type == 'DenseRunner', path
