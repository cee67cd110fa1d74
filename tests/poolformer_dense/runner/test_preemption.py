"""SIGTERM, SIGUSR1 and Ctrl-C: the step in hand, a checkpoint, exit code 75 or 130."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook, Hook

from poolformer_dense.runner import preemption
from poolformer_dense.runner.resume import newest_intact
from tests.poolformer_dense.runner import launching, tiny

OPTIONS = dict(
    checkpoint=dict(type='AtomicCheckpointHook', minutes=0),
    hooks=[dict(type='PreemptionHook')],
)
CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Shells have SIGINT ignored in what they start in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class At(Hook):
    """Does something once, at a point of the hooks in an iteration."""

    priority = 'NORMAL'

    def __init__(self, point: str, iteration: int, action: Callable[[], Any]) -> None:
        def act(runner, *_, **__) -> None:
            if runner.iter == iteration and not self.done:
                self.done = True
                action()

        self.done = False
        setattr(self, point, act)

    def get_triggered_stages(self) -> list[str]:
        return []


def train(folder: Path, *hooks: Hook, **options: Any) -> dict[str, str]:
    """Train the tiny run with more hooks; return its digest."""
    runner = tiny.tiny_runner(folder, **OPTIONS | options)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return tiny.digest(runner)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def _iteration(folder: Path) -> int:
    """The iteration of the newest checkpoint, and that nothing is half-written beside it."""
    saved, passed_over = newest_intact(folder)
    assert not passed_over
    assert not list(folder.glob('.*'))
    assert (folder / 'last_checkpoint').read_text() == str(saved.path)
    return saved.iteration


@pytest.mark.parametrize('number', CODES)
@pytest.mark.parametrize(
    ('point', 'iteration', 'saved', 'name'),
    [
        ('before_train_iter', 0, 1, 'iter_1.pth'),
        ('before_train_iter', 3, 4, 'iter_4.pth'),
        ('after_train_iter', 3, 4, 'iter_4.pth'),
        ('before_train_iter', 5, 6, 'iter_6.pth'),
        ('after_train_epoch', 6, 6, 'epoch_1.pth'),
        ('after_val_iter', 6, 6, 'epoch_1.pth'),
        ('before_train_iter', 11, 12, 'iter_12.pth'),
    ],
)
def test_the_step_is_finished_and_saved(runs, number, point, iteration, saved, name):
    hook = At(point, iteration, lambda: send(number))
    child = tiny.fork(runs / 'result', train, runs / 'run', hook)
    assert child.wait() == CODES[number]
    assert _iteration(runs / 'run') == saved
    assert Path((runs / 'run/last_checkpoint').read_text()).name == name


def test_before_the_first_step_there_is_nothing_to_save(runs):
    def stopped() -> None:
        with preemption.watching_signals():
            send()
            train(runs / 'run')

    child = tiny.fork(runs / 'result', stopped)
    assert child.wait() == preemption.EXIT_CODE
    assert newest_intact(runs / 'run') == (None, [])


def test_while_saving_one_checkpoint_is_enough(runs):
    def stopped() -> None:
        train(runs / 'run', At('before_save_checkpoint', 5, send), loop='iter')

    assert tiny.fork(runs / 'result', stopped).wait() == preemption.EXIT_CODE
    assert [path.name for path in (runs / 'run').glob('*.pth')] == ['iter_6.pth']


def test_an_average_under_validation_is_not_saved_as_the_weights(runs):
    # Saved every other epoch, so that the validation after the first has no checkpoint.
    options = dict(ema=True, checkpoint=OPTIONS['checkpoint'] | dict(interval=2))

    def stopped() -> None:
        def keep(runner, *_, **__) -> None:
            if runner.iter == 5:
                [ema] = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
                torch.save(
                    [runner.model.state_dict(), ema.ema_model.module.state_dict()], runs / 'w'
                )

        hook = At('after_train_iter', 5, lambda: None)
        hook.after_train_iter, hook.priority = keep, 'LOWEST'
        train(runs / 'run', hook, At('before_val_iter', 6, send), **options)

    assert tiny.fork(runs / 'result', stopped).wait() == preemption.EXIT_CODE
    model, average = torch.load(runs / 'w')
    checkpoint = torch.load(runs / 'run/iter_6.pth', weights_only=False)
    saved = {k.removeprefix('module.'): v for k, v in checkpoint['ema_state_dict'].items()}
    # mmengine puts the average in the place of the weights, and the weights in its own.
    for name, parameter in model.items():
        if name.endswith(('weight', 'bias')):
            assert torch.equal(saved[name], parameter), name
            assert torch.equal(checkpoint['state_dict'][name], average[name]), name


def test_a_second_signal_exits_at_once(runs, monkeypatch):
    monkeypatch.setattr(preemption, '_ECHO', 1.0)

    def stopped() -> None:
        def twice() -> None:
            send(signal.SIGTERM)
            send(signal.SIGUSR1)  # an echo of the first
            begin = time.monotonic()
            while time.monotonic() - begin < preemption._ECHO + 0.05:
                pass
            (runs / 'echo').touch()
            send(signal.SIGUSR1)
            (runs / 'alive').touch()

        train(runs / 'run', At('before_train_iter', 3, twice))

    assert tiny.fork(runs / 'result', stopped).wait() == 128 + signal.SIGUSR1
    assert (runs / 'echo').exists()
    assert not (runs / 'alive').exists()


def test_a_second_interrupt_exits_at_once(runs):
    def stopped() -> None:
        def twice() -> None:
            send(signal.SIGINT)
            send(signal.SIGINT)  # as timeout(1) does, to a process and to its group
            begin = time.monotonic()
            while time.monotonic() - begin < preemption._ECHO_ALONE + 0.05:
                pass
            (runs / 'echo').touch()
            send(signal.SIGINT)
            (runs / 'alive').touch()

        train(runs / 'run', At('before_train_iter', 3, twice))

    assert tiny.fork(runs / 'result', stopped).wait() == 130
    assert (runs / 'echo').exists()
    assert not (runs / 'alive').exists()


@pytest.mark.parametrize('point', ['before_train', 'after_train'])
def test_ctrl_c_is_a_keyboard_interrupt_where_there_is_nothing_to_save(runs, point):
    def stopped() -> None:
        runner = tiny.tiny_runner(runs / 'run', **OPTIONS)
        hook = At(point, 12 if point == 'after_train' else 0, lambda: send(signal.SIGINT))
        # After the hook that leads to an end has ended; before it has begun.
        runner.register_hook(hook, 'VERY_LOW' if point == 'before_train' else 'LOWEST')
        with pytest.raises(KeyboardInterrupt):
            runner.train()

    tiny.fork(runs / 'result', stopped).result()


def test_an_ignored_ctrl_c_stays_ignored(runs):
    def undisturbed() -> dict[str, str]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return train(runs / 'run', At('before_train_iter', 3, lambda: send(signal.SIGINT)))

    tiny.fork(runs / 'result', undisturbed).result()
    assert _iteration(runs / 'run') == 12


def test_ctrl_c_says_what_it_does_and_what_comes_next(runs):
    def stopped() -> None:
        with open(runs / 'stderr', 'w') as file:
            os.dup2(file.fileno(), 2)
        runner = tiny.tiny_runner(runs / 'run', workers=2, **OPTIONS)
        runner.register_hook(At('before_train_iter', 3, interrupt_group))
        runner.train()

    def interrupt_group() -> None:
        os.setpgid(0, 0)
        tiny.fork(runs / 'sender', _interrupt_as_a_terminal, os.getpid()).result()

    assert tiny.fork(runs / 'result', stopped).wait() == 130
    said = (runs / 'stderr').read_text()
    assert said == '\nCtrl-C: the run saves and ends; once more ends it without saving\n'
    [log] = (runs / 'run').glob('*/*.log')
    assert 'Ctrl-C: the run ends after iteration 4; a checkpoint was saved.' in log.read_text()
    assert 'Resume with --resume (exit code 130)' in log.read_text()


def _interrupt_as_a_terminal(pid: int) -> None:
    """Send SIGINT to a process and its children, as to a group; not as their parent."""
    for each in [pid, *launching.children(pid)]:
        if each != os.getpid():
            os.kill(each, signal.SIGINT)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_workers_survive_a_signal_to_the_whole_group(runs, number):
    def stopped() -> None:
        os.setpgid(0, 0)

        def group() -> None:
            assert len(launching.children(os.getpid())) == 2
            # Not from this process, whose word the workers take.
            tiny.fork(runs / 'sender', os.killpg, os.getpgid(0), number).result()

        # The step in hand needs batches that the workers have not made yet.
        cfg = tiny.tiny_config(runs / 'run', workers=2, **OPTIONS | dict(hooks=[]))
        cfg.default_hooks.preemption = None
        runner = tiny.build_runner(cfg)
        runner.register_hook(At('before_train_iter', 1, group))
        runner.train()

    child = tiny.fork(runs / 'result', stopped)
    child.result()
    assert _iteration(runs / 'run') == 12


def test_a_worker_ends_when_its_parent_says_so(runs):
    def parent() -> int:
        with preemption.watching_signals():
            child = tiny.fork(runs / 'sleeper', signal.pause)
            os.kill(child.pid, signal.SIGTERM)
            return child.wait()

    assert tiny.fork(runs / 'result', parent).result() == 0


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_after_the_training_kills_nothing(runs, number):
    """Such as that before a time limit, while a tool that has held signals back ends."""

    def tool() -> str:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        # As gloo's do, it takes the signals that the main thread blocks.
        thread = threading.Thread(target=threading.Event().wait, daemon=True)
        train(runs / 'run', At('before_train_iter', 3, thread.start))
        send(number)
        return 'ended'

    assert tiny.fork(runs / 'result', tool).result() == 'ended'


class Large(torch.utils.data.Dataset):
    """Samples that a pipe can't hold."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> bytes:
        return bytes(1 << 20)


def test_workers_end_with_a_killed_parent(runs, monkeypatch):
    monkeypatch.setattr(preemption, '_LOOKS', 0.1)
    read, write = os.pipe()

    def parent() -> None:
        with preemption.watching_signals():
            batches = iter(torch.utils.data.DataLoader(Large(), batch_size=None, num_workers=2))
            next(batches)
            os.write(write, b'.')
            signal.pause()

    child = tiny.fork(runs / 'result', parent)
    os.close(write)
    assert os.read(read, 1)
    workers = launching.children(child.pid)
    assert len(workers) == 2
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    # Each of them, and nobody else by now, holds the pipe's other end.
    ready, _, _ = select.select([read], [], [], 60)
    assert ready, f'workers {workers} outlive their parent'
    assert os.read(read, 1) == b''
    os.close(read)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('point', ['before_train_iter', 'before_val_iter'])
def test_all_ranks_end_after_the_same_step(runs, rank, point, number):
    def stopped() -> None:
        mine = os.environ['RANK'] == str(rank)
        hook = At(point, 6, lambda: send(number) if mine else None)
        options = dict(checkpoint=OPTIONS['checkpoint'] | dict(interval=2))
        train(runs / 'run', hook, launcher='pytorch', ranks=2, **options)

    codes = [child.wait() for child in tiny.fork_ranks(2, runs / 'ranks', stopped)]
    assert codes == [CODES[number]] * 2
    assert _iteration(runs / 'run') == (7 if 'train' in point else 6)


def test_ranks_with_fewer_validation_batches_are_not_waited_for(runs):
    def train_unevenly() -> None:
        cfg = tiny.tiny_config(runs / 'run', launcher='pytorch', ranks=2, **OPTIONS)
        cfg.val_dataloader.sampler.round_up = False
        cfg.val_dataloader.batch_size = 1
        cfg.val_dataloader.dataset.length = 3
        tiny.build_runner(cfg).train()

    for child in tiny.fork_ranks(2, runs / 'ranks', train_unevenly):
        child.result()


@pytest.mark.parametrize('number', CODES)
def test_a_launcher_finds_the_code(runs, monkeypatch, number):
    monkeypatch.setenv('PREEMPTED_FILE', str(runs / 'mark'))
    hook = At('before_train_iter', 3, lambda: send(number))
    child = tiny.fork(runs / 'result', train, runs / 'run', hook)
    assert child.wait() == 0
    assert int((runs / 'mark').read_text()) == CODES[number]
    assert _iteration(runs / 'run') == 4


def test_without_its_mark_the_code_is_the_process_own(runs, monkeypatch):
    monkeypatch.setenv('PREEMPTED_FILE', str(runs / 'missing/mark'))
    hook = At('before_train_iter', 3, send)
    child = tiny.fork(runs / 'result', train, runs / 'run', hook)
    assert child.wait() == preemption.EXIT_CODE
    assert _iteration(runs / 'run') == 4


@pytest.mark.parametrize(
    'number', [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EFBIG, errno.EROFS]
)
@pytest.mark.parametrize('ranks', [1, 2])
def test_a_save_that_fails_is_said_and_is_no_success(runs, monkeypatch, number, ranks):
    def stopped() -> None:
        def refuse(*_) -> None:
            raise OSError(number, os.strerror(number))

        def stop() -> None:
            monkeypatch.setattr(os, 'replace', refuse)
            send()

        several = dict(launcher='pytorch', ranks=2) if ranks > 1 else {}
        train(runs / 'run', At('before_train_iter', 8, stop), **several)

    codes = [child.wait() for child in tiny.fork_ranks(ranks, runs / 'ranks', stopped)]
    assert codes == [preemption.EXIT_CODE] * ranks
    assert _iteration(runs / 'run') == 6
    text = next((runs / 'run').glob('*/*.log')).read_text()
    assert f'iter_9.pth could not be saved ([Errno {number}]' in text
    assert 'NO checkpoint could be saved' in text


@pytest.mark.parametrize(
    'numbers', [(signal.SIGTERM, signal.SIGUSR1), (signal.SIGUSR1, signal.SIGTERM)]
)
def test_sigterm_counts_whatever_came_with_it(runs, monkeypatch, numbers):
    """The script passes on SIGTERM as SIGUSR1, which may come before Slurm's own."""
    monkeypatch.setenv('SLURM_JOB_ID', '7')
    hook = At('before_train_iter', 3, lambda: [send(number) for number in numbers])
    assert tiny.fork(runs / 'result', train, runs / 'run', hook).wait() == 143
    assert _iteration(runs / 'run') == 4


@pytest.mark.parametrize(
    ('numbers', 'code'),
    [
        ([signal.SIGTERM, 0], 143),
        ([signal.SIGUSR1, 0], 75),
        ([0, signal.SIGUSR1], 75),
        # Of a job that is cancelled at its time limit.
        ([signal.SIGUSR1, signal.SIGTERM], 143),
        ([signal.SIGINT, 0], 130),
    ],
)
def test_under_slurm_only_sigusr1_asks_to_be_started_again(runs, monkeypatch, numbers, code):
    monkeypatch.setenv('SLURM_JOB_ID', '7')

    def stopped() -> None:
        number = numbers[int(os.environ['RANK'])]
        hook = At('before_train_iter', 3, lambda: send(number) if number else None)
        train(runs / 'run', hook, launcher='pytorch', ranks=2)

    codes = [child.wait() for child in tiny.fork_ranks(2, runs / 'ranks', stopped)]
    assert codes == [code] * 2
    assert _iteration(runs / 'run') == 4


def test_a_test_is_not_a_training(runs):
    """A validation alone keeps the usual answer to signals."""

    def validate() -> None:
        runner = tiny.tiny_runner(runs / 'run', **OPTIONS)
        runner.register_hook(At('before_val_iter', 0, send))
        runner.val()

    assert tiny.fork(runs / 'result', validate).wait() == -signal.SIGTERM


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
@pytest.mark.parametrize('point', ['before_train_iter', 'before_val_iter'])
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(runs, loop, point):
    options = dict(loop=loop, ema=True, accumulate=2)
    whole = tiny.fork(runs / 'a', train, runs / 'whole', **options).result()
    child = tiny.fork(runs / 'b', train, runs / 'run', At(point, 6, send), **options)
    assert child.wait() == preemption.EXIT_CODE
    resumed = tiny.fork(runs / 'c', train, runs / 'run', resume=True, **options).result()
    assert resumed == whole


@pytest.mark.slow
@pytest.mark.parametrize('whom', ['script', 'group', 'one rank'])
@pytest.mark.parametrize('number', CODES)
def test_launch_ends_with_the_code(tmp_path, free_port, whom, number):
    options = dict(ranks=2, steps=3000, checkpoint=OPTIONS['checkpoint'])
    with launching.launched(tmp_path, 2, free_port, options, MAX_RESTARTS='2') as process:
        log = tmp_path / 'output'
        launching.wait_for(lambda: len(launching.progress(tmp_path)) > 3, process, log)
        if whom == 'script':
            process.send_signal(number)
        elif whom == 'group':
            os.killpg(process.pid, number)
        else:
            os.kill(launching.ranks(process)[1], number)
        assert process.wait(launching.DEADLINE) == CODES[number], log.read_text()[-3000:]
    done = [launching.progress(tmp_path, rank) for rank in (0, 1)]
    assert 'Traceback' not in log.read_text()
    # Nobody started again, and both ended after the same step.
    assert done[0] == done[1] == list(range(1, len(done[0]) + 1))
    assert _iteration(tmp_path / 'run') == len(done[0])
    assert not list(tmp_path.glob('.preempted.*'))


@pytest.mark.slow
def test_launch_gives_a_failure_its_own_code(tmp_path, free_port):
    options = dict(ranks=2, steps=6, checkpoint=dict(type='NoSuchHook'))
    with launching.launched(tmp_path, 2, free_port, options) as process:
        assert process.wait(launching.DEADLINE) == 1


SRUN = """#!/bin/bash
# Ends as {how} says, once it is told to.
trap 'stopped=yes' USR1
# Opened once: a bash that is interrupted while it reads a substitution may lose the signal.
exec {{clock}}<> <(:)
touch started
until [ -n "$stopped" ]; do read -r -t 0.01 -u "$clock" || true; done
{how}
"""
SCONTROL = '#!/bin/sh\n[ "$1" = show ] || echo "$*" >> told\n'
MARK = 'echo 075 > "$PREEMPTED_FILE"'


@pytest.mark.parametrize(
    ('number', 'how', 'job', 'code', 'told'),
    [
        (signal.SIGUSR1, MARK, '7', 75, 'requeue 7\n'),
        (signal.SIGUSR1, MARK, '', 75, ''),
        # As scancel does. srun would kill its tasks at a SIGTERM, so they are told by SIGUSR1.
        (signal.SIGTERM, MARK, '7', 143, ''),
        (signal.SIGTERM, 'echo 143 > "$PREEMPTED_FILE"', '7', 143, ''),
        (signal.SIGTERM, MARK, '', 75, ''),
        (signal.SIGUSR1, 'echo 130 > "$PREEMPTED_FILE"', '7', 130, ''),
        (signal.SIGUSR1, 'exit 3', '7', 3, ''),
        (signal.SIGUSR1, 'true', '7', 0, ''),
    ],
)
def test_slurms_script_queues_the_job_again(root, tmp_path, number, how, job, code, told):
    script = _started_under_slurm(root / 'tools/slurm_train.sh', tmp_path, how, job)
    try:
        launching.wait_for((tmp_path / 'started').exists, script)
        script.send_signal(number)
        assert script.wait(launching.DEADLINE) == code
    finally:
        script.kill()
    assert (tmp_path / 'told').read_text() == told
    assert not list(tmp_path.glob('.preempted.*'))


def _started_under_slurm(script: Path, folder: Path, how: str, job: str) -> subprocess.Popen:
    """Start a script where srun and scontrol are ours."""
    commands = {'srun': SRUN.format(how=how), 'scontrol': SCONTROL}
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / 'told').touch()
    environment = os.environ | {'PATH': f'{folder}:{os.environ["PATH"]}', 'SLURM_JOB_ID': job}
    return subprocess.Popen(
        [script, 'partition', 'name', 'config.py', '--resume'], cwd=folder, env=environment
    )
