"""Configs of the PoolFormer release keep working."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS

import backbones

SIZES = ['s12', 's24', 's36', 'm36', 'm48']


@pytest.mark.parametrize('size', SIZES)
def test_official_names_build_the_same_network(size):
    # Literally what the release's detection and segmentation configs say.
    released = dict(
        type=f'poolformer_{size}_feat',
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint=f'poolformer_{size}.pth.tar'),
    )
    with torch.device('meta'):
        old = MODELS.build(released)
        new = MODELS.build(dict(type='PoolFormer', arch=size))
    assert type(old) is backbones.PoolFormer
    assert old.arch == new.arch
    assert old.out_indices == (0, 1, 2, 3)
    assert old.init_cfg == released['init_cfg']
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (old, new)]
    assert shapes[0] == shapes[1]


def test_our_arguments_pass_through():
    with torch.device('meta'):
        model = MODELS.build(dict(type='poolformer_s12_feat', out_indices=(1, 3), frozen_stages=1))
    assert (model.out_indices, model.frozen_stages) == ((1, 3), 1)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match='drop_path_rat'):
        MODELS.build(dict(type='poolformer_s12_feat', drop_path_rat=0.1))
    with pytest.raises(ValueError, match=r"poolformer_s12_feat: style must be 'pytorch'"):
        MODELS.build(dict(type='poolformer_s12_feat', style='caffe'))


def test_one_line_says_what_to_write_instead():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        with torch.device('meta'):
            MODELS.build(dict(type='poolformer_m36_feat'))
    finally:
        logger.removeHandler(handler)
    warnings = [r.getMessage() for r in records if r.levelno >= logging.WARNING]
    expected = "type='poolformer_m36_feat' is deprecated; write type='PoolFormer', arch='m36'"
    assert warnings == [expected]


def test_every_size_and_no_other_has_an_old_name():
    assert set(SIZES) == set(backbones.PoolFormer.presets)
    assert MODELS.get('poolformer_s13_feat') is None


def test_the_command_line_may_set_our_arguments():
    # poolformer_dense.config.overrides allows what the signature names.
    names = inspect.signature(MODELS.get('poolformer_s12_feat')).parameters
    assert {'frozen_stages', 'drop_path_rate', 'out_indices', 'init_cfg'} <= set(names)
