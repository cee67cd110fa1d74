"""A package that a run would miss only after its first epoch is missed before the model."""

from __future__ import annotations

import pytest
from mmengine.registry import METRICS

from poolformer_dense.config.load import load_config
from poolformer_dense.config.preflight.packages import check_faster_coco
from poolformer_dense.config.preflight.plan import Plan


@pytest.mark.parametrize('splits', [['train', 'val'], ['test']])
def test_the_faster_evaluator_needs_its_package(root, monkeypatch, splits):
    cfg = load_config(str(root / 'configs/demo/retinanet_poolformer_s12.py'))
    assert not list(check_faster_coco(Plan(cfg, splits)))
    for split in splits:
        cfg[f'{split}_evaluator'] = [dict(type='FasterCocoMetric')]
    monkeypatch.setitem(METRICS.module_dict, 'FasterCocoMetric', object)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    [notice] = check_faster_coco(Plan(cfg, splits))
    assert "pip install 'faster-coco-eval>=1.8,<2'" in notice.text
    monkeypatch.delitem(METRICS.module_dict, 'FasterCocoMetric')
    monkeypatch.setattr(METRICS, '_children', {})
    [notice] = check_faster_coco(Plan(cfg, splits))
    assert 'not in the installed mmdet' in notice.text
