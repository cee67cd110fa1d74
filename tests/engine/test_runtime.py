"""From a config to a Runner: mixed precision, learning rate, no GPU, safe loading."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from backbones.checkpoints import CheckpointError
from engine.errors import UserError
from engine.runtime import build_runner, enable_amp, enable_lr_scaling, load_config


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


def test_amp(root, monkeypatch):
    path = str(root / 'configs/retinanet_poolformer_s12.py')
    # Only our own question is answered so: mmengine's logger would go and look for the device.
    gpu = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setattr('engine.runtime.torch', gpu)
    cfg = load_config(path, {'optim_wrapper.dtype': 'bfloat16'}, prepare=[enable_amp])
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.optim_wrapper.dtype == 'bfloat16'
    with pytest.raises(UserError, match=r'OptimWrapper takes no .dtype'):
        load_config(path, {'optim_wrapper.dtype': 'bfloat16'})
    gpu.cuda.is_available = lambda: False
    with pytest.raises(UserError, match='--amp needs a GPU'):
        load_config(path, prepare=[enable_amp])


def test_lr_scaling(demo, root):
    cfg = demo(prepare=[enable_lr_scaling], overrides={'train_dataloader.batch_size': 4})
    runner = build_runner(cfg)
    assert runner.train_loop.max_epochs == cfg.train_cfg.max_epochs
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    expected = cfg.optim_wrapper.optimizer.lr * 4 / cfg.auto_scale_lr.base_batch_size
    assert runner.optim_wrapper.get_lr()['lr'] == [pytest.approx(expected)]


def test_lr_scaling_needs_a_base_batch(demo):
    cfg = demo()
    cfg.pop('auto_scale_lr')
    with pytest.raises(UserError, match=r'no auto_scale_lr\.base_batch_size'):
        enable_lr_scaling(cfg)


def test_sync_bn_is_converted_without_a_gpu(demo):
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    runner = build_runner(demo('fpn'))
    kinds = {type(m) for m in runner.model.modules()}
    assert torch.nn.SyncBatchNorm not in kinds
    assert torch.nn.BatchNorm2d in kinds


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_cluster_launchers_need_gpus(demo, launcher):
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    with pytest.raises(UserError, match=f'--launcher {launcher} needs GPUs'):
        build_runner(demo(launcher=launcher))


def test_torchruns_launcher_needs_torchrun(demo, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UserError, match=r'start with tools/dist_train\.sh'):
        build_runner(demo(launcher='pytorch'))


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
