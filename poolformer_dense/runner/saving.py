"""Checkpoints that neither a kill nor a full disk can take away."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmengine.runner
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .. import files
from .ranks import any_rank
from .run_state import collect

# Of the message hub, so that a resumed run knows which files its checkpoint made superfluous.
_INTERMEDIATE = 'intermediate_ckpt'
_OUTDATED = 'outdated_ckpts'


class SaveFailed(Exception):
    """A checkpoint could not be written; raised on every rank."""


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, made safe against kills, full disks and damage.

    A file gets its name when it is complete and on disk, with a checksum inside (see
    `poolformer_dense.files`); only then ``last_checkpoint`` names it, and only then are
    older ones deleted. A save that fails is logged and tried again at the next interval, and the
    training goes on. What a killed save left is removed at the next start.

    Saves also happen between the intervals, after any iteration, as ``iter_N.pth``. One of these
    at most is kept, beside those that ``max_keep_ckpts`` counts, until a later save is complete.

    Args:
        arguments: As for mmengine's hook.
        minutes: The longest time without a save; 0 for saves by interval alone.
        options: As for mmengine's hook.
    """

    def __init__(self, *arguments: Any, minutes: float = 30.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.args:
            raise TypeError(f'AtomicCheckpointHook takes no {", ".join(map(repr, self.args))}')
        if minutes < 0:
            raise ValueError(f'minutes is {minutes}: it must be 0 or more')
        self.minutes = minutes
        self._local = False
        self._tried_at = 0.0
        self._iteration: int | None = None
        self._run_state: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        self._forget_other_folder(runner)
        super().before_train(runner)
        # Object stores have no half-written objects; what goes there is mmengine's affair.
        self._local = isinstance(self.file_backend, LocalBackend)
        self._tried_at = time.monotonic()
        self._iteration = runner.iter if runner._resume and runner._has_loaded else None
        if is_main_process() and self._local:
            self._clean_up(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.minutes:
            due = time.monotonic() - self._tried_at >= 60 * self.minutes
            if any_rank(due and is_main_process()):
                self.save_now(runner, runner.iter + 1)

    def save_now(self, runner: Runner, iteration: int) -> bool:
        """Save between the intervals; all ranks must call it.

        Args:
            runner: The run.
            iteration: How many iterations are done.

        Returns:
            Whether a checkpoint of this iteration is there.
        """
        if self._iteration == iteration:
            return True
        template = 'iter_{}.pth' if self.by_epoch else self.filename_tmpl
        name = template.format(iteration)
        runner.logger.info(f'Saving checkpoint at {iteration} iterations')
        return self._commit(
            runner, name, dict(epoch=runner.epoch, iter=iteration), self._kept(), name
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # Seconds since 1970: mmengine's own time is local, and a copied file has another date.
        checkpoint['meta']['saved_at'] = time.time()
        if self._run_state is not None:
            checkpoint['run_state'] = self._run_state

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        kept = [other for other in self._kept() if other != step] + [step]
        if self.max_keep_ckpts > 0:
            kept = kept[-self.max_keep_ckpts :]
        self._commit(runner, self.filename_tmpl.format(step), meta, kept, None)

    def _commit(
        self,
        runner: Runner,
        name: str,
        meta: dict[str, Any],
        kept: list[int],
        intermediate: str | None,
    ) -> bool:
        """Save, point to it, delete what it replaces; or log why not and leave all as it was."""
        info = runner.message_hub.runtime_info
        keys = ('keep_ckpt_ids', 'last_ckpt', _INTERMEDIATE, _OUTDATED)
        before = {key: info[key] for key in keys if key in info}
        outdated = [self.filename_tmpl.format(step) for step in self._kept() if step not in kept]
        outdated += [info.get(_INTERMEDIATE)]
        outdated = [other for other in outdated if other not in (None, name)]
        path = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', path)
        runner.message_hub.update_info(_INTERMEDIATE, intermediate)
        runner.message_hub.update_info(_OUTDATED, outdated)
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        options = dict(
            file_client_args=self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
        )
        self._tried_at = time.monotonic()
        self._run_state = collect(runner)
        try:
            self._save(runner, self.out_dir, name, pointer=path, **options)
        except SaveFailed as error:
            for key in keys:
                info.pop(key, None)
            info.update(before)
            runner.logger.error(f'{error}; training goes on and tries again at the next interval')
            return False
        finally:
            self._run_state = None
        self.last_ckpt, self._iteration = path, meta['iter']
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
        if is_main_process():
            self._remove(outdated)
        return True

    def _save(
        self, runner: Runner, out_dir: str, filename: str, pointer: str | None = None, **options
    ) -> None:
        """Save on the main rank; on all, raise SaveFailed if it failed there."""
        failure = None
        if is_main_process():
            try:
                with _sealing(self._local):
                    type(runner).save_checkpoint(runner, out_dir, filename, **options)
                if pointer:
                    _point(Path(runner.work_dir, 'last_checkpoint'), pointer)
            except OSError as error:
                failure = f'{filename} could not be saved ({error})'
        failures = [failure]
        broadcast_object_list(failures)
        if failures[0]:
            raise SaveFailed(failures[0])

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        # mmengine removes the previous best before the new one is written.
        backend, self.file_backend = self.file_backend, _RemovingLater(self.file_backend)
        before = dict(runner.message_hub.runtime_info)
        best = {key: value for key, value in vars(self).items() if key.startswith('best_ckpt')}
        runner.save_checkpoint = functools.partial(self._save, runner)
        self._run_state = collect(runner)
        try:
            super()._save_best_checkpoint(runner, metrics)
            self.file_backend.remove_now()
        except SaveFailed as error:
            runner.message_hub.runtime_info.clear()
            runner.message_hub.runtime_info.update(before)
            vars(self).update(best)
            runner.logger.error(f'{error}; training goes on without it')
        finally:
            del runner.save_checkpoint
            self._run_state = None
            self.file_backend = backend

    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        with _sealing(self._local):
            super()._publish_model(runner, ckpt_path)

    def _clean_up(self, runner: Runner) -> None:
        """Finish what a killed run had begun: a save, or what follows one."""
        info = runner.message_hub.runtime_info
        for folder in {str(self.out_dir), runner.work_dir}:
            for name in files.remove_unfinished(folder):
                runner.logger.warning(f'Removed {name}, which an interrupted save had left.')
        outdated = info.get(_OUTDATED, [])
        if outdated:
            try:
                # It may still name one of them.
                newest = str(Path(self.out_dir, Path(info['last_ckpt']).name))
                _point(Path(runner.work_dir, 'last_checkpoint'), newest)
            except OSError as error:
                runner.logger.error(f'last_checkpoint could not be written ({error})')
            else:
                self._remove(outdated)

    def _kept(self) -> list[int]:
        return list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []

    def _remove(self, names: list[str]) -> None:
        for name in names:
            path = self.file_backend.join_path(self.out_dir, name)
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def _forget_other_folder(self, runner: Runner) -> None:
        """Leave files alone that have the names of those in the folder resumed from."""
        if runner._load_from is None:
            return
        folder = Path(self._folder(runner)).resolve()
        if Path(runner._load_from).resolve().parent != folder:
            for key in ('keep_ckpt_ids', _INTERMEDIATE, _OUTDATED):
                runner.message_hub.runtime_info.pop(key, None)

    def _folder(self, runner: Runner) -> str:
        if self.out_dir is None:
            return runner.work_dir
        return str(Path(self.out_dir, Path(runner.work_dir).name))


class _RemovingLater:
    """A file backend that removes nothing before `remove_now`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._due: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._due.append(path)

    def remove_now(self) -> None:
        for path in self._due:
            self._backend.remove(path)


@contextlib.contextmanager
def _sealing(local: bool) -> Iterator[None]:
    """Make mmengine write checkpoints through `save_sealed`, not from one copy in memory in place.

    Args:
        local: Whether they go to a file system.
    """
    places = [mmengine.runner.runner, mmengine.runner] if local else []
    original = mmengine.runner.save_checkpoint
    for place in places:
        place.save_checkpoint = _write
    try:
        yield
    finally:
        for place in places:
            place.save_checkpoint = original


def _write(
    checkpoint: dict, filename: str, file_client_args: Any = None, backend_args: Any = None
) -> None:
    path = Path(filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save_sealed(checkpoint, path)


def _point(pointer: Path, path: str) -> None:
    if pointer.exists() and pointer.read_text() == path:
        return
    with files.replacing(pointer) as file:
        file.write(path.encode())
