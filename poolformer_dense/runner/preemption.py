"""Preemption and Ctrl-C: save a checkpoint and end on SIGTERM, SIGUSR1 or SIGINT."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from mmengine.dist import is_distributed
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import first_process, told_launcher
from .checkpoint_hook import AtomicCheckpointHook
from .ranks import greatest, least

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# EX_TEMPFAIL of sysexits.h: "try again later".
EXIT_CODE = 75
# A launcher passes on a signal that its group has received too: those are one. On a busy node a
# launcher takes seconds for it, but who presses Ctrl-C twice takes less.
_ECHO = 5.0  # seconds
_ECHO_OF_INTERRUPT = 1.0
# Without a launcher only programs such as timeout send Ctrl-C's signal twice, without a pause.
_ECHO_ALONE = 0.2
# How often forked children look whether their parent is still there.
_LOOKS = 5.0  # seconds


class Preempted(SystemExit):
    """Raised to end a preempted run, with its exit code."""


def exit_code(cause: signal.Signals) -> int:
    """The code that a run ends with after a signal: whether to start it again.

    It is 75, to be started again, after SIGTERM and SIGUSR1; but after Slurm's SIGTERM it is 143.
    scancel sends it, and it must not start the job again; so does a preemption, after which Slurm
    itself queues the job again. Only SIGUSR1, for which a batch script asks before its time limit,
    asks for that. After Ctrl-C the code is 130.
    """
    slurm = 'SLURM_JOB_ID' in os.environ
    if cause == signal.SIGINT or (cause == signal.SIGTERM and slurm):
        return 128 + cause
    return EXIT_CODE


class _Watch:
    """What signals this process has received."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.can_save = False
        self.received: signal.Signals | None = None
        self._received_at = 0.0

    def note(self, number: int, frame: FrameType | None = None) -> None:
        if self.pid != os.getpid():
            return
        now = time.monotonic()
        if self.received is not None:
            if now - self._received_at > self._echo():
                os._exit(128 + number)
            if (self.received, number) == (signal.SIGUSR1, signal.SIGTERM):
                # Of signals that arrive during one operation Python handles the lowest first, and
                # tools/slurm_launch.sh passes on SIGTERM as SIGUSR1.
                self.received = signal.SIGTERM
            return
        if number == signal.SIGINT:
            if not self.can_save:
                signal.default_int_handler(number, frame)
            if first_process():
                os.write(2, b'\nCtrl-C: the run saves and ends; once more ends it without saving\n')
        self.received, self._received_at = signal.Signals(number), now

    def _echo(self) -> float:
        """For how long further signals belong to the one received."""
        if self.received != signal.SIGINT:
            return _ECHO
        return _ECHO_OF_INTERRUPT if is_distributed() else _ECHO_ALONE


_watch = _Watch()
_masks = threading.local()
_at_fork = threading.Lock()  # taken for good once the functions below are registered


@contextmanager
def watching_signals() -> Iterator[None]:
    """Within the block signals ask for an end, to which `PreemptionHook` leads.

    These are SIGTERM, SIGUSR1 and, during the training itself, SIGINT, which stays a
    KeyboardInterrupt before and after it; where a shell has it ignored, it stays ignored.

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
    _watch.pid, _watch.received, _watch.can_save = os.getpid(), None, False
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    watched = [number for number in SIGNALS if number != signal.SIGINT or not ignored]
    before = {number: signal.signal(number, _watch.note) for number in watched}
    # Those that came while a tool held them back arrive now.
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        for number, handler in before.items():
            # To a tool that held it back it is of no use now; it must not kill what is complete.
            # Blocked, it would be taken by a thread of a library, and kill by that.
            signal.signal(number, signal.SIG_IGN if number in mask else handler)
        _watch.pid = None


def requested() -> signal.Signals | None:
    """The signal that asks this process to end, if one came."""
    return _watch.received if _watch.pid == os.getpid() else None


def _requested_anywhere() -> signal.Signals | None:
    """The signal that asks any rank to end; all ranks must call it."""
    number = greatest(requested() or 0)
    return signal.Signals(number) if number else None


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
    """Ends a training that got a signal on any rank: the step, a save, and `exit_code`.

    The signals are SIGTERM, SIGUSR1 and SIGINT (Ctrl-C).

    All ranks end after the same iteration. In a validation they end after the current batch,
    and the resumed run repeats the validation. Before the first iteration there is nothing to save.

    If the environment variable ``PREEMPTED_FILE`` is set, the code goes into that file and the
    process ends with 0, see `told_launcher`.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._training = False
        self._common_batches = 0

    def before_train(self, runner: Runner) -> None:
        self._training = _watch.can_save = True
        if cause := _requested_anywhere():
            self._leave(runner, cause, 'before the first iteration; there is nothing to save')

    def after_train(self, runner: Runner) -> None:
        self._training = _watch.can_save = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if cause := _requested_anywhere():
            self._save_and_leave(runner, cause, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        if self._training:
            self._common_batches = least(len(runner.val_dataloader))

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self._training or batch_idx >= self._common_batches:
            return
        if cause := _requested_anywhere():
            # During a validation the model holds the averaged weights: swap them back.
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)
            self._save_and_leave(runner, cause, runner.iter)

    def _save_and_leave(self, runner: Runner, cause: signal.Signals, iteration: int) -> NoReturn:
        savers = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
        saves = [hook.save_now(runner, iteration) for hook in savers]
        outcome = 'a checkpoint was saved' if any(saves) else 'NO checkpoint could be saved'
        self._leave(runner, cause, f'after iteration {iteration}; {outcome}')

    def _leave(self, runner: Runner, cause: signal.Signals, when: str) -> NoReturn:
        code = exit_code(cause)
        name = 'Ctrl-C' if cause == signal.SIGINT else cause.name
        runner.logger.warning(
            f'{name}: the run ends {when}. Resume with --resume (exit code {code}).'
        )
        raise Preempted(told_launcher(code))
