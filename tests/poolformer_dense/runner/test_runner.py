"""From a config to a Runner: mixed precision, learning rate, no GPU, safe loading."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from backbones.checkpoints import CheckpointError
from poolformer_dense.config.load import enable_amp, enable_lr_scaling, load_config
from poolformer_dense.errors import UserError
from poolformer_dense.runner.runner import build_runner


@pytest.fixture
def demo(root, shapes, tmp_path):
    def load(name='retinanet', **arguments):
        layout = 'ade' if name == 'fpn' else 'coco'
        overrides = {'data_root': str(shapes / layout), **arguments.pop('overrides', {})}
        path = root / f'configs/demo/{name}_poolformer_s12.py'
        return load_config(str(path), overrides, str(tmp_path), **arguments)

    return load


def test_work_dir(root, monkeypatch):
    stock = str(root / 'configs/retinanet_poolformer_s12.py')
    assert load_config(stock).work_dir == 'work_dirs/retinanet_poolformer_s12'
    assert load_config(stock, work_dir='here').work_dir == 'here'
    demo = str(root / 'configs/demo/retinanet_poolformer_s12.py')
    assert load_config(demo).work_dir == 'work_dirs/demo/retinanet_poolformer_s12'


def test_a_base_is_not_a_config_to_run(root):
    with pytest.raises(UserError, match=r'ade20k\.py has no default_scope .* only a base'):
        load_config(str(root / 'configs/_base_/ade20k.py'))


def test_amp(root):
    path = str(root / 'configs/retinanet_poolformer_s12.py')
    cfg = load_config(path, {'optim_wrapper.dtype': 'bfloat16'}, prepare=[enable_amp])
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.optim_wrapper.dtype == 'bfloat16'
    with pytest.raises(UserError, match=r'OptimWrapper takes no .dtype'):
        load_config(path, {'optim_wrapper.dtype': 'bfloat16'})


@pytest.mark.parametrize(('processes', 'images', 'accumulated'), [(1, 4, 1), (2, 3, 1), (2, 3, 4)])
def test_lr_scaling(demo, monkeypatch, processes, images, accumulated):
    cfg = demo(
        prepare=[enable_lr_scaling],
        overrides={
            'train_dataloader.batch_size': images,
            'optim_wrapper.accumulative_counts': accumulated,
            'auto_scale_lr.base_batch_size': 8,
        },
    )
    runner = build_runner(cfg)
    monkeypatch.setattr('poolformer_dense.runner.hooks.get_world_size', lambda: processes)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    expected = cfg.optim_wrapper.optimizer.lr * processes * images * accumulated / 8
    assert runner.optim_wrapper.get_lr()['lr'] == [pytest.approx(expected)]
    # A schedule's factors are of the scaled rate.
    for scheduler in runner.build_param_scheduler(runner.param_schedulers):
        assert scheduler.base_values == [pytest.approx(expected)]


def test_lr_scaling_needs_a_base_batch(demo):
    cfg = demo()
    cfg.pop('auto_scale_lr')
    with pytest.raises(UserError, match=r'no auto_scale_lr\.base_batch_size'):
        enable_lr_scaling(cfg)


def test_sync_bn_is_converted_without_a_gpu(demo):
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    runner = build_runner(demo('fpn'))
    norms = [m for m in runner.model.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert not any(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)


def test_mpi_needs_gpus(demo):
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    with pytest.raises(UserError, match='--launcher mpi needs GPUs'):
        build_runner(demo(launcher='mpi'))


@pytest.mark.parametrize(
    ('launcher', 'variable', 'script'),
    [('pytorch', 'RANK', 'dist_train'), ('slurm', 'SLURM_PROCID', 'slurm_train')],
)
def test_a_launcher_needs_its_starter(demo, monkeypatch, launcher, variable, script):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=rf'start with tools/{script}\.sh'):
        build_runner(demo(launcher=launcher))


FASTER = {f'{split}_evaluator.type': 'FasterCocoMetric' for split in ('val', 'test')}


def _needs_faster_metric(demo):
    """Skip, with the reason, where the toolbox has no such metric."""
    from mmdet.registry import METRICS

    demo()
    if 'FasterCocoMetric' not in METRICS:
        pytest.skip('this mmdet has no FasterCocoMetric')


def test_the_faster_evaluator_is_an_override(demo):
    _needs_faster_metric(demo)
    pytest.importorskip('faster_coco_eval')
    runner = build_runner(demo(overrides=FASTER))
    [metric] = runner.build_evaluator(runner.cfg.val_evaluator).metrics
    assert type(metric).__name__ == 'FasterCocoMetric'


@pytest.mark.parametrize('as_list', [False, True])
def test_the_faster_evaluator_needs_its_package(demo, monkeypatch, as_list):
    _needs_faster_metric(demo)
    cfg = demo(overrides=FASTER)
    if as_list:
        cfg.val_evaluator = [cfg.val_evaluator]
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'faster-coco-eval>=1\.8,<2'"):
        build_runner(cfg).build_evaluator(cfg.val_evaluator)


def test_the_faster_evaluator_needs_an_mmdet_that_has_it(demo, monkeypatch):
    from mmdet.registry import METRICS

    cfg = demo()
    cfg.val_evaluator.type = 'FasterCocoMetric'
    others = {name: m for name, m in METRICS.module_dict.items() if name != 'FasterCocoMetric'}
    monkeypatch.setattr(METRICS, '_module_dict', others)
    with pytest.raises(UserError, match='not in the installed mmdet'):
        build_runner(cfg).build_evaluator(cfg.val_evaluator)


def test_a_run_never_unpickles_a_checkpoint(demo, tmp_path, monkeypatch):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harmed'),)

    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': {}, 'message_hub': Payload()}, path)
    runner = build_runner(demo())
    with pytest.raises(CheckpointError, match='never run'):
        runner.load_checkpoint(str(path))
    assert not (tmp_path / 'harmed').exists()


@pytest.mark.parametrize('name', ['retinanet', 'fpn'])
def test_each_run_of_a_process_logs_to_its_own_folder(demo, tmp_path, name):
    for run in ('first', 'second'):
        cfg = demo(name)
        cfg.work_dir = str(tmp_path / run)
        runner = build_runner(cfg)
        runner.visualizer.add_scalar('loss', 1.0)
        assert len([*tmp_path.glob(f'{run}/**/events.out.tfevents*')]) == 1


@pytest.mark.parametrize('name', ['report', 'timer', 'dirty_data'])
def test_any_default_hook_can_be_left_out(demo, name):
    def kinds(**overrides):
        return {type(hook).__name__ for hook in build_runner(demo(overrides=overrides)).hooks}

    left = kinds() - kinds(**{f'default_hooks.{name}': None})
    assert left == {
        dict(report='ReportHook', timer='IterTimerHook', dirty_data='DirtyDataHook')[name]
    }
