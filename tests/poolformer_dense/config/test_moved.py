"""Work directories of earlier versions: their configs load, with one line of warning."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

from poolformer_dense.config.load import load_config
from poolformer_dense.config.moved import modernize
from poolformer_dense.config.walk import walk
from poolformer_dense.errors import UserError

# As dumped by the version of 2026-11-25.
OLD = dict(
    custom_imports=dict(
        allow_failed_imports=False, imports=['backbones', 'engine.hooks', 'engine.reliability']
    ),
    custom_hooks=[dict(type='EmptyResultHook'), dict(type='StrictLoadHook')],
    default_hooks=dict(
        checkpoint=dict(interval=1, minutes=30, type='AtomicCheckpointHook'),
        dirty_data=dict(type='DirtyDataHook'),
        logger=dict(interval=50, type='SteadyLoggerHook'),
        numerical_guard=dict(type='NumericalGuardHook'),
        param_scheduler=dict(type='ParamSchedulerHook'),
        preemption=dict(type='PreemptionHook'),
        report=dict(type='ReportHook'),
        resume=dict(type='IntactResumeHook'),
        sampler_seed=dict(type='DistSamplerSeedHook'),
        timer=dict(type='IterTimerHook'),
        visualization=dict(type='DetVisualizationHook'),
    ),
)


@pytest.fixture
def old_config(root, tmp_path):
    """The config in a work directory of before."""
    cfg = load_config(str(root / 'configs/demo/retinanet_poolformer_s12.py'))
    for key, value in OLD.items():
        cfg[key] = value
    cfg.dump(tmp_path / 'retinanet.py')
    return str(tmp_path / 'retinanet.py')


def test_an_old_config_is_loaded_with_one_line_of_warning(old_config, logged):
    cfg = load_config(old_config, {'default_hooks.checkpoint.interval': 2})
    assert cfg.custom_imports.imports == [
        'backbones', 'poolformer_dense.runner', 'poolformer_dense.report.hook'
    ]  # fmt: skip
    assert cfg.default_hooks.checkpoint.interval == 2
    kinds = [node['type'] for _, node in walk([cfg.default_hooks, cfg.custom_hooks])
             if isinstance(node, dict) and 'type' in node]  # fmt: skip
    with HOOKS.switch_scope_and_registry('mmdet') as registry:
        assert [kind for kind in kinds if registry.get(kind) is None] == []
    [said] = [line for line in logged if 'retinanet.py' in line]
    assert 'of an earlier version: engine.hooks is now poolformer_dense.runner and ' in said


def test_a_config_of_today_is_left_alone(root, logged):
    cfg = load_config(str(root / 'configs/demo/fpn_poolformer_s12.py'))
    before = cfg.pretty_text
    assert modernize(cfg) == []
    assert cfg.pretty_text == before
    assert not [line for line in logged if 'earlier version' in line]


def test_types_are_renamed_or_dropped_and_arguments_renamed():
    cfg = Config(
        dict(
            model=dict(type='Detector', backbone=dict(type='PoolFormer', ops='cpu')),
            default_hooks=dict(checkpoint=dict(type='Old', interval=3), strict=dict(type='Gone')),
            custom_hooks=[dict(type='Gone'), dict(type='Kept'), dict(type='Gone')],
        )
    )
    changes = modernize(cfg, types={'Old': 'New', 'Gone': None}, arguments={'ops': 'backend'})
    assert cfg.to_dict() == dict(
        model=dict(type='Detector', backbone=dict(type='PoolFormer', backend='cpu')),
        default_hooks=dict(checkpoint=dict(type='New', interval=3)),
        custom_hooks=[dict(type='Kept')],
    )
    assert sorted(changes) == [
        'Gone is no longer needed', 'Old is now New', 'model.backbone.ops is now backend'
    ]  # fmt: skip


def test_an_import_that_is_not_there_is_named(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("custom_imports = dict(imports=['engine.mine'])\ndefault_scope = 'mmdet'\n")
    with pytest.raises(UserError, match=r'mine\.py: custom_imports: .*engine\.mine'):
        load_config(str(path))
