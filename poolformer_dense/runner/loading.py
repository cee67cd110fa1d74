"""The Runner's half that loads: checkpoints that fit, and runs that continue where they stood."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import BaseLoop

from backbones.checkpoints import (
    CheckpointError,
    fit,
    read_checkpoint,
    reorder_optimizer,
    weights_of,
)

from ..config.datasets import checkpoint_classes
from ..data.faults import first_names
from ..errors import UserError
from .agreement import check_alike, choose_together, read_together
from .changed_config import Difference, compare_with_checkpoint, use_what_is_restored
from .process import run_process
from .ranks import failing_together, from_main
from .resume import Start, last_start, malformed, new_run, note_start, others_in
from .saving import SavingRunner
from .state import bare_model, upgrade


class LoadingRunner(SavingRunner):
    """A `SavingRunner` that loads checkpoints strictly and resumes exactly.

    Attributes:
        unsafe_load: Whether checkpoints may run the code that they hold.
        loaded_from: The checkpoint that was loaded or resumed; None before.
    """

    unsafe_load: bool = False
    loaded_from: str | None = None
    _resume: bool
    _load_from: str | None
    _has_loaded: bool
    # The checkpoint that was read to choose it, until it is loaded.
    _examined: tuple[str, dict[str, Any]] | None = None
    # In what the config differs from that of the checkpoint that is resumed from.
    _changes: Sequence[Difference] = ()
    # What `restore_run_state` will bring back; None if the run is not resumed.
    _to_restore: dict[str, Any] | None = None

    @property
    def resumed(self) -> bool:
        """Whether the run continues another one."""
        return self._resume and self._has_loaded

    def load_or_resume(self) -> None:
        """Load or resume as the config says; what is resumed is the newest intact checkpoint."""
        training = isinstance(self._train_loop, BaseLoop)
        automatic = self._resume and self._load_from is None
        if self._has_loaded or not (training or automatic):
            super().load_or_resume()
            return
        check_alike(self.cfg, self._resume, self._load_from)
        choice, launches = choose_together(self.work_dir, automatic, self.logger, self._examine)
        if choice.path is not None:
            self._resume, self._load_from = True, choice.path
            self.run_id = choice.run
            self.logger.info(f'Resuming from {choice.path}.')
        elif automatic:
            # mmengine would look again, each rank for itself.
            self._resume = False
            self.logger.warning(
                f'no checkpoint in {self.work_dir} to resume from; a new training begins'
            )
        super().load_or_resume()
        self._examined = None
        use_what_is_restored(self, self._changes)
        if training:
            self._note_start(choice.path is None, launches)

    def _note_start(self, begins: bool, launches: frozenset[str]) -> None:
        """Note in the folder which training runs, and by which launchers; give a new one its id."""
        if begins:
            self.run_id = from_main(new_run())
        with failing_together():
            if not is_main_process():
                return
            start = last_start(self.work_dir)
            if begins:
                start = Start(self.run_id, self._load_from if self._resume else None)
                if not self._resume and (warning := others_in(self.work_dir)):
                    self.logger.warning(warning)
            if start is not None:
                note_start(self.work_dir, start._replace(launches=start.launches | launches))

    def _examine(self, path: Path) -> None:
        """Read a checkpoint to see whether it can be."""
        self._examined = None
        self._examined = str(path), read_checkpoint(path, get_device())

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = 'cpu',
        strict: bool = True,
        revise_keys: Sequence[tuple[str, str]] = ((r'^module\.', ''),),
    ) -> dict[str, Any]:
        """Load a checkpoint entirely or not at all; code that it holds is not run.

        The backbone may be in any layout that `backbones.checkpoints` knows. Fine-tuning
        (``load_from`` in training) may give the heads other shapes, for other classes: those
        tensors are named and start from their initialisation.

        Args:
            filename: A path, a URL, or a name that mmengine or `backbones.weights` knows.
            map_location: As for `torch.load`.
            strict: False loads what fits, as mmengine does.
            revise_keys: Patterns and what replaces them in the names.

        Raises:
            CheckpointError: The file can't be read, does not fit, or is not finite; the model is
                untouched.
            UserError: It was trained with the classes in another order, or the run resumes with an
                optimizer or schedules that do not fit it.
        """
        if not strict:
            with run_process(self.unsafe_load):
                return super().load_checkpoint(filename, map_location, strict, list(revise_keys))
        examined, self._examined = self._examined, None

        def read() -> Any:
            if examined is not None and examined[0] == filename:
                return examined[1]
            return read_checkpoint(filename, map_location, self.unsafe_load)

        checkpoint = read_together(filename, read, self.logger)
        if self._resume and (fault := malformed(checkpoint)):
            raise CheckpointError(
                f'{filename} can not be resumed from: {fault}; to start from its weights, use '
                '--cfg-options load_from=PATH instead of --resume'
            )
        model = bare_model(self)
        weights = weights_of(checkpoint, filename)
        for pattern, replacement in revise_keys:
            weights = {re.sub(pattern, replacement, name): w for name, w in weights.items()}
        training = isinstance(self.optim_wrapper, (OptimWrapper, OptimWrapperDict))
        fitted = fit(weights, model, training and not self._resume, source=filename)
        self._check_classes(checkpoint, filename, bool(fitted.fresh))
        if self._resume and any(theirs != ours for theirs, ours in fitted.names.items()):
            checkpoint['optimizer'] = reorder_optimizer(
                checkpoint['optimizer'], fitted.names.values(), model
            )
        if self._resume:
            # mmengine runs a config that it finds here; those that it saves are in `cfg`.
            checkpoint['meta'].pop('config', None)
            self._changes = compare_with_checkpoint(self, checkpoint)
        if 'state_dict' not in checkpoint:
            checkpoint = {}
        checkpoint['state_dict'] = fitted.tensors
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model.load_state_dict(checkpoint['state_dict'], strict=not fitted.fresh)
        if self._resume:
            self._to_restore = upgrade(checkpoint)
        self._has_loaded = True
        self.loaded_from = filename
        self.logger.info(
            f'Load checkpoint from {filename}: {len(fitted.tensors)} tensors'
            + (
                f'; of another shape, initialised from scratch: {", ".join(fitted.fresh)}'
                if fitted.fresh
                else ''
            )
        )
        return checkpoint

    def _check_classes(self, checkpoint: dict[str, Any], filename: str, new_heads: bool) -> None:
        """Refuse labels that mean other classes in the checkpoint than in this run's data."""
        theirs = tuple(checkpoint_classes(checkpoint))
        loops = (self._train_loop, self._val_loop, self._test_loop)
        metas = [
            getattr(loop.dataloader.dataset, 'metainfo', {})
            for loop in loops
            if isinstance(loop, BaseLoop)
        ]
        first = metas[0] if metas and isinstance(metas[0], dict) else {}
        ours = tuple(first.get('classes') or ())
        if not theirs or not ours or theirs == ours:
            return
        names = f'({first_names(theirs)}) than the data set has ({first_names(ours)})'
        if sorted(theirs) == sorted(ours):
            raise UserError(
                f'{filename} was trained with the classes in another order {names}: labels would '
                'mean different things; give each data set the metainfo.classes of the checkpoint'
            )
        if len(theirs) == len(ours) and not new_heads:
            self.logger.warning(f'{filename} was trained with other classes {names}.')

    def restore_run_state(self) -> bool:
        """Bring back the parts of `resumable`; the loops call it when the hooks have begun.

        Returns:
            False if the checkpoint that is resumed from has none of them.
        """
        state, self._to_restore = self._to_restore, None
        if state is None:
            return True
        if not state:
            return False
        saved, now = len(state['random']['ranks']), get_world_size()
        if saved != now:
            self.logger.warning(
                f'The checkpoint was saved by {saved} processes, this run has {now}: random states '
                'are seeded again, so it differs from an uninterrupted run.'
            )
        was, size = state['position']['samples_per_step'], self.position.samples_per_step
        if was != size:
            self.logger.warning(
                f'The checkpoint was saved with {was} samples in an iteration, this run has '
                f'{size}: it resumes at the same fraction of the epoch, so it differs from an '
                'uninterrupted run.'
            )
        for name, part in self.resumable().items():
            if name in state:
                part.load_state_dict(state[name])
        return True
