"""Preemption: save a checkpoint and end on SIGTERM or SIGUSR1."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .checkpoint_hook import AtomicCheckpointHook
from .ranks import any_rank, least

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# EX_TEMPFAIL of sysexits.h: "try again later".
EXIT_CODE = 75
# A launcher passes on a signal that its group has received too: those are one.
_ECHO = 1.0  # seconds
# How often forked children look whether their parent is still there.
_LOOKS = 5.0  # seconds


class Preempted(SystemExit):
    """Raised to end a preempted run, with its exit code."""


class _Watch:
    """What signals this process has received."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.received: signal.Signals | None = None
        self._received_at = 0.0

    def note(self, number: int, frame: FrameType | None = None) -> None:
        if self.pid != os.getpid():
            return
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), now
        elif now - self._received_at > _ECHO:
            os._exit(128 + number)


_watch = _Watch()
_masks = threading.local()
_at_fork = threading.Lock()  # taken for good once the functions below are registered


@contextmanager
def watching_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGUSR1 ask for an end, to which `PreemptionHook` leads.

    A second signal exits at once, with 128 plus its number. Forked children, such as the data
    loader's workers, obey these signals only if this process sends them, and end when it has died.
    In a process that watches already, and outside the main thread, the block changes nothing.
    """
    if _watch.pid == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    if _at_fork.acquire(blocking=False):
        os.register_at_fork(
            before=_hold_signals,
            after_in_parent=_release_signals,
            after_in_child=_obey_parent_alone,
        )
    _watch.pid, _watch.received = os.getpid(), None
    before = {number: signal.signal(number, _watch.note) for number in SIGNALS}
    # Those that came while a tool held them back arrive now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _watch.pid = None


def requested() -> signal.Signals | None:
    """The signal that asks this process to end, if one came."""
    return _watch.received if _watch.pid == os.getpid() else None


def _hold_signals() -> None:
    # Blocked until the child waits for them: an earlier signal would be lost.
    watched = _watch.pid == os.getpid()
    _masks.before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if watched else None


def _release_signals() -> None:
    if _masks.before_fork is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before_fork)


def _obey_parent_alone() -> None:
    # Only sigtimedwait reports the sender. torch's handler would end a worker that receives its
    # group's signal, and with it the current step.
    if _masks.before_fork is not None:
        threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while True:
        received = signal.sigtimedwait(SIGNALS, _LOOKS)
        if received is None:
            if os.getppid() != parent:
                # Killed. A worker could wait forever to deliver a batch, and keep its memory.
                os._exit(1)
        elif _watch.pid == os.getpid():
            _watch.note(received.si_signo)
        elif received.si_pid == parent and received.si_signo == signal.SIGTERM:
            # As torch's workers do: for any other code its handler reports a dead worker.
            os._exit(0)


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Ends a training that got SIGTERM or SIGUSR1 on any rank: the step, a save, exit code 75.

    All ranks end after the same iteration. In a validation they end after the current batch,
    and the resumed run repeats the validation. Before the first iteration there is nothing to save.

    The exit code is 75, and 0 if the environment variable ``PREEMPTED_FILE`` is set: the launcher
    that set it finds that file and answers with 75. torchrun and srun take any other code of a
    process for a failure and end or restart the others.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._training = False
        self._common_batches = 0

    def before_train(self, runner: Runner) -> None:
        self._training = True
        if any_rank(requested() is not None):
            self._leave(runner, 'before the first iteration; there is nothing to save')

    def after_train(self, runner: Runner) -> None:
        self._training = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if any_rank(requested() is not None):
            self._save_and_leave(runner, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        if self._training:
            self._common_batches = least(len(runner.val_dataloader))

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self._training or batch_idx >= self._common_batches:
            return
        if any_rank(requested() is not None):
            # During a validation the model holds the averaged weights: swap them back.
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)
            self._save_and_leave(runner, runner.iter)

    def _save_and_leave(self, runner: Runner, iteration: int) -> NoReturn:
        savers = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
        saves = [hook.save_now(runner, iteration) for hook in savers]
        outcome = 'a checkpoint was saved' if any(saves) else 'NO checkpoint could be saved'
        self._leave(runner, f'after iteration {iteration}; {outcome}')

    def _leave(self, runner: Runner, when: str) -> NoReturn:
        cause = requested()
        runner.logger.warning(
            f'{cause.name if cause else "A signal to another rank"}: the run ends {when}. '
            f'Resume with --resume (exit code {EXIT_CODE}).'
        )
        code = EXIT_CODE
        mark = os.environ.get('PREEMPTED_FILE')
        if mark:
            Path(mark).touch()
            code = 0
        raise Preempted(code)
