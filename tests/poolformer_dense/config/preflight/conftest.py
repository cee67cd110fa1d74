"""Configs of the demo on drawn shapes, and what is changed in their annotations."""

from __future__ import annotations

import json

import pytest

from poolformer_dense.config.load import load_config
from poolformer_dense.config.preflight.plan import Plan


@pytest.fixture
def detection(root, shapes):
    def load(**overrides):
        path = root / 'configs/demo/retinanet_poolformer_s12.py'
        return load_config(str(path), {'data_root': str(shapes / 'coco'), **overrides})

    return load


@pytest.fixture
def segmentation(root, shapes):
    def load(**overrides):
        path = root / 'configs/demo/fpn_poolformer_s12.py'
        return load_config(str(path), {'data_root': str(shapes / 'ade'), **overrides})

    return load


@pytest.fixture(scope='session')
def plan(root, shapes):
    """Make the plan of the demo's segmentor, with further steps before what its crops become."""

    def make(overrides, splits=('train', 'val', 'test'), steps=()):
        path = root / 'configs/demo/fpn_poolformer_s12.py'
        cfg = load_config(str(path), {'data_root': str(shapes / 'ade')} | overrides)
        cfg.train_dataloader.dataset.pipeline[4:4] = steps
        return Plan(cfg, splits)

    return make


@pytest.fixture
def rewritten(shapes, tmp_path):
    """Write a changed copy of a split's annotations; returns its path."""

    def write(change, split='val', name='changed.json'):
        path = shapes / f'coco/annotations/instances_{split}2017.json'
        content = json.loads(path.read_text())
        change(content)
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write
