"""The exact loops: what mmengine's do, and what resuming adds."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset

from poolformer_dense.runner.loops import (
    BySizeValLoop,
    ExactEpochBasedTrainLoop,
    ExactIterBasedTrainLoop,
    parts_by_size,
)
from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import exactness, tiny


@HOOKS.register_module()
class Calls(Hook):
    """Notes what a loop does; sends a signal in a validation if asked to."""

    priority = 'LOWEST'

    def __init__(self, signal_at: int | None = None) -> None:
        self.calls: list[Any] = []
        self.signal_at = signal_at

    def before_train_epoch(self, runner: Runner) -> None:
        self.calls.append(('epoch', runner.epoch))

    def after_train_epoch(self, runner: Runner) -> None:
        self.calls.append(('end', runner.epoch))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.calls.append((batch_idx, runner.iter))

    def before_val_epoch(self, runner: Runner) -> None:
        self.calls.append(('val', runner.epoch, runner.iter))

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.signal_at == runner.iter and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@HOOKS.register_module()
class Workers(Hook):
    """Notes how many workers there are at most."""

    most = 0

    def after_val_iter(self, *_: Any, **__: Any) -> None:
        self.most = max(self.most, len(multiprocessing.active_children()))


def _noted(config: Any) -> list[Any]:
    runner = build_runner(config)
    runner.train()
    [hook] = [hook for hook in runner.hooks if isinstance(hook, Calls)]
    return hook.calls


@pytest.mark.parametrize(
    'rules',
    [
        dict(val_interval=1),
        dict(val_interval=2, val_begin=2),
        dict(val_interval=3, dynamic_intervals=[(2, 1)]),
        dict(val_interval=100),
    ],
)
@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_they_call_what_mmengine_calls(runs, loop, rules):
    def calls(folder: Path, ours: bool) -> list[Any]:
        config = tiny.tiny_config(folder, loop=loop, steps=24, hooks=[dict(type='Calls')])
        config.train_cfg.update(rules)
        if not ours:
            config.runner_type = 'Runner'
            config.default_hooks.checkpoint = None
        return _noted(config)

    found = tiny.fork(runs / 'ours', calls, runs / 'a', True).result()
    assert found == tiny.fork(runs / 'theirs', calls, runs / 'b', False).result()
    assert sum(call[0] == 'val' for call in found) >= 1


@pytest.mark.parametrize(
    ('loop', 'ours'),
    [
        (dict(type='EpochBasedTrainLoop', max_epochs=1), ExactEpochBasedTrainLoop),
        (dict(by_epoch=True, max_epochs=1), ExactEpochBasedTrainLoop),
        (dict(type=EpochBasedTrainLoop, max_epochs=1), ExactEpochBasedTrainLoop),
        (dict(type='IterBasedTrainLoop', max_iters=1), ExactIterBasedTrainLoop),
        (dict(by_epoch=False, max_iters=1), ExactIterBasedTrainLoop),
        (dict(type='ExactIterBasedTrainLoop', max_iters=1), ExactIterBasedTrainLoop),
    ],
)
def test_mmengines_names_mean_our_loops(tmp_path, loop, ours):
    assert type(tiny.tiny_runner(tmp_path).build_train_loop(loop)) is ours


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_no_worker_is_left_behind(runs, loop):
    def workers(folder: Path) -> tuple[int, int, int]:
        config = tiny.tiny_config(folder, loop=loop, workers=2)
        config.val_dataloader.update(num_workers=1, persistent_workers=True)
        config.test_dataloader = config.val_dataloader
        config.test_evaluator, config.test_cfg = config.val_evaluator, dict()
        config.custom_hooks.append(dict(type='Workers'))
        runner = build_runner(config)
        runner.train()
        [seen] = [hook for hook in runner.hooks if isinstance(hook, Workers)]
        trained = len(multiprocessing.active_children())
        runner.test()
        return seen.most, trained, len(multiprocessing.active_children())

    assert tiny.fork(runs / loop, workers, runs / 'run').result() == (3, 0, 0)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


@pytest.mark.parametrize(
    'options', [dict(dataset=Stream(), batch_size=2), dict(dataset=[3, 1, 2], batch_size=None)]
)
def test_a_loader_that_no_other_can_replace_stays(options):
    loader = DataLoader(**options, num_workers=1, persistent_workers=True)
    loop = object.__new__(BySizeValLoop)
    loop.dataloader = loader
    loop.end_workers()
    assert loop.dataloader is loader


def test_other_loops_stay(tmp_path):
    from mmengine.registry import LOOPS

    own = type('OwnTrainLoop', (IterBasedTrainLoop,), {})
    with LOOPS.switch_scope_and_registry(None) as registry:
        registry.register_module(module=own, force=True)
    runner = tiny.tiny_runner(tmp_path)
    assert type(runner.build_train_loop(dict(type='OwnTrainLoop', max_iters=1))) is own
    both = dict(type='IterBasedTrainLoop', by_epoch=False, max_iters=1)
    with pytest.raises(RuntimeError, match='Only one of'):
        runner.build_train_loop(both)


def _checkpoint(folder: Path, **options: Any) -> Path:
    """Train four iterations of six; return the checkpoint of the third."""
    kept = folder / 'kept'
    keeper = dict(type='KeepEachStep', folder=str(kept))
    tiny.fork(
        folder / 'first_end', exactness.train, folder / 'first', hooks=[keeper], **options
    ).result()
    return kept / '3.pth'


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_a_million_iterations_are_not_decoded_again(runs, loop, workers):
    done, left = 1_000_000, 3
    path = _checkpoint(runs, loop=loop, steps=6)
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['meta']['iter'] = checkpoint['run_state']['position']['batch'] = done
    torch.save(checkpoint, runs / 'million.pth')
    reads = runs / 'reads'
    length = tiny.BATCH * (done + left) if loop == 'epoch' else 1000
    config = tiny.tiny_config(
        runs / 'second', loop=loop, workers=workers, length=length, reads=str(reads),
        resume=True, load_from=runs / 'million.pth', hooks=[dict(type='Calls')],
    )  # fmt: skip
    config.train_cfg.update(dict(max_epochs=1) if loop == 'epoch' else dict(max_iters=done + left))
    config.val_cfg = config.val_dataloader = config.val_evaluator = None

    def resume() -> tuple[float, list[Any]]:
        started = time.process_time()
        calls = _noted(config)
        return time.process_time() - started, calls

    seconds, calls = tiny.fork(runs / 'end', resume).result()
    steps = [call for call in calls if isinstance(call[0], int)]
    assert steps == [(done + i, done + i) for i in range(left)]
    ahead = 2 * workers if loop == 'iter' else 0  # batches that workers prepare
    assert left <= len(reads.read_text().split()) / tiny.BATCH <= left + ahead
    assert seconds < 20


def test_the_order_after_a_million_iterations(tmp_path):
    from itertools import islice

    from mmengine.dataset import InfiniteSampler

    runner = tiny.tiny_runner(tmp_path, loop='iter', length=1000)
    batches = runner.train_loop.dataloader.batch_sampler
    batches.start(0, 1_000_000)
    expected = islice(InfiniteSampler(range(1000), seed=0), 2_000_000, 2_000_006)
    found = [index for batch in islice(batches, 3) for index in batch]
    assert found == list(expected)


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_a_stop_within_a_validation(runs, loop, ema):
    # no checkpoint by interval where the validation is, so that the stop has to save
    options = dict(loop=loop, ema=ema, steps=18, checkpoint=dict(interval=5))
    preemption = dict(type='PreemptionHook')
    step = 12
    # the hook reads runner.iter, which counts what is done
    stopping = [preemption, dict(type='Calls', signal_at=step)]
    whole = tiny.fork(runs / 'a', exactness.train, runs / 'whole', **options).result()
    child = tiny.fork(runs / 'b', exactness.train, runs / 'cut', hooks=stopping, **options)
    assert child.wait() == 75
    last = Path((runs / 'cut/last_checkpoint').read_text())
    assert last.name == f'iter_{step}.pth'
    options |= dict(resume=True, load_from=last)
    end = tiny.fork(runs / 'c', exactness.train, runs / 'resumed', **options).result()
    assert end == whole
    config = tiny.tiny_config(runs / 'again', hooks=[dict(type='Calls')], **options)
    calls = tiny.fork(runs / 'd', _noted, config).result()
    assert next(call for call in calls if call[0] != 'epoch')[0] == 'val'


def test_a_validation_draws_nothing_from_the_training(runs):
    """Fewer validations, same training."""

    def train(folder: Path, interval: int) -> dict[str, str]:
        config = tiny.tiny_config(folder, loop='iter', workers=2)
        config.train_cfg.val_interval = interval
        runner = build_runner(config)
        runner.train()
        return tiny.digest(runner)

    often = tiny.fork(runs / 'a', train, runs / 'often', 2).result()
    rarely = tiny.fork(runs / 'b', train, runs / 'rarely', 12).result()
    same = {part for part in often if often[part] == rarely[part]}
    assert same >= {'weights', 'optimizer', 'draws'}


def test_early_stopping_is_resumed(runs):
    patience = dict(type='EarlyStoppingHook', monitor='tiny/accuracy', patience=3, min_delta=2.0)
    options = dict(loop='epoch', steps=60)
    kept = runs / 'kept'
    keeper = dict(type='KeepEachStep', folder=str(kept))

    def train(folder: Path, hooks: list, **more: Any) -> int:
        runner = tiny.tiny_runner(folder, hooks=[patience, *hooks], **options, **more)
        runner.train()
        return runner.epoch

    stopped_at = tiny.fork(runs / 'a', train, runs / 'whole', [keeper]).result()
    assert stopped_at < 10
    resumed = tiny.fork(
        runs / 'b', train, runs / 'resumed', [], resume=True, load_from=kept / '15.pth'
    ).result()
    assert resumed == stopped_at


def test_hooks_of_one_type_are_resumed_each_with_its_own_state(tmp_path):
    def stopping(monitor: str) -> dict[str, Any]:
        return dict(type='EarlyStoppingHook', monitor=monitor, rule='greater')

    def parts(*monitors: str) -> dict[str, Any]:
        runner = tiny.tiny_runner(tmp_path, hooks=[stopping(monitor) for monitor in monitors])
        names = runner.resumable().items()
        return {name: part for name, part in names if 'EarlyStopping' in name}

    saved = {}
    for score, (name, part) in enumerate(parts('tiny/accuracy', 'tiny/score').items()):
        part.best_score = score
        saved[name] = part.state_dict()
    assert len(saved) == 2
    again = parts('tiny/accuracy', 'tiny/score')
    for name, part in again.items():
        part.load_state_dict(saved[name])
    assert sorted((part.monitor, part.best_score) for part in again.values()) == [
        ('tiny/accuracy', 1.0),
        ('tiny/score', 0.0),
    ]
    # What has been watched is another metric now, or a checkpoint of before has but one.
    [(name, part)] = parts('tiny/accuracy').items()
    part.load_state_dict(saved[name])
    assert part.best_score == -math.inf
    part.load_state_dict(dict(wait_count=2, best_score=0.5))
    assert (part.wait_count, part.best_score) == (2, 0.5)


def test_a_seed_drawn_at_random_is_taken_over(runs):
    path = _checkpoint(runs, loop='iter', seed=None)

    def train(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
        np.random.seed()  # a forked child would draw the seed that its parent draws
        runner = tiny.tiny_runner(folder, loop='iter', seed=None, resume=True, load_from=path)
        runner.train()
        return runner.train_loop.seeds(), tiny.digest(runner)

    first, second = (tiny.fork(runs / n, train, runs / f'run{n}').result() for n in 'ab')
    assert first == second
    assert set(first[0].values()) == {torch.load(path, weights_only=False)['meta']['seed']}


def _resumed_calls(config: Any) -> tuple[list[Any], str]:
    calls = _noted(config)
    [log] = Path(config.work_dir).glob('*/*.log')
    return calls, log.read_text()


@pytest.mark.parametrize(('loop', 'redone'), [('epoch', 3), ('iter', 0)])
def test_a_checkpoint_of_another_program(runs, loop, redone):
    path = _checkpoint(runs, loop=loop)
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint['run_state']
    torch.save(checkpoint, runs / 'foreign.pth')
    config = tiny.tiny_config(
        runs / 'second', loop=loop, resume=True, load_from=runs / 'foreign.pth',
        hooks=[dict(type='Calls')],
    )  # fmt: skip
    calls, log = tiny.fork(runs / 'end', _resumed_calls, config).result()
    steps = [call for call in calls if isinstance(call[0], int)]
    assert len(steps) == 12 - 3 + redone
    assert log.count('has no run state') == 1


class _Batches(Hook):
    def __init__(self, batches: list[int]) -> None:
        self.batches = batches

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.batches.append(runner.position.batch)


def test_another_number_of_processes(runs):
    path = _checkpoint(runs, loop='iter', length=60)
    config = tiny.tiny_config(
        runs / 'second', loop='iter', length=60, launcher='pytorch', resume=True, load_from=path,
        hooks=[dict(type='Calls')],
    )  # fmt: skip

    def resume() -> tuple[list[Any], dict[str, Any]]:
        runner = build_runner(config)
        batches = []
        runner.register_hook(_Batches(batches))
        runner.train()
        return batches[0], runner.iter

    # three batches of one process are what two processes do in one and a half: the next is the 2nd
    for child in tiny.fork_ranks(2, runs / 'ranks', resume):
        assert child.result() == (2, 12)
    log = ''.join(path.read_text() for path in (runs / 'second').glob('*/*.log'))
    assert 'The checkpoint was saved by 1 processes, this run has 2' in log


@HOOKS.register_module()
class Positions(Hook):
    """Notes whether a checkpoint would say that the validation is behind."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.validated: dict[str, list[bool]] = {}

    def _note(self, when: str, runner: Runner) -> None:
        state = runner.position.state_dict()
        self.validated.setdefault(when, []).append(state['validated'])

    def after_train_epoch(self, runner: Runner) -> None:
        self._note('after the epoch', runner)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._note('within', runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._note('after it', runner)


def test_a_validation_is_due_until_it_is_evaluated(runs):
    def train(folder: Path) -> dict[str, list[bool]]:
        runner = tiny.tiny_runner(folder, hooks=[dict(type='Positions')])
        runner.train()
        return next(h for h in runner.hooks if isinstance(h, Positions)).validated

    assert tiny.fork(runs / 'a', train, runs / 'run').result() == {
        'after the epoch': [False] * 2,
        'within': [False] * 4,
        'after it': [True] * 2,
    }


def test_the_state_is_plain_data(runs):
    options = dict(accumulate=4, ema=True)
    path = _checkpoint(runs, **options)
    state = torch.load(path, weights_only=False)['run_state']
    torch.save(state, runs / 'state.pth')
    again = torch.load(runs / 'state.pth', weights_only=True)
    assert tiny.checksum(again) == tiny.checksum(state)
    assert again['position'] == dict(epoch=0, batch=3, validated=True, samples_per_step=2)
    assert again['accumulation']['ranks'][0]


def test_a_batch_is_parted_where_the_size_changes():
    wide, high = torch.zeros(3, 2, 4), torch.zeros(3, 4, 2)
    batch = dict(inputs=[wide, wide, high, wide], data_samples=list('abcd'))
    parts = parts_by_size(batch)
    assert [part['data_samples'] for part in parts] == [['a', 'b'], ['c'], ['d']]
    assert [[x.shape for x in part['inputs']] for part in parts] == [
        [wide.shape] * 2, [high.shape], [wide.shape],
    ]  # fmt: skip
    for other in (dict(inputs=['a', 'b']), [wide, high], dict(inputs=torch.zeros(2, 3, 4, 4))):
        assert parts_by_size(other) == [other]


@pytest.mark.parametrize('typed', [True, False])
def test_a_segmentor_is_evaluated_in_batches_of_several_sizes(root, shapes, tmp_path, typed):
    figures = []
    for size in (1, 3):
        cfg = tiny.demo_config(root, 'fpn', shapes, tmp_path / f'{size}{typed}')
        cfg.test_dataloader.batch_size = size
        cfg.test_cfg = dict(type='TestLoop') if typed else dict()
        cfg.randomness = dict(seed=0)
        figures.append(build_runner(cfg).test())
    sizes = {mmcv.imread(str(path)).shape for path in (shapes / 'ade/images/validation').iterdir()}
    assert len(sizes) > 1
    alone, together = figures
    names = {'aAcc', 'mIoU', 'mAcc'}
    assert {n: alone[n] for n in names} == pytest.approx({n: together[n] for n in names}, abs=0.02)
