"""Learning rates and weight decay are the release's, at every iteration and for every parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LEAVES = [
    str(path.relative_to(CONFIGS).with_suffix(''))
    for path in sorted([*CONFIGS.glob('*.py'), *CONFIGS.glob('beyond/*.py')])
]
COCO_IMAGES = 117_266  # of train2017, those that have a box
COCO_EPOCH = 7_330  # iterations at batch 16, with 8 processes as with one
ADE20K_IMAGES = 20_210


class Images(Dataset):
    """As many images as a data set has."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class Model(BaseModel):
    """One parameter that stays: only the schedule runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        raise NotImplementedError

    def train_step(self, data, optim_wrapper) -> dict:
        return {}


class Recorder(Hook):
    """Note the learning rate of each iteration."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.rates += [group['lr'] for group in runner.optim_wrapper.param_groups]


@pytest.fixture
def learning_rates(load, tmp_path) -> Callable[[str, int], np.ndarray]:
    """The learning rates that a real Runner takes, iteration by iteration, with a config."""

    def run(name: str, images: int) -> np.ndarray:
        cfg = load(name)
        recorder = Recorder()
        hooks = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'checkpoint')
        runner = Runner(
            Model(),
            str(tmp_path),
            train_dataloader=dict(
                batch_size=cfg.auto_scale_lr.base_batch_size,
                num_workers=0,
                dataset=Images(images),
                sampler=cfg.train_dataloader.sampler,
            ),
            train_cfg=cfg.train_cfg,
            optim_wrapper=cfg.optim_wrapper,
            param_scheduler=cfg.param_scheduler,
            default_hooks=dict.fromkeys(hooks),
            custom_hooks=[recorder],
            log_level='ERROR',
        )
        runner.train()
        return np.array(recorder.rates)

    return run


def warm_up(iterations: np.ndarray, length: int, start: float) -> np.ndarray:
    return start + (1 - start) * np.minimum(iterations / (length - 1), 1)


@pytest.mark.parametrize(
    ('name', 'lr', 'epochs', 'steps', 'part'),
    [
        ('retinanet_poolformer_s12', 1e-4, 12, (8, 11), 1),
        # A tenth of the images: what is longer is only the epochs.
        ('beyond/mask_rcnn_poolformer_s12_lsj_3x', 2e-4, 36, (27, 33), 10),
    ],
)
def test_coco_schedule(learning_rates, name, lr, epochs, steps, part):
    epoch = COCO_EPOCH // part
    rates = learning_rates(name, COCO_IMAGES if part == 1 else 16 * epoch)
    iterations = np.arange(epochs * epoch)
    decay = 0.1 ** sum(iterations // epoch >= step for step in steps)
    expected = lr * warm_up(iterations, 500, 0.001) * decay
    np.testing.assert_allclose(rates, expected, rtol=1e-9)
    # the release counts i/500 in the warm-up: ours is ahead by less than one step
    release = lr * (0.001 + 0.999 * np.arange(501) / 500)
    assert rates[0] == pytest.approx(release[0])
    assert rates[499] == pytest.approx(release[500])
    assert (release[1:499] < rates[1:499]).all()
    assert (rates[1:499] < release[2:500]).all()


def test_ade20k_schedule(learning_rates):
    rates = learning_rates('fpn_poolformer_s12', ADE20K_IMAGES)
    iterations = np.arange(40_000)
    # rounding adds up, as each rate is computed from the one before: it shows where they near 0
    np.testing.assert_allclose(
        rates, 2e-4 * (1 - iterations / 39_999) ** 0.9, rtol=1e-7, atol=1e-15
    )
    # the release counts i/40000: ours is ahead by less than one step
    release = 2e-4 * (1 - np.arange(40_001) / 40_000) ** 0.9
    assert (rates[1:-1] < release[1:-2]).all()
    assert (release[2:-1] < rates[1:-1]).all()


def test_upernet_schedule(learning_rates):
    rates = learning_rates('beyond/upernet_poolformer_s12', ADE20K_IMAGES)
    iterations = np.arange(160_000)
    linear = 1 - np.maximum(iterations - 1_500, 0) / 158_499
    expected = 6e-5 * warm_up(iterations, 1_500, 1e-6) * linear
    np.testing.assert_allclose(rates, expected, rtol=1e-7, atol=1e-15)


@pytest.mark.parametrize('name', LEAVES)
def test_every_recipe_has_one_of_these_schedules(load, name):
    tested = {
        'retinanet': 'retinanet_poolformer_s12',
        'mask_rcnn': 'retinanet_poolformer_s12',
        'cascade': 'retinanet_poolformer_s12',
        'fpn': 'fpn_poolformer_s12',
        'upernet': 'beyond/upernet_poolformer_s12',
    }
    head = next(head for head in tested if Path(name).name.startswith(head))
    lsj = name.endswith('_lsj_3x')
    same = load('beyond/mask_rcnn_poolformer_s12_lsj_3x' if lsj else tested[head])
    cfg = load(name)
    assert cfg.param_scheduler == same.param_scheduler
    assert cfg.train_cfg == same.train_cfg
    assert cfg.auto_scale_lr == same.auto_scale_lr


@pytest.mark.parametrize('name', LEAVES)
def test_every_parameter_has_the_same_rate_and_decay(load, meta_model, name):
    model, cfg = meta_model(name), load(name)
    lr, decay = 2e-4, 1e-4
    if name.startswith('retinanet'):
        lr = 1e-4
    if 'upernet' in name:
        lr, decay = 6e-5, 0.01
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert type(wrapper).__name__ == 'OptimWrapper'
    assert wrapper.clip_grad_kwargs is None
    assert type(wrapper.optimizer) is torch.optim.AdamW
    [group] = wrapper.param_groups  # one for all: nothing is exempt
    assert (group['lr'], group['weight_decay']) == (lr, decay)
    assert (group['betas'], group['eps']) == ((0.9, 0.999), 1e-8)
    assert {id(p) for p in group['params']} >= {
        id(p) for p in model.parameters() if p.requires_grad
    }
