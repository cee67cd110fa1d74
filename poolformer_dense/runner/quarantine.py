"""Images that can't be read are replaced, reproducibly."""

from __future__ import annotations

import fcntl
import json
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..data.decoding import inspect_image, quiet_decoders
from ..errors import RankError, UserError
from ..terminal import printable
from .loader import Key, read_whole
from .random_state import seed_cpu

FILE_NAME = 'quarantine.jsonl'
# Samples that are tried in place of one that can't be read.
SUBSTITUTES = 8
_SHOWN = 3


class Quarantine:
    """The list of samples that could not be read: a file of JSON lines, each sample once.

    Any number of workers and processes may add to it. A line has ``path`` (of the image, or null),
    ``index``, ``error`` and ``files``, which maps each file of the sample to its size and time of
    change, or to null if it was not there. A sample whose files have changed since is taken as
    repaired: it no longer counts.

    Args:
        path: The file. It is made with the first entry.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        self._known: set[str] = set()

    def add(self, dataset: Any, index: int, error: Exception) -> None:
        """Add a sample unless it is there.

        Args:
            dataset: Where the sample is from; its ``get_data_info`` tells the files.
            index: The sample.
            error: What happened.
        """
        files = _files_of(dataset, index)
        self._append(
            dict(
                path=files[0] if files else None,
                index=index,
                error=_reason(files, error),
                files={file: _stamp(file) for file in files},
            )
        )

    def substitute(self, dataset: Any, key: Key, error: Exception) -> Any:
        """List a sample that can't be read, and return another one in its place.

        Which one depends on the key alone, neither on workers nor on what was read before. It is
        augmented from random states that depend on the same; the caller keeps the process's own.

        Args:
            dataset: Where the sample is from.
            key: The sample.
            error: What happened.

        Raises:
            RankError: All substitutes failed too.
        """
        index = int(key)
        self.add(dataset, index, error)
        words = [key.seed, index, key.draw]
        draw = np.random.default_rng(words)
        for attempt in range(SUBSTITUTES):
            other = int((index + 1 + draw.integers(max(1, len(dataset) - 1))) % len(dataset))
            seed_cpu([*words, attempt])
            try:
                return read_whole(dataset, other)
            except (MemoryError, UserError):
                raise
            except Exception as another:
                self.add(dataset, other, another)
        files = _files_of(dataset, index)
        name = f'sample {index}' + (f' ({files[0]})' if files else '')
        raise RankError(
            f'neither {name} nor {SUBSTITUTES} others in its place can be read; the first error is '
            f'{_describe(error)}. Fix the data or the pipeline: tools/verify_data.py CONFIG finds '
            'what is wrong with the data'
        ) from error

    def entries(self) -> list[dict[str, Any]]:
        """Return the samples on the list that were not repaired since."""
        with suppress(FileNotFoundError):
            return list(_parse(Path(self.path).read_bytes()))
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return the list, for a checkpoint."""
        return dict(entries=self.entries())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Add what a checkpoint's list has and this one, in another folder perhaps, has not."""
        if is_main_process():
            for entry in state['entries']:
                self._append(entry)

    def _append(self, entry: dict[str, Any]) -> None:
        if _identity(entry) in self._known:
            return
        try:
            with open(self.path, 'rb+', opener=_open_or_make) as file:
                with suppress(OSError):  # a few network file systems have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                content = file.read()
                if _identity(entry) not in {_identity(known) for known in _parse(content)}:
                    torn = content and not content.endswith(b'\n')
                    file.write(b'\n' * bool(torn) + json.dumps(entry).encode() + b'\n')
        except OSError as failure:
            warnings.warn(printable(f'{self.path} cannot be written: {failure}'), stacklevel=2)
            return
        self._known.add(_identity(entry))


@HOOKS.register_module()
class DirtyDataHook(Hook):
    """Says which images could not be read in training, and stops the run if they are too many.

    Args:
        limit: The largest fraction of the training images on the list; one image is always allowed.
        interval: The processes agree on the number every so many iterations.

    Raises:
        UserError: In training, on all ranks: there are more.
    """

    priority = 'BELOW_NORMAL'

    def __init__(self, limit: float = 0.01, interval: int = 10) -> None:
        self.limit = limit
        self.interval = interval
        self._size = 0
        self._entries: list[dict[str, Any]] = []

    def before_train(self, runner: Runner) -> None:
        dataset = runner.train_loop.dataloader.dataset
        self._quarantine: Quarantine | None = getattr(dataset, 'quarantine', None)
        if self._quarantine is None:
            runner.logger.warning(
                'DirtyDataHook: the training data set has no quarantine, so an image that can not '
                'be read stops the run'
            )
            return
        self._images = count_images(dataset)
        self._allowed = max(1, int(self.limit * self._images))
        if runner.iter == 0 and is_main_process():
            path = self._quarantine.path
            with suppress(FileNotFoundError):
                os.replace(path, f'{path}.old')
        barrier()
        self._check(runner, self._quarantine)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self._quarantine is not None:
            self._look(runner, self._quarantine)
            if get_world_size() == 1 or self.every_n_train_iters(runner, self.interval):
                self._check(runner, self._quarantine)

    def _look(self, runner: Runner, quarantine: Quarantine) -> None:
        """Read the list if it has grown, and say what is new."""
        try:
            size = os.stat(quarantine.path).st_size
        except FileNotFoundError:
            return
        if size == self._size:
            return
        self._size = size
        told = {_identity(entry) for entry in self._entries}
        self._entries = quarantine.entries()
        for entry in self._entries:
            if _identity(entry) not in told:
                runner.logger.warning(
                    f'{printable(entry["path"] or "sample " + str(entry["index"]))} cannot be read '
                    f'({entry["error"]}); it is replaced by another image and listed in '
                    f'{quarantine.path}.'
                )

    def _check(self, runner: Runner, quarantine: Quarantine) -> None:
        self._look(runner, quarantine)
        count = torch.tensor([len(self._entries)])
        all_reduce(count, 'max')
        if count.item() <= self._allowed:
            return
        first = '; '.join(
            f'{e["path"] or e["index"]}: {e["error"]}' for e in self._entries[:_SHOWN]
        )
        raise UserError(
            f'{count.item():,} of {self._images:,} training images cannot be read, more than the '
            f'limit of {self._allowed:,} ({self.limit:.3g} of them); the first: {first}. All are '
            f'in {quarantine.path}: fix them (one that has changed no longer counts; after '
            'a change of the pipeline delete the list) and resume with --resume, or raise the '
            'limit of DirtyDataHook'
        )


def count_images(dataset: Any) -> int:
    """The number of images below the wrappers that repeat or mix them."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return len(dataset)


def _files_of(dataset: Any, index: int) -> list[str]:
    """Return the sample's files, the image first, or nothing where the data set can't tell."""
    try:
        info = dataset.get_data_info(index)
        paths = [info.get(name) for name in ('img_path', 'seg_map_path')]
    except Exception:  # what is wrong with the sample may be wrong here too
        return []
    return [os.fspath(path) for path in paths if path]


def _stamp(file: str) -> list[int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _open_or_make(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)


def _identity(entry: dict[str, Any]) -> str:
    return entry['path'] or f'sample {entry["index"]}'


def _parse(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        try:
            entry = json.loads(line)
            repaired = any(_stamp(file) != stamp for file, stamp in entry['files'].items())
            _identity(entry)
        except (ValueError, TypeError, KeyError, AttributeError):  # half a line of a killed worker
            continue
        if not repaired:
            yield entry


def _reason(files: Sequence[str], error: Exception) -> str:
    """What is wrong with the image, as tools/verify_data.py says it, and what was raised."""
    with quiet_decoders():
        found = inspect_image(files[0]) if files and os.path.isfile(files[0]) else None
    said = f'{found.note}; ' if found and found.size is None else ''
    return said + _describe(error)


def _describe(error: Exception) -> str:
    """The error in one line, with the place that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f' at {Path(place[0].filename).name}:{place[0].lineno}' if place else ''
    text = ' '.join(''.join(traceback.format_exception_only(error)).split())
    return f'{text[:200]}{where}'
