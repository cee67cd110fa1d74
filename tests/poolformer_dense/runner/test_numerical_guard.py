"""A non-finite loss or gradient leaves no trace, is named, and stops the run if it stays."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from poolformer_dense.errors import UserError
from poolformer_dense.runner.numerical_guard import NumericalGuardHook, _Buffers
from tests.poolformer_dense.runner import tiny
from tests.poolformer_dense.runner.poison import (
    ALL,
    PARAMETERS,
    Poison,
    Trace,
    alarms,
    bare,
    guarded_runner,
    hook_of,
    train_rank,
)


@pytest.mark.parametrize('seed', range(4))
def test_skipped_step_leaves_no_trace(runs: Path, seed: int) -> None:
    draw = random.Random(seed)
    losses = tuple(draw.sample(range(12), 2))
    rest = [i for i in range(12) if i not in losses]
    gradients = {i: draw.choice(PARAMETERS) for i in draw.sample(rest, 3)}
    poison = dict(losses=losses, gradients=gradients, value=draw.choice(['nan', 'inf', '-inf']))
    kind = 'AmpOptimWrapper' if seed % 2 else 'OptimWrapper'  # without a scaler on a CPU
    runner = guarded_runner(runs, poison, loop=draw.choice(['epoch', 'iter']), wrapper=kind)
    runner.train()
    trace = hook_of(runner, Trace)
    for i in range(12):
        assert trace.unchanged(i) == (ALL if i in losses or i in gradients else set()), i
    assert len(alarms(runner)) == 5
    assert runner.iter == 12
    for name, tensor in bare(runner).state_dict().items():
        assert tensor.isfinite().all(), name


def test_without_the_guard_one_value_spoils_everything(runs: Path) -> None:
    runner = guarded_runner(runs, dict(losses=(3,)))
    runner.hooks.remove(hook_of(runner, NumericalGuardHook))
    runner.train()
    assert not hook_of(runner, Trace).unchanged(3)
    assert not any(tensor.isfinite().all() for tensor in bare(runner).parameters())


def test_schedules_go_on(runs: Path) -> None:
    clean = guarded_runner(runs / 'clean', {})
    clean.train()
    bad = guarded_runner(runs / 'bad', dict(losses=(2, 5)))
    bad.train()
    for ours, theirs in zip(bad.param_schedulers, clean.param_schedulers, strict=True):
        assert ours.last_step == theirs.last_step
    assert bad.optim_wrapper.get_lr() == clean.optim_wrapper.get_lr()


def test_log_names_losses_images_and_parameters(runs: Path) -> None:
    runner = guarded_runner(runs, dict(losses=(2,), gradients={4: 'features.0.weight'}))
    runner.train()
    first, second = alarms(runner)
    images = hook_of(runner, Poison).images
    for line, iteration in ((first, 2), (second, 4)):
        assert f'iteration {iteration + 1}: ' in line
        for image in images[iteration]:
            assert f'train/{image:03}.jpg (id {image})' in line
    assert 'losses loss and 10 gradients (features.0.weight, ' in first
    assert '1 gradients (features.0.weight)' in second
    assert 'losses' not in second
    assert '(1 in a row, 5 stop the run)' in first


def test_one_bad_loss_is_not_in_the_averages_of_the_log(runs: Path) -> None:
    runner = guarded_runner(runs, dict(losses=(2,)))
    runner.train()
    loss = runner.message_hub.get_scalar('train/loss')
    assert loss.mean() > 0
    assert loss.data[1].sum() == 11


def test_run_stops_after_so_many_in_a_row(runs: Path) -> None:
    # iterations are counted from 0: 2 and 3, then all from 6 on, the first after the checkpoint
    runner = guarded_runner(runs, dict(losses=(2, 3, *range(6, 12))), dict(limit=4))
    with pytest.raises(UserError) as error:
        runner.train()
    message = str(error.value)
    assert message.startswith('4 steps in a row had a non-finite loss or gradient')
    assert '\n' not in message
    assert 'at iteration 10;' in message
    assert len(alarms(runner)) == 6
    checkpoint = re.search(r'checkpoint is (\S+)\.', message).group(1)
    assert checkpoint == str(runs / 'epoch_1.pth')
    weights = torch.load(checkpoint, weights_only=False)['ema_state_dict']
    weights = {
        key.removeprefix('module.'): value for key, value in weights.items() if 'module.' in key
    }
    kept = dict(bare(runner).named_parameters())
    assert tiny.checksum({name: weights[name] for name in kept}) == tiny.checksum(kept)


def test_error_before_the_first_checkpoint_says_so(runs: Path) -> None:
    with pytest.raises(UserError, match='last good checkpoint is none yet'):
        guarded_runner(runs, dict(losses=(1, 2)), dict(limit=2)).train()


@pytest.mark.parametrize('bad', [0, 1, 2, 5])
def test_accumulated_group_is_dropped(runs: Path, bad: int) -> None:
    runner = guarded_runner(runs, dict(losses=(bad,)), accumulate=3)
    runner.train()
    trace = hook_of(runner, Trace)
    last = bad - bad % 3 + 2
    assert trace.steps == [i for i in (2, 5, 8, 11) if i != last]
    for i in range(12):
        if bad <= i <= last:
            assert trace.unchanged(i) == ALL, i
        elif i in trace.steps:
            assert trace.unchanged(i) == set(), i
        else:
            assert trace.unchanged(i) == {'parameters', 'optimizer'}, i
    assert '(1 in a row' in alarms(runner)[0]


def test_steps_count_in_a_row_not_batches(runs: Path) -> None:
    bad = (0, 1, 2, 4)  # two groups of three
    runner = guarded_runner(runs, dict(losses=bad), dict(limit=3), accumulate=3)
    runner.train()
    assert len(alarms(runner)) == 4
    with pytest.raises(UserError, match=r'^2 steps .* at iteration 6;'):
        guarded_runner(runs / 'again', dict(losses=bad), dict(limit=2), accumulate=3).train()


@HOOKS.register_module()
class Gradients(Hook):
    """Keeps the gradients of each step, and takes the step back."""

    def before_train(self, runner: Runner) -> None:
        parameters = list(bare(runner).parameters())
        kept = [parameter.detach().clone() for parameter in parameters]
        self.seen: list[str] = []

        @torch.no_grad()
        def undo(*_: Any) -> None:
            self.seen.append(tiny.checksum([p.grad for p in parameters]))
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)

        runner.optim_wrapper.optimizer.register_step_post_hook(undo)


def test_gradients_of_a_dropped_group_do_not_leak_into_the_next(runs: Path) -> None:
    seen = {}
    for name, losses in (('bad', (0,)), ('clean', ())):
        runner = guarded_runner(runs / name, dict(losses=losses), accumulate=2)
        runner.register_hook(Gradients())
        runner.train()
        seen[name] = hook_of(runner, Gradients).seen
    assert len(seen['bad']) == 5
    assert seen['bad'] == seen['clean'][1:]


def test_large_values_are_no_alarm(runs: Path) -> None:
    gradients = dict.fromkeys(range(0, 12, 2), 'classifier.weight')
    runner = guarded_runner(runs, dict(gradients=gradients, value='big'))
    runner.train()
    assert not alarms(runner)
    assert all('parameters' not in hook_of(runner, Trace).unchanged(i) for i in range(1, 12, 2))


def test_guard_changes_no_clean_run(runs: Path) -> None:
    digests = []
    for name in ('guarded', 'plain'):
        runner = guarded_runner(runs / name, {})
        if name == 'plain':
            runner.hooks.remove(hook_of(runner, NumericalGuardHook))
        runner.train()
        digests.append(tiny.digest(runner))
    assert digests[0] == digests[1]


def test_scaler_keeps_its_own_business(runs: Path) -> None:
    gradients = dict.fromkeys(range(8), 'classifier.weight')
    poison = dict(gradients=gradients, value='inf', losses=(10,))
    runner = guarded_runner(runs, poison, wrapper='ScaledOptimWrapper')
    runner.train()
    scaler = runner.optim_wrapper.loss_scaler
    assert scaler.get_scale() == 2.0 ** (16 - 8)
    trace = hook_of(runner, Trace)
    assert [i for i in range(12) if 'parameters' in trace.unchanged(i)] == [*range(8), 10]
    (line,) = alarms(runner)
    assert 'iteration 11: losses loss' in line
    assert trace.unchanged(10) == ALL


def test_scaler_that_never_finds_a_scale_stops_the_run(runs: Path) -> None:
    gradients = dict.fromkeys(range(12), 'classifier.weight')
    runner = guarded_runner(
        runs, dict(gradients=gradients), dict(scaler_limit=7), wrapper='ScaledOptimWrapper'
    )
    with pytest.raises(UserError, match=r'^7 steps in a row .*whatever the scale'):
        runner.train()


@pytest.mark.parametrize('stop', [3, 4])
def test_the_count_and_a_dropped_group_are_resumed(stop: int) -> None:
    state = dict(skipped=stop, overflows=1, dropping=True, overflow=False)
    guard = NumericalGuardHook()
    guard.load_state_dict(state)
    assert guard.state_dict() == state
    assert not guard.allows_step()
    assert guard.state_dict() == state | dict(skipped=stop + 1, dropping=False)
    assert guard.allows_step()
    assert guard.state_dict()['skipped'] == 0


def test_several_optimizers_are_refused(runs: Path) -> None:
    runner = guarded_runner(runs, {})
    runner.optim_wrapper = OptimWrapperDict(
        a=OptimWrapper(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1))
    )
    with pytest.raises(UserError, match=r'one optimizer.*custom_hooks'):
        hook_of(runner, NumericalGuardHook).before_train(runner)


def test_buffers_that_are_replaced_come_back() -> None:
    module = nn.BatchNorm1d(2)
    buffers = _Buffers(module)
    buffers.save()
    kept = module.running_mean
    module.running_mean = torch.full((2,), torch.nan)
    module.num_batches_tracked += 1
    buffers.restore()
    assert module.running_mean is kept
    assert module.running_mean.tolist() == [0, 0]
    assert module.num_batches_tracked == 0
    module.running_mean = torch.ones(2)
    buffers.save()
    module.running_mean += 1
    buffers.restore()
    assert module.running_mean.tolist() == [1, 1]


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('rank', [0, 1])
def test_ranks_agree(runs: Path, rank: int, accumulate: int) -> None:
    poison = dict(losses=(2,), gradients={6: 'features.4.weight'}, value='nan', rank=rank)
    children = tiny.fork_ranks(
        2, runs / 'ranks', train_rank, runs / 'run', poison, dict(accumulate=accumulate)
    )
    results = [child.result() for child in children]
    skipped = {2, 6} if accumulate == 1 else {2, 3, 6, 7}
    for result in results:
        for i, unchanged in enumerate(result['unchanged']):
            assert (unchanged == ALL) == (i in skipped), i
    for mine, theirs in zip(results[0]['states'], results[1]['states'], strict=True):
        assert mine['parameters'] == theirs['parameters']
        assert mine['optimizer'] == theirs['optimizer']
    lines = results[0]['lines']
    assert f'iteration 3 on rank {rank}: losses loss' in lines[0]
    for image in results[rank]['images'][2]:
        assert f'train/{image:03}.jpg' in lines[0]
    assert all('iteration 7 on rank' in line for line in lines[1:])
    assert 'gradients (features.4.weight)' in lines[-1]
