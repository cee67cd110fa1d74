"""Subclasses of mmengine's hooks, such as users write, lose no promise of the Runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from poolformer_dense.runner.checkpoint_hook import AtomicCheckpointHook
from poolformer_dense.runner.hooks import ResumableEarlyStoppingHook, SteadyLoggerHook
from poolformer_dense.runner.numerical_guard import GuardedEMAHook
from tests.poolformer_dense.runner import tiny
from tests.poolformer_dense.runner.poison import ALL, Trace, guarded_runner, hook_of


@HOOKS.register_module()
class CountingEMAHook(EMAHook):
    """Counts its updates."""

    updates = 0

    def after_train_iter(self, *arguments: Any, **options: Any) -> None:
        self.updates += 1
        super().after_train_iter(*arguments, **options)


@HOOKS.register_module()
class OwnEMAHook(EMAHook):
    """Updates the average without mmengine's method."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.ema_model.update_parameters(self.src_model)


@HOOKS.register_module()
class NotingCheckpointHook(CheckpointHook):
    """Has an argument of its own, and notes the names of its saves."""

    def __init__(self, note: str, **options: Any) -> None:
        super().__init__(**options)
        self.note = note

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with open(self.note, 'a') as file:
            file.write(f'{step}\n')
        super()._save_checkpoint_with_step(runner, step, meta)


@HOOKS.register_module()
class PatientHook(EarlyStoppingHook):
    """Is resumed in a way of its own."""

    def state_dict(self) -> dict[str, Any]:
        return dict(own=True)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


@HOOKS.register_module()
class FailingLoggerHook(LoggerHook):
    """Meets a full disk."""

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        raise OSError(28, 'No space left on device')


@pytest.mark.parametrize('kind', [CountingEMAHook, OwnEMAHook])
def test_no_average_moves_over_a_skipped_step(runs: Path, kind: type[EMAHook]) -> None:
    runner = guarded_runner(runs, dict(losses=(3,)), average=kind.__name__)
    runner.train()
    trace = hook_of(runner, Trace)
    assert trace.unchanged(3) == ALL
    assert 'average' not in trace.unchanged(4)
    assert isinstance(hook_of(runner, kind), GuardedEMAHook)
    assert getattr(hook_of(runner, kind), 'updates', 11) == 11


def test_a_checkpoint_hook_keeps_its_own_methods_and_saves_as_ours(runs: Path) -> None:
    note = runs / 'note'
    options = dict(type='NotingCheckpointHook', note=str(note), max_keep_ckpts=1)
    tiny.tiny_runner(runs / 'run', checkpoint=options).train()
    assert note.read_text().split() == ['1', '2']
    assert sorted(path.name for path in (runs / 'run').glob('*.pth')) == ['epoch_2.pth']
    assert 'position' in torch.load(runs / 'run/epoch_2.pth', weights_only=False)['run_state']


def test_a_failing_logger_does_not_stop_the_run(runs: Path) -> None:
    cfg = tiny.tiny_config(runs)
    cfg.default_hooks.logger.type = 'FailingLoggerHook'
    runner = tiny.build_runner(cfg)
    runner.train()
    assert runner.iter == 12
    assert isinstance(hook_of(runner, FailingLoggerHook), SteadyLoggerHook)


def test_a_state_of_its_own_is_kept(runs: Path) -> None:
    hook = dict(type='PatientHook', monitor='tiny/accuracy')
    runner = tiny.tiny_runner(runs, hooks=[hook])
    hook = hook_of(runner, PatientHook)
    assert isinstance(hook, ResumableEarlyStoppingHook)
    assert hook.state_dict() == dict(own=True)


def test_what_takes_a_place_is_logged(runs: Path) -> None:
    runner = tiny.tiny_runner(runs)
    said: list[str] = []
    runner.logger.addFilter(lambda record: said.append(record.getMessage()))
    runner.logger.setLevel('INFO')
    for hook in (
        dict(type='EMAHook'),
        dict(type=CountingEMAHook),
        EMAHook(),
        GuardedEMAHook(),
        dict(type='AtomicCheckpointHook'),
        CheckpointHook(),
        AtomicCheckpointHook(),
    ):
        runner.register_hook(hook)
    assert said == [
        'EMAHook: GuardedEMAHook takes its place.',
        'CountingEMAHook: it is combined with GuardedEMAHook.',
        'EMAHook is given as an object: GuardedEMAHook can not take its place; give it as a dict '
        'with its type',
        'CheckpointHook is given as an object: AtomicCheckpointHook can not take its place; give '
        'it as a dict with its type',
    ]
