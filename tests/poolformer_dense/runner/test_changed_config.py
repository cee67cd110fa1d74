"""Resuming with another config: what is said, and that it is true."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from poolformer_dense.config.config_text import parse_config
from poolformer_dense.errors import UserError
from poolformer_dense.runner.changed_config import differences
from tests.poolformer_dense.runner import tiny

OPTIONS = dict(checkpoint=dict(type='AtomicCheckpointHook', minutes=0))
# The training is stopped after 6 of 12 steps.
SCHEDULE = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=2, milestones=[1], gamma=0.1)]


class TestDifferences:
    def test_entries_are_named_with_their_values_and_what_is_used(self):
        then = dict(
            train_dataloader=dict(batch_size=2, num_workers=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            param_scheduler=[dict(type='LinearLR', end=5)],
        )
        now = dict(
            train_dataloader=dict(batch_size=4, num_workers=0),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.2), clip_grad=dict(max_norm=1)),
            param_scheduler=[dict(type='LinearLR', end=9)],
        )
        assert [(*d, d.used) for d in differences(then, now)] == [
            ('train_dataloader.batch_size', 2, 4, 'config'),
            ('optim_wrapper.optimizer.lr', 0.1, 0.2, 'checkpoint'),
            ('optim_wrapper.clip_grad', 'none', dict(max_norm=1), 'config'),
            ('param_scheduler.0.end', 5, 9, 'checkpoint'),
        ]

    def test_names_places_and_variables_are_none(self):
        then = dict(work_dir='a', resume=False, load_from=None, lr=1, custom_hooks=[])
        assert differences(then, dict(work_dir='b', resume=True, load_from='c', lr=2)) == []


@pytest.fixture(scope='module')
def trained(warmed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('changed') / 'run'
    cfg = tiny.tiny_config(folder, steps=6, **OPTIONS)
    cfg.param_scheduler = SCHEDULE
    tiny.build_runner(cfg).train()
    return folder


@pytest.fixture
def resume(trained, tmp_path) -> Callable[..., tuple[Any, str]]:
    """Resume with the given changes; returns the runner and what was said."""

    def run(change: Callable[[Config], None], steps: int = 6, **options) -> tuple[Any, str]:
        folder = shutil.copytree(trained, tmp_path / 'run', dirs_exist_ok=True)
        cfg = tiny.tiny_config(folder, steps=steps, resume=True, **OPTIONS | options)
        cfg.param_scheduler = SCHEDULE
        change(cfg)
        runner = tiny.build_runner(cfg)
        return runner, tiny.train_listening(runner)

    return run


def _rows(said: str) -> list[list[str]]:
    _, _, table = said.partition('The config differs from that of the checkpoint:\n')
    return [line.split() for line in table.splitlines()]


def test_an_unchanged_config_is_not_mentioned(resume):
    assert 'The config differs' not in resume(lambda cfg: None)[1]


def test_a_changed_rate_is_the_checkpoints_and_everything_says_so(resume):
    def change(cfg: Config) -> None:
        cfg.optim_wrapper.optimizer.lr = 0.5

    runner, said = resume(change, steps=12)
    assert ['optim_wrapper.optimizer.lr', '0.01', '0.5', 'checkpoint'] in _rows(said)
    assert runner.optim_wrapper.param_groups[0]['initial_lr'] == 0.01
    [dumped, logged] = [
        next(Path(runner.work_dir).glob('*.py')),
        Path(runner.log_dir, 'vis_data/config.py'),
    ]
    for path in (dumped, logged):
        assert Config.fromfile(path).optim_wrapper.optimizer.lr == 0.01
    saved = torch.load(Path(runner.work_dir, 'epoch_2.pth'), weights_only=False)
    assert parse_config(saved['meta']['cfg'])['optim_wrapper']['optimizer']['lr'] == 0.01
    assert saved['message_hub']['runtime_info']['cfg'] == saved['meta']['cfg']


def test_a_changed_schedule_is_the_checkpoints(resume):
    def change(cfg: Config) -> None:
        cfg.param_scheduler = [SCHEDULE[0] | dict(milestones=[3], end=4, gamma=0.5)]

    runner, said = resume(change, steps=24)
    assert ['param_scheduler.0.gamma', '0.1', '0.5', 'checkpoint'] in _rows(said)
    assert ['train_cfg.max_epochs', '1', '4', 'config'] in _rows(said)
    assert "The checkpoint's schedule ends at epoch 2, the training at epoch 4" in said
    assert runner.optim_wrapper.param_groups[0]['lr'] == pytest.approx(0.001)
    assert runner.cfg.param_scheduler[0].milestones == [1]


def test_a_shorter_training_ends_before_its_schedule(resume):
    def change(cfg: Config) -> None:
        cfg.train_cfg.max_epochs = 1
        cfg.train_cfg.val_interval = 5

    _, said = resume(change)
    assert "The training ends at epoch 1, before the checkpoint's schedule: epoch 2." in said


def test_batch_and_data_are_the_configs(resume):
    def change(cfg: Config) -> None:
        cfg.train_dataloader.batch_size = 3
        cfg.train_dataloader.dataset.augment = False

    runner, said = resume(change, steps=12)
    assert ['train_dataloader.batch_size', '2', '3', 'config'] in _rows(said)
    assert ['train_dataloader.dataset.augment', 'none', 'False', 'config'] in _rows(said)
    assert len(runner.train_dataloader) == 4


class TestRefused:
    def _refuse(self, resume, change: Callable[[Config], None], match: str) -> None:
        with pytest.raises(UserError, match=match + '.*load_from=PATH in place of --resume'):
            resume(change)

    def test_another_optimizer(self, resume):
        def change(cfg: Config) -> None:
            cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.01)

        self._refuse(resume, change, 'optim_wrapper.optimizer.type is SGD.* has AdamW')

    def test_other_groups(self, resume):
        def change(cfg: Config) -> None:
            cfg.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0)

        self._refuse(resume, change, '10 parameters in 10 groups .*, the checkpoint has 10 in 1 ')

    @pytest.mark.parametrize(
        ('schedule', 'names'),
        [
            ([dict(type='CosineAnnealingLR', T_max=2)], 'CosineAnnealingLR'),
            ([dict(type='LinearLR', start_factor=0.1, end=1), *SCHEDULE], 'LinearLR, MultiStepLR'),
            (None, 'none'),
        ],
    )
    def test_other_schedules(self, resume, schedule, names):
        def change(cfg: Config) -> None:
            cfg.param_scheduler = schedule

        self._refuse(resume, change, f'param_scheduler is {names}, the checkpoint has MultiStepLR')

    def test_other_schedules_of_a_checkpoint_without_its_config(self, resume, trained, tmp_path):
        folder = tmp_path / 'run'
        shutil.copytree(trained, folder)
        checkpoint = torch.load(trained / 'epoch_1.pth', weights_only=False)
        del checkpoint['meta']['cfg']
        torch.save(checkpoint, tmp_path / 'bare.pth')

        def change(cfg: Config) -> None:
            cfg.load_from = str(tmp_path / 'bare.pth')
            cfg.param_scheduler = SCHEDULE * 2

        self._refuse(resume, change, 'param_scheduler is 2, the checkpoint has 1')
