"""When checkpoints are saved and deleted: a kill or a full disk loses none."""

from __future__ import annotations

import hashlib
import logging
import pickle
import time
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from backbones.checkpoints import read_checkpoint

from ..errors import UserError
from ..files import remove_unfinished, replacing, save_sealed
from ..object_stores import in_store, store_refusal
from .ranks import SaveFailed, any_rank, write_on_main
from .replaced import Names, Replaced
from .state import require_dense_runner

# In the message hub, so that a resumed run knows which files its checkpoint has replaced.
_KEPT, _LAST = 'keep_ckpt_ids', 'last_ckpt'  # mmengine's
_INTERMEDIATE, _OUTDATED = 'intermediate_ckpt', 'outdated_ckpts'
# Seconds before each new try, if the last save of a training fails.
_PAUSES = (1.0, 5.0, 15.0, 30.0)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, made safe against kills, full disks and damage.

    `DenseRunner.save_checkpoint` gives a file its name when it is complete and on disk; only then
    does ``last_checkpoint`` name it, and only then are older ones deleted. A save that fails is
    logged and tried again at the next interval, and the training continues; at its end it is tried
    again for a minute, and then is an error. What a killed save left is removed at the next start.

    Saves also happen between the intervals, after any iteration, as ``iter_N.pth``. One of these
    at most is kept, beside those that ``max_keep_ckpts`` counts, until a later save is complete.

    Args:
        arguments: As for mmengine's hook.
        minutes: The longest time without a save; 0 for saves by interval alone.
        options: As for mmengine's hook.

    Raises:
        UserError: ``out_dir`` is in an object store.
    """

    file_backend: Any

    def __init__(self, *arguments: Any, minutes: float = 30.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.args:
            raise TypeError(f'AtomicCheckpointHook takes no {", ".join(map(repr, self.args))}')
        if in_store(self.out_dir):
            raise store_refusal('out_dir', self.out_dir)
        if minutes < 0:
            raise ValueError(f'minutes is {minutes}: it must be 0 or more')
        self.minutes = minutes
        self._tried_at = 0.0
        self._iteration: int | None = None
        self._failed: _Failed | None = None
        self._failed_best: _Failed | None = None

    def before_train(self, runner: Runner) -> None:
        require_dense_runner(runner, self)
        replaced = self._take_over(runner)
        super().before_train(runner)
        self._tried_at = time.monotonic()
        self._iteration = runner.iter if runner.resumed else None
        self._failed = self._failed_best = None
        if is_main_process():
            self._clean_up(runner, replaced.outdated if replaced else [])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.minutes:
            due = time.monotonic() - self._tried_at >= 60 * self.minutes
            if any_rank(due and is_main_process()):
                self.save_now(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """See to it that the last and the best weights are on disk, if saving them has failed.

        Raises:
            UserError: They are not.
        """
        for pause in _PAUSES:
            best = self._failed_best
            if best is not None and best.iteration != runner.iter:
                best = None  # its weights are gone
            if self._failed is None and best is None:
                break
            runner.logger.warning(f'The last save has failed; the next try is in {pause:g} s.')
            time.sleep(pause)
            if self._failed is not None and self._failed.iteration == runner.iter:
                self._failed.retry()
            elif self._failed is not None:
                self.save_now(runner, runner.iter)
            if best is not None:
                best.retry()
        if self._failed is not None:
            before = f'{self.last_ckpt} is the last that is' if self.last_ckpt else 'nor any others'
            raise UserError(
                f'the weights of iteration {runner.iter}, the last, are not on disk '
                f'({self._failed.reason}); {before}. Make room, then continue with --resume'
            )
        super().after_train(runner)
        if self._failed_best is not None:
            raise UserError(
                f'the training is complete, but the best weights, of iteration '
                f'{self._failed_best.iteration}, are not on disk ({self._failed_best.reason}); '
                'tools/test.py evaluates the checkpoints that are'
            )

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
        name = self._between.format(iteration)
        runner.logger.info(f'Saving checkpoint at {iteration} iterations')
        return self._commit(
            runner, name, dict(epoch=runner.epoch, iter=iteration), self._kept(), name
        )

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
        keys = (_KEPT, _LAST, _INTERMEDIATE, _OUTDATED)
        before = {key: info[key] for key in keys if key in info}
        outdated = [self.filename_tmpl.format(step) for step in self._kept() if step not in kept]
        outdated += [info.get(_INTERMEDIATE)]
        outdated = [other for other in outdated if other not in (None, name)]
        path = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info(_LAST, path)
        runner.message_hub.update_info(_INTERMEDIATE, intermediate)
        runner.message_hub.update_info(_OUTDATED, outdated)
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info(_KEPT, kept)
        self._tried_at = time.monotonic()
        try:
            with runner.saving_together():
                runner.save_checkpoint(
                    self.out_dir,
                    name,
                    self.file_client_args,
                    save_optimizer=self.save_optimizer,
                    save_param_scheduler=self.save_param_scheduler,
                    meta=meta,
                    by_epoch=self.by_epoch,
                    backend_args=self.backend_args,
                )
            write_on_main('last_checkpoint', lambda: _point(runner, path))
        except SaveFailed as error:
            for key in keys:
                info.pop(key, None)
            info.update(before)
            self._failed = _Failed(
                str(error),
                meta['iter'],
                lambda: self._commit(runner, name, meta, kept, intermediate),
            )
            runner.logger.error(f'{error}; training continues and retries at the next interval')
            return False
        self.last_ckpt, self._iteration, self._failed = path, meta['iter'], None
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
        if is_main_process():
            self._remove(outdated)
        return True

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not self.save_best:
            return
        # mmengine removes the previous best before the new one is written.
        self.file_backend = later = _RemovingLater(self.file_backend)
        before = dict(runner.message_hub.runtime_info)
        best = {key: copy(value) for key, value in vars(self).items() if key.startswith('best_c')}
        try:
            with runner.saving_together():
                super()._save_best_checkpoint(runner, metrics)
        except SaveFailed as error:
            runner.message_hub.runtime_info.clear()
            runner.message_hub.runtime_info.update(before)
            for key, value in best.items():
                setattr(self, key, value)
            self._failed_best = _Failed(
                str(error), runner.iter, lambda: self._save_best_checkpoint(runner, metrics)
            )
            runner.logger.error(f'{error}; training continues without it')
            return
        finally:
            self.file_backend = later.backend
        if any(vars(self)[key] != value for key, value in best.items()):
            self._failed_best = None
        if is_main_process():
            self._remove(later.due)

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        checkpoint = read_checkpoint(ckpt_path)
        published = {key: checkpoint[key] for key in self.published_keys if key in checkpoint}
        digest = hashlib.sha256(pickle.dumps(published)).hexdigest()
        path = Path(ckpt_path)
        final = path.with_name(f'{path.stem}-{digest[:8]}.pth')
        save_sealed(published, final)
        runner.logger.info(f'{ckpt_path} is published as {final} ({", ".join(published)}).')

    def _take_over(self, runner: Runner) -> Replaced | None:
        """Put into the message hub which files are this run's own, in place of what was loaded.

        Resumed from another folder they are none, even if those here have the same names.
        """
        if not runner.resumed:
            return None
        info = runner.message_hub.runtime_info
        said = {
            key: info.pop(key)
            for key in list(info)
            if key in (_KEPT, _LAST, _INTERMEDIATE, _OUTDATED) or str(key).startswith('best_ckpt')
        }
        folder, current = Path(self._folder(runner)), Path(runner.loaded_from)
        if current.parent.resolve() != folder.resolve():
            return None
        figures = self.save_best or []
        several = len(figures) > 1
        names = Names(
            self.filename_tmpl,
            self._between,
            None if self.by_epoch else self.interval,
            max(self.max_keep_ckpts, 0),
            {f'best_ckpt_{figure}' if several else 'best_ckpt': figure for figure in figures},
        )
        replaced = names.replaced(said, folder / current.name, runner.epoch, runner.iter)
        info |= {_KEPT: replaced.kept, _INTERMEDIATE: replaced.intermediate, _OUTDATED: []}
        info |= {key: str(folder / name) for key, name in replaced.best.items()}
        return replaced

    def _clean_up(self, runner: Runner, outdated: list[str]) -> None:
        """Finish what a killed run had begun: a save, or what follows one."""
        for folder in {str(self.out_dir), runner.work_dir}:
            for name in remove_unfinished(folder):
                runner.logger.warning(f'Removed {name}, left by an interrupted save.')
        if outdated:
            try:
                # It may still name one of them.
                _point(runner, str(Path(self.out_dir, Path(runner.loaded_from).name)))
            except OSError as error:
                runner.logger.error(f'last_checkpoint could not be written ({error})')
            else:
                self._remove(outdated)

    @property
    def _between(self) -> str:
        """The template of the names of intermediate checkpoints."""
        return 'iter_{}.pth' if self.by_epoch else self.filename_tmpl

    def _kept(self) -> list[int]:
        return list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []

    def _remove(self, names: list[str]) -> None:
        """Remove files of the folder; one that can't be removed does not end the training."""
        for name in names:
            path = self.file_backend.join_path(self.out_dir, name)
            try:
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)
            except OSError as error:
                text = f'{path}, which is replaced, could not be removed ({error.strerror})'
                print_log(text, 'current', logging.WARNING)

    def _folder(self, runner: Runner) -> str:
        if self.out_dir in (None, runner.work_dir):
            return runner.work_dir
        return str(Path(self.out_dir, Path(runner.work_dir).name))


class _Failed(NamedTuple):
    """A save that failed: why, of which iteration, and how to try it again."""

    reason: str
    iteration: int
    retry: Callable[[], object]


class _RemovingLater:
    """A file backend that removes nothing and keeps the names of what is due."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.due: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.due.append(Path(path).name)


def _point(runner: Runner, path: str) -> None:
    pointer = Path(runner.work_dir, 'last_checkpoint')
    if pointer.exists() and pointer.read_text() == path:
        return
    with replacing(pointer) as file:
        file.write(path.encode())
