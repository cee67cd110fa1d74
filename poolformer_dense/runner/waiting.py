"""Each rank says for whom it waits, and ends a wait that is in vain.

The main thread notes what it is doing, by `enter` and `busy`. Another thread tells the other ranks,
and looks at what these do when it lasts.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from ..terminal import tell
from .board import Board, BoardClient, Sign, this_host

REPORT_AFTER = 120.0  # seconds
GIVE_UP_AFTER = 1800.0  # seconds
_LONGEST_PERIOD = 5.0  # seconds between two signs
_NAMED = 5  # ranks in a message
_COLLECTIVES = os.path.join('torch', 'distributed', '')
_BACKWARD = os.path.join('torch', 'autograd', 'graph.py')
_WAITED_FOR = 'the others wait for it'
# Seconds that rank 0, which may hold torch's store, waits for the others to leave.
_LEAVING = 10.0
_RECORDING = 10.0  # seconds for NCCL's flight recorder to write
_MODES = dict(train='training', val='validation', test='test')
_AFTERWARDS = 'what follows the run'


@dataclass(frozen=True)
class Place:
    """What the main thread is doing.

    Attributes:
        count: How many places it has entered that all ranks enter.
        what: Its name.
        busy: Whether it may take long without being in vain.
        waits: Whether it may wait for the others without being in a call of torch.distributed.
        since: When it was entered.
    """

    count: int
    what: str
    busy: bool
    waits: bool
    since: float


class Watch:
    """Looks after one rank.

    Args:
        rank: Its number.
        size: How many there are.
        host: Rank 0's address, for messages.
        board: Where signs are exchanged.
        report_after: Seconds after which a wait is reported, and again each time they double.
        give_up_after: Seconds after which a wait ends the process, unless it is for a busy rank.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        host: str,
        board: Board | BoardClient,
        report_after: float = REPORT_AFTER,
        give_up_after: float = GIVE_UP_AFTER,
    ) -> None:
        self.place = Place(0, 'joining the run', False, True, time.monotonic())
        self._rank, self._size, self._host, self._board = rank, size, host, board
        self._report_after, self._give_up_after = report_after, give_up_after
        self._period = min(report_after / 4, give_up_after / 4, max(_LONGEST_PERIOD, size / 20))
        self._quiet = min(report_after, give_up_after) / 2
        self._answered = self._excused = time.monotonic()
        self._reported = 0.0
        self._name, self._pid = this_host()
        self.begun: set[str] = set()  # of training, validation and test
        self._main = threading.current_thread()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name='waiting', daemon=True)
        self._thread.start()

    def enter(self, what: str, busy: bool = False, waits: bool = False, same: bool = True) -> None:
        """Note what the main thread does from here on.

        Args:
            what: Its name.
            busy: Whether it may take long without being in vain.
            waits: As for `Place`.
            same: Whether all ranks enter it, in the same order.
        """
        self.place = Place(self.place.count + same, what, busy, waits, time.monotonic())

    def close(self, orderly: bool) -> None:
        """Tell the others that this rank is done; in an orderly end, rank 0 goes last."""
        self._leaving.set()
        self._thread.join(2 * self._period)
        self.enter('its end')
        try:
            signs = self._board.exchange(self._rank, self._sign(ended=True), True)
            deadline = time.monotonic() + _LEAVING
            while orderly and isinstance(self._board, Board) and time.monotonic() < deadline:
                if sum(sign.ended for sign in signs.values()) == self._size:
                    break
                time.sleep(0.02)
                signs = self._board.exchange(self._rank, self._sign(ended=True), True)
        except OSError:
            pass
        self._board.close()

    def _run(self) -> None:
        while not self._leaving.wait(self._period):
            place, sign = self.place, self._sign()
            waited = time.monotonic() - place.since
            waits = bool(place.waits or sign.call) and waited > self._period
            signs: dict[int, Sign] | None = None
            try:
                signs = self._board.exchange(self._rank, sign, waits)
                self._answered = time.monotonic()
            except (OSError, ValueError, TypeError):
                pass
            if self._leaving.is_set():
                return
            unanswered = time.monotonic() - self._answered
            if not waits:
                self._excused = time.monotonic()
            elif signs is not None:
                verdict = judge(self._rank, signs | {self._rank: sign}, self._size, self._quiet)
                self._tell(place, sign.call, *verdict)
            elif unanswered > self._quiet:
                silence = f'rank 0 on {self._host} has not answered for {_lasting(unanswered)}'
                silence += ' (the network between, or it is stopped)'
                self._tell(place, sign.call, silence, False)

    def _tell(self, place: Place, call: str, reason: str, excused: bool) -> None:
        """Report a wait when it is time to, and end the process when it is in vain."""
        now = time.monotonic()
        if excused:
            self._excused = now
        waited = now - place.since
        where = f'in {place.what}' + (f' ({call})' if call else '')
        if now - max(place.since, self._excused) >= self._give_up_after:
            tell(
                f'error: rank {self._rank} on {self._name} has waited for {_lasting(waited)} '
                f'{where}: {reason}. It gives up after env_cfg.dist_cfg.timeout='
                f'{self._give_up_after:g}; find the cause there, then resume with --resume'
            )
            _ask_flight_recorder(self._rank)
            os._exit(2)
        last = self._reported - place.since  # of this place, if positive
        if reason == _WAITED_FOR:
            return  # they say so
        if waited >= self._report_after and (last <= 0 or waited >= 2 * last):
            self._reported = now
            tell(
                f'rank {self._rank} on {self._name} has been waiting for {_lasting(waited)} '
                f'{where}: {reason}'
            )

    def _sign(self, ended: bool = False) -> Sign:
        place, call = self.place, _waiting_call(self._main)
        return Sign(
            host=self._name,
            pid=self._pid,
            count=place.count,
            place=place.what,
            call=call,
            busy=place.busy and not call,
            lasted=time.monotonic() - place.since,
            ended=ended,
        )


def judge(rank: int, signs: Mapping[int, Sign], size: int, quiet: float) -> tuple[str, bool]:
    """Say for whom a rank waits, and whether these do what may take long.

    Args:
        rank: Who waits.
        signs: What the ranks said last, itself among them.
        size: How many ranks there are.
        quiet: The age in seconds from which on a sign counts as the last one.
    """
    missing = [other for other in range(size) if other not in signs]
    if missing:
        plural = 's' * (len(missing) > 1)
        return f'rank{plural} {_listed(missing)} of {size} did not join', False
    own = signs[rank]
    others = {other: sign for other, sign in signs.items() if other != rank}
    gone = {o: s for o, s in others.items() if s.ended}
    if gone:
        return _each(gone, lambda sign: 'has ended'), False
    silent = {other: sign for other, sign in others.items() if sign.age > quiet}
    if silent:
        return _each(
            silent,
            lambda sign: (
                f'has given no sign of life for {_lasting(sign.age)} (stopped, killed or '
                f'cut off), the last in {sign.place}'
            ),
        ), False
    least = min((sign.count for sign in others.values()), default=own.count)
    first = {o: s for o, s in others.items() if s.count == least} if least < own.count else {}
    here = {o: s for o, s in others.items() if s.count == own.count}
    first = first or {o: s for o, s in here.items() if s.busy}
    first = first or {o: s for o, s in here.items() if not s.call}
    if first:
        return _each(
            first, lambda sign: f'has been in {sign.place} for {_lasting(sign.lasted + sign.age)}'
        ), any(sign.busy for sign in first.values())
    if not own.call:
        return _WAITED_FOR, own.busy
    return 'all the others have come as far; is the network between them at work?', own.busy


def _each(signs: Mapping[int, Sign], said: Callable[[Sign], str]) -> str:
    ranks = sorted(signs)
    parts = [
        f'rank {rank} on {signs[rank].host} (process {signs[rank].pid}) {said(signs[rank])}'
        for rank in ranks[:_NAMED]
    ]
    left = len(ranks) - _NAMED
    return '; '.join(parts) + (f'; and {left} more' if left > 0 else '')


def _listed(ranks: list[int]) -> str:
    listed = ', '.join(map(str, ranks[:_NAMED]))
    return listed + (f' and {len(ranks) - _NAMED} more' if len(ranks) > _NAMED else '')


def _lasting(seconds: float) -> str:
    return f'{seconds:.0f} s' if seconds >= 10 else f'{seconds:.1f} s'


def _waiting_call(thread: threading.Thread) -> str:
    """The function in which a thread is that waits for all ranks; empty if in none.

    That is one of torch.distributed, or backward, in which the gradients are reduced.
    """
    frame = sys._current_frames().get(thread.ident or 0)
    name = ''
    while frame is not None:
        path = frame.f_code.co_filename
        if path.endswith(_BACKWARD):
            name = 'backward'
        elif _COLLECTIVES in path and not path.endswith('logger.py'):
            name = frame.f_code.co_name
        frame = frame.f_back
    return name


def _ask_flight_recorder(rank: int) -> None:
    """Let NCCL write what it recorded, where torch's variables for that are set."""
    pipe = os.environ.get('TORCH_NCCL_DEBUG_INFO_PIPE_FILE')
    if not pipe:
        return
    try:
        # Without a reader, opening fails.
        end = os.open(f'{pipe}{rank}.pipe', os.O_WRONLY | os.O_NONBLOCK)
        os.write(end, b'1\n')
    except OSError as error:
        tell(f'the flight recorder of rank {rank} does not read its pipe ({error})')
    else:
        time.sleep(_RECORDING)


_watches: dict[int, Watch] = {}  # by the process, which may be forked


def start_watch(watch: Watch) -> None:
    """Make a watch the one of this process."""
    _watches[os.getpid()] = watch


def stop_watch() -> None:
    """End the watch of this process, if there is one."""
    watch = _watches.pop(os.getpid(), None)
    if watch is not None:
        watch.close(orderly=watch.place.what == _AFTERWARDS)


def enter(what: str, busy: bool = False) -> None:
    """Note what this process does from here on.

    Args:
        what: Its name; all ranks enter it, in the same order.
        busy: Whether it may take long without being in vain.
    """
    watch = _watches.get(os.getpid())
    if watch is not None:
        watch.enter(what, busy)


@contextmanager
def main_busy(what: str) -> Iterator[None]:
    """Within the block the main rank alone works, for as long as it needs; all must enter it."""
    watch = _watches.get(os.getpid())
    if watch is None:
        yield
        return
    before = watch.place
    watch.enter(what, busy=is_main_process())
    try:
        yield
    finally:
        watch.enter(before.what, before.busy, before.waits)


def enter_hooks(runner: Runner, name: str, batch: int = 0) -> None:
    """Note where a run is: at the hooks' method that is about to be called."""
    watch = _watches.get(os.getpid())
    when, _, what = name.partition('_')
    mode = what.removesuffix('_iter').removesuffix('_epoch')
    if watch is None or mode not in _MODES or when not in ('before', 'after'):
        return
    if not what.endswith('_iter'):
        watch.enter(f'the hooks {name}')
    elif when == 'before':
        training = mode == 'train'
        here = f'iteration {runner.iter + 1}' if training else f'{_MODES[mode]} batch {batch + 1}'
        compiles = mode not in watch.begun and bool(runner.cfg.get('compile'))
        watch.enter(here, busy=compiles, waits=True, same=training)
        watch.begun.add(mode)


def leave_hooks(runner: Runner, name: str, batch: int = 0) -> None:
    """Note where a run is: behind the hooks' method that was called."""
    watch = _watches.get(os.getpid())
    if watch is None:
        return
    if name == 'after_train_iter':
        watch.enter(f'loading data after iteration {runner.iter + 1}')
    elif name in ('after_val_iter', 'after_test_iter'):
        loader = runner.val_dataloader if 'val' in name else runner.test_dataloader
        if batch + 1 >= len(loader):
            watch.enter('the evaluation', busy=is_main_process())
    elif name == 'after_run':
        watch.enter(_AFTERWARDS, busy=True)
