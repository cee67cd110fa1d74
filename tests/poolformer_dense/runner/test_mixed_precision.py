"""Mixed precision without a GPU: what is computed in bfloat16, and what is not."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import AmpOptimWrapper

from poolformer_dense.config.load import enable_amp_in_test
from poolformer_dense.runner import mixed_precision
from poolformer_dense.runner.mixed_precision import for_this_device
from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import tiny
from tests.poolformer_dense.runner.poison import hook_of

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')


def test_a_gpu_keeps_the_wrapper_of_upstream(monkeypatch):
    monkeypatch.setattr(mixed_precision, 'get_device', lambda: 'cuda')
    assert for_this_device(AmpOptimWrapper) is AmpOptimWrapper


@needs_cpu
def test_convolutions_are_in_bfloat16_and_weights_in_float32(runs):
    runner = tiny.tiny_runner(runs, amp=True)
    seen = []
    runner.model.features[0].register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    runner.train()
    training, validation = seen[0], seen[6]
    assert (training, validation) == (torch.bfloat16, torch.float32)
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}


@needs_cpu
def test_losses_follow_those_of_float32(runs):
    losses = {}
    for amp in (False, True):
        runner = tiny.tiny_runner(runs / str(amp), amp=amp)
        runner.train()
        losses[amp] = torch.tensor([*hook_of(runner, tiny.LossRecord).losses.values()])
    assert not torch.equal(losses[True], losses[False])
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0.05)


@needs_cpu
def test_a_checkpoint_of_a_gpu_is_resumed(runs):
    tiny.tiny_runner(runs, steps=6, amp=True).train()
    path = runs / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['optimizer']['loss_scaler'] = torch.amp.GradScaler('cpu').state_dict()
    torch.save(checkpoint, runs / 'gpu.pth')
    runner = tiny.tiny_runner(runs, amp=True, resume=True, load_from=runs / 'gpu.pth')
    runner.train()
    assert runner.iter == 12


@needs_cpu
@pytest.mark.parametrize('name', ['retinanet', 'mask_rcnn', 'fpn'])
def test_a_model_is_tested(runs, root, shapes, name):
    """mmcv's NMS and RoIAlign refuse bfloat16; the evaluators' numpy does not have it."""
    overrides = {'model.test_cfg.score_thr': 0.0} if name == 'retinanet' else {}
    cfg = tiny.demo_config(root, name, shapes, runs, overrides | {'log_level': 'WARNING'})
    enable_amp_in_test(cfg)
    runner = build_runner(cfg)
    seen = []
    runner.model.neck.register_forward_hook(lambda m, i, out: seen.append(out[0].dtype))
    assert runner.test()
    assert set(seen) == {torch.bfloat16}
