"""A dead or stuck data loading worker ends the run within a minute, in one line."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

from mmengine.registry import FUNCTIONS
from mmengine.structures import BaseDataElement
from torch import Tensor, UntypedStorage
from torch.utils.data import DataLoader, get_worker_info

from ..errors import RankError, UserError
from ..shared_memory import FOLDER, REMEDY, megabytes, room_for_batches

# Seconds without a batch after which a run stops; with the time to stop, within a minute.
TIMEOUT = 45
_GRACE = 5.0  # more, before a worker is killed
_gave_up = threading.Event()
# What to do in the end, after a training and after an evaluation.
_RESUME, _REPEAT = 'then resume with --resume', 'then run it again'
# What the backend says when the system has given up a connection.
_LOST = r'Connection timed out|No route to host|is unreachable|Broken pipe'
_PAGE = 4096
# Free shared memory below which a batch that does not come may have found no room.
_SCANT = 16 << 20


# What torch refuses of a loader without workers.
_OF_WORKERS = ('persistent_workers', 'prefetch_factor', 'multiprocessing_context')


def fit_workers(dataloader: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataloader's config with what suits its number of workers.

    With workers it gets a timeout if none is set: torch waits forever by default. Slow storage may
    need more for its first batches: ``--cfg-options train_dataloader.timeout=300``; 0 is torch's
    default again. With ``num_workers=0`` it loses the settings of workers, which torch refuses.
    """
    if dataloader.get('num_workers', 0) > 0:
        return dict(timeout=TIMEOUT) | dict(dataloader)
    return {key: value for key, value in dataloader.items() if key not in _OF_WORKERS}


def with_room(dataloader: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataloader's config whose workers raise where a batch finds no shared memory.

    torch loses it in a thread of the worker, and the run would wait for it.
    """
    config = dict(dataloader)
    collate = config.get('collate_fn', dict(type='pseudo_collate'))
    if isinstance(collate, Mapping):  # read as mmengine does
        options = dict(collate)
        kind = options.pop('type')
        collate = partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind, **options)
    if config.get('num_workers', 0) > 0 and callable(collate):
        config['collate_fn'] = CollateWithRoom(collate)
    return config


class CollateWithRoom:
    """Collates a batch and sees, in a worker, that there is shared memory for it.

    Args:
        collate: What makes the batch.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        room = room_for_batches() if get_worker_info() is not None else None
        if room is not None and (size := _shared_bytes(batch)) > room.free:
            raise RankError(
                f'shared memory is full: a batch takes {megabytes(size)}, and {FOLDER} has {room}; '
                f'{REMEDY}'
            )
        return batch


def _shared_bytes(batch: Any) -> int:
    """How many bytes of a batch go through shared memory: those of its tensors, in pages."""
    sizes = {storage.data_ptr(): storage.nbytes() for storage in _storages(batch)}
    return sum(-(-size // _PAGE) * _PAGE for size in sizes.values())


def _storages(batch: Any) -> Iterator[UntypedStorage]:
    if isinstance(batch, Tensor):
        if not batch.is_shared():
            yield batch.untyped_storage()
    elif isinstance(batch, (Mapping, BaseDataElement)):
        for value in batch.values():
            yield from _storages(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _storages(value)


def watched(batches: Iterator[Any], timeout: float) -> Iterator[Any]:
    """Yield a loader's batches, and kill its workers if one does not come.

    torch's own timeout does not cover the last part, in which it fetches a batch's memory from the
    worker: a stopped worker process blocks it forever.

    Args:
        batches: The iterator of a DataLoader.
        timeout: The loader's, in seconds; 0 for none.
    """
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    end = object()
    batch = None
    while batch is not end:
        timer = threading.Timer(timeout + _GRACE, _give_up)
        timer.daemon = True
        if timeout:
            timer.start()
        try:
            batch = next(batches, end)
        except (OSError, EOFError, RuntimeError) as error:
            # torch tells of a death only once, and then that may be lost in a finalizer; where it
            # finds a worker dead before the system says so, it does not tell the signal
            _raise_if_dead(workers, error)
            raise
        finally:
            timer.cancel()
        if batch is not end:
            yield batch


class WatchedLoader(DataLoader):
    """torch's DataLoader, whose workers are killed if a batch does not come; see `watched`."""

    def __iter__(self) -> Any:
        return watched(super().__iter__(), self.timeout)


@contextmanager
def clear_errors(split: str = 'train', training: bool = True) -> Iterator[None]:
    """Turn what torch says of dead and stuck workers, and of other processes, into one line.

    Put it around the whole run: torch reports a dead worker wherever the process is just then.
    After such an error the process should end: its workers are killed.

    Args:
        split: Whose data are loaded: train, val or test.
        training: Whether a training can be resumed.

    Raises:
        RankError: A worker died or is stuck, or another process of the run has ended.
        UserError: A worker raised one.
    """
    _gave_up.clear()
    try:
        try:
            yield
        except UserError:
            raise
        except Exception:
            # What a dying worker breaks, a connection or half an object, may come before its death,
            # of which torch's handler of signals tells: it raises in here.
            time.sleep(1)
            raise
    except Exception as error:
        main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
        clear = _explain(error, split, _RESUME if training else _REPEAT)
        if clear is None:
            if handler is not None:
                signal.signal(signal.SIGCHLD, handler)
            raise
        _kill_workers()
        raise clear from error


def _explain(error: Exception, split: str, again: str) -> UserError | None:
    text, loader = str(error), f'{split}_dataloader'
    if isinstance(error, UserError):
        # torch put a worker's traceback before the message
        inner = re.search(r'Error: (.*)\Z', text.strip())
        if inner is None or 'in DataLoader worker process' not in text:
            return None
        after = f'; {again}' if isinstance(error, RankError) else ''
        return type(error)(inner.group(1) + after)
    if text.startswith('DataLoader timed out') or _gave_up.is_set():
        room = room_for_batches()
        if room is not None and room.free < _SCANT:
            return RankError(
                'no batch came from the data loading workers, for which shared memory seems to be '
                f'too small: {FOLDER} has {room}; {REMEDY}; {again}'
            )
        return RankError(
            f'no batch came from the data loading workers within {loader}.timeout: one is '
            'stuck, or the storage is slow. If it is only slow, give it more time with '
            f'--cfg-options {loader}.timeout=300; {again}'
        )
    if 'by signal' not in text and str(error.__cause__).startswith('DataLoader worker'):
        text = str(error.__cause__)  # knows the signal
    worker = re.match(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)', text, re.DOTALL)
    if worker is None:
        if isinstance(error, RuntimeError) and re.search(r'Connection (closed|reset)', text):
            return RankError('another process of this run has ended; see its message')
        if isinstance(error, RuntimeError) and re.search(_LOST, text):
            return RankError(
                f'the network to another process of this run is down ({text.splitlines()[0]}); '
                f'{again}'
            )
        return None
    pids, end = worker.groups()
    end = end.strip().partition('\n')[0].rstrip('. ')
    if 'Bus error' in text or 'SIGBUS' in text:
        room = room_for_batches()
        remedy = f'shared memory is full: {FOLDER} has {room}; {REMEDY}'
    else:
        remedy = (
            'the system kills a process when memory runs out: give the job more, or lower '
            f'{loader}.num_workers or batch_size'
        )
    return RankError(f'data loading worker {pids} {end}; {remedy}; {again}')


def _raise_if_dead(workers: list[BaseProcess], error: Exception) -> None:
    """Raise as torch does, if a worker has died or is about to."""
    if workers:
        connection.wait([worker.sentinel for worker in workers], timeout=1)
    for worker in workers:
        code = worker.exitcode or 0
        if code < 0:
            name = signal.Signals(-code).name
            raise RuntimeError(
                f'DataLoader worker (pid {worker.pid}) is killed by signal: {name}'
            ) from error


def _give_up() -> None:
    _gave_up.set()
    _kill_workers()


def _kill_workers() -> None:
    """End this process's workers: one that is stuck would hold up the exit forever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
