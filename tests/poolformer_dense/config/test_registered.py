"""Classes as types, as in mmengine's pure Python configs, become the names of the registries."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from poolformer_dense.config.load import load_config
from poolformer_dense.config.registered import default_scope, find_types, name_types
from poolformer_dense.config.walk import scoped_nodes
from poolformer_dense.errors import UserError

PURE = """
import math
import torch
from mmengine.config import read_base
with read_base():
    from .base import *
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.models import FocalLoss, RetinaNet
from mmengine.hooks import IterTimerHook
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
import backbones
from poolformer_dense.runner import DenseRunner

def twice(number):
    return 2 * number

default_scope = None
runner_type = DenseRunner
kind = CocoDataset
model.update(type=RetinaNet, backbone=dict(type=backbones.PoolFormer))
model.neck.update(norm_cfg=dict(type=nn.BatchNorm2d))
model.bbox_head.loss_cls.update(type=FocalLoss)
train_cfg.update(type=EpochBasedTrainLoop, max_epochs=twice(1))
train_dataloader.dataset.update(type=kind)
train_dataloader.dataset.pipeline[1].update(type=LoadAnnotations)
default_hooks.timer.update(type=IterTimerHook)
optim_wrapper.optimizer = dict(type=torch.optim.SGD, lr=math.pi)
"""


@pytest.fixture
def pure(root, tmp_path):
    """The path of a pure Python config, whose base has all of one of ours."""
    Config.fromfile(root / 'configs/retinanet_poolformer_s12.py').dump(tmp_path / 'base.py')
    (tmp_path / 'pure.py').write_text(PURE)
    return tmp_path / 'pure.py'


def test_a_pure_python_config_is_one_of_names(pure):
    cfg = load_config(str(pure), {'train_cfg.val_interval': 2})
    assert cfg.default_scope == 'mmdet'
    assert cfg.runner_type == 'DenseRunner'
    assert cfg.model.type == 'RetinaNet'
    assert cfg.model.backbone.type == 'PoolFormer'
    assert cfg.model.neck.norm_cfg.type == 'BN'
    assert cfg.model.bbox_head.loss_cls.type == 'FocalLoss'
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=3.141592653589793)
    assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == 2
    types = [n['type'] for v in cfg.values() for _, n, _ in scoped_nodes(v, None) if 'type' in n]
    assert len(types) > 30
    assert {type(kind) for kind in types} == {str}


def test_it_is_written_and_read_again(pure, tmp_path):
    cfg = load_config(str(pure))
    cfg.dump(tmp_path / 'again.py')
    again = load_config(str(tmp_path / 'again.py'), work_dir=cfg.work_dir)
    assert again.to_dict() == cfg.to_dict()
    assert 'twice' not in again


def test_its_names_are_checked(pure):
    pure.write_text(PURE + 'train_cfg.update(max_epoch=3)\n')
    with pytest.raises(UserError, match=r'pure\.py.*train_cfg\.max_epochs'):
        load_config(str(pure))


def test_a_wrong_import_is_one_line(pure):
    pure.write_text(PURE + 'from mmdet.models import Nonsense\nmodel.update(type=Nonsense)\n')
    with pytest.raises(UserError, match=r'ImportError: Failed to import Nonsense.*line \d+'):
        load_config(str(pure))


def test_names_are_those_of_the_scope():
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='mmseg.models.EncoderDecoder',
                loss=dict(type='mmdet.FocalLoss'),
                theirs=dict(_scope_='mmdet', type='mmdet.FocalLoss'),
                other=dict(type='no.such.thing'),
            ),
        )
    )
    name_types(cfg)
    assert cfg.model.type == 'EncoderDecoder'
    assert cfg.model.loss.type == 'mmdet.FocalLoss'
    assert cfg.model.theirs.type == 'FocalLoss'
    assert cfg.model.other.type == 'no.such.thing'
    ours, theirs = (find_types('FocalLoss', scope)[0] for scope in ('mmseg', 'mmdet'))
    assert ours is not theirs
    assert find_types('FocalLoss', 'not_installed') == []


def test_the_scope_is_said_or_that_of_the_model():
    assert default_scope(Config(dict(default_scope='mine'))) == 'mine'
    assert default_scope(Config(dict(model=dict(type='mmseg.models.EncoderDecoder')))) == 'mmseg'
    assert default_scope(Config(dict(model=dict(type='RetinaNet')))) is None
