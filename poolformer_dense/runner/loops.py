"""mmengine's training loops, resumed after any iteration as if they had never stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from ..errors import UserError
from .dirty_data import FILE_NAME, DirtyDataHook, Quarantine
from .run_state import Position, kept_random_state, random_state, restore, samples_per_step
from .sampling import KeyedBatches
from .seeded_data import exact_dataloader
from .workers import watched


class ExactResume:
    """What both loops share; put it before mmengine's loop among the bases.

    Attributes:
        position: Where the training stands, for `run_state.collect`.
        random_before_validation: In a validation, the random state before it. A validation that
            was cut short is done anew, and leaves the random states as it found them.
    """

    position: Position
    random_before_validation: dict[str, Any] | None = None
    _resumed_from: dict[str, Any] | None = None

    @property
    def dataloader(self) -> DataLoader:
        return self._dataloader

    @dataloader.setter
    def dataloader(self, loader: DataLoader) -> None:
        # mmengine's constructor sets it, before it looks at it.
        self.position = Position()
        self.runner.register_hook(ExactResumeHook())
        replaces = any(isinstance(hook, DirtyDataHook) for hook in self.runner.hooks)
        quarantine = Quarantine(Path(self.runner.work_dir, FILE_NAME)) if replaces else None
        self._dataloader = exact_dataloader(loader, self.runner.seed, quarantine)
        self._batches = self._dataloader.batch_sampler
        if not isinstance(self._batches, KeyedBatches):
            self.runner.logger.warning(
                'The training data loader is not an ordinary one: a resumed run will draw other '
                'samples than an uninterrupted one.'
            )

    def seeds(self) -> dict[str, int]:
        """The seeds of this rank's sampler and augmentation."""
        if not isinstance(self._batches, KeyedBatches):
            return {}
        sampler = getattr(self._batches.inner, 'seed', None)
        return dict(data=self._batches.seed) | ({} if sampler is None else dict(sampler=sampler))

    def load_seeds(self, seeds: dict[str, int]) -> None:
        """Take over the seeds of the run that is resumed; the config's may be drawn at random."""
        if isinstance(self._batches, KeyedBatches):
            self._batches.seed = seeds.get('data', self._batches.seed)
            if 'sampler' in seeds:
                self._batches.inner.seed = seeds['sampler']

    def resume_from(self, state: dict[str, Any] | None) -> None:
        """Take what a checkpoint has for this loop; None if it has nothing."""
        self._resumed_from = state or {}

    def _go_on(self) -> None:
        """Bring the run to where the checkpoint was saved, if it is resumed from one."""
        state, self._resumed_from = self._resumed_from, None
        if state is None:
            return
        if not state:
            self.runner.logger.warning(
                'The checkpoint has no state of the run beside the weights (another program saved '
                'it): random states start afresh, and an epoch that was begun is done again.'
            )
            self.position = self._position_of_iteration()
            return
        self.position = Position(**state['position'])
        if state['samples_per_step'] != samples_per_step(self.runner):
            samples = self.position.batch * state['samples_per_step']
            self.position.batch = samples // samples_per_step(self.runner)
        restore(self.runner, state)

    def _position_of_iteration(self) -> Position:
        raise NotImplementedError

    def _load(self, epoch: int, first: int) -> Iterator[Any]:
        """Return the batches of an epoch from one on; no random state changes."""
        with kept_random_state():
            if isinstance(self._batches, KeyedBatches):
                self._batches.start(epoch, first)
            return watched(iter(self.dataloader), self.dataloader.timeout)

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        done, last = self._progress()
        if (
            self.runner.val_loop is not None
            and done >= self.val_begin
            and (done % self.val_interval == 0 or done == last)
        ):
            self.random_before_validation = random_state()
            with kept_random_state():
                self.runner.val_loop.run()
            self.random_before_validation = None
        self.position.validated = True

    def _progress(self) -> tuple[int, int]:
        raise NotImplementedError


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Tells the loop what the checkpoint holds and when a validation counts as done.

    The loops bring it along.
    """

    # After the average of the weights is put back, before a checkpoint is saved.
    priority = 'BELOW_NORMAL'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            runner.train_loop.resume_from(checkpoint.get('run_state'))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if runner.train_loop.random_before_validation is not None:
            runner.train_loop.position.validated = True


@LOOPS.register_module()
class ExactEpochBasedTrainLoop(ExactResume, EpochBasedTrainLoop):
    """mmengine's epoch-based loop, with exact resume also within an epoch."""

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self._go_on()
        if not self.position.validated:
            self._validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Go through one epoch, or through what is left of it."""
        first = self.position.batch
        with kept_random_state() if first else nullcontext():
            self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in enumerate(self._load(self._epoch, first), first):
            self.run_iter(idx, data_batch)
        self.position = Position(self._epoch + 1, 0, validated=False)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        self.position = Position(self._epoch, idx + 1)
        super().run_iter(idx, data_batch)

    def _position_of_iteration(self) -> Position:
        return Position(self._epoch, 0)

    def _progress(self) -> tuple[int, int]:
        return self._epoch, self._max_epochs


@LOOPS.register_module()
class ExactIterBasedTrainLoop(ExactResume, IterBasedTrainLoop):
    """mmengine's iteration-based loop, with exact resume from the first batch that is not done."""

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._go_on()
        self.dataloader_iterator = self._endless()
        if not self.position.validated:
            self._validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            data_batch = next(self.dataloader_iterator)
            self.run_iter(data_batch)
            self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _endless(self) -> Iterator[Any]:
        epoch, batch = self.position.epoch, self.position.batch
        while True:
            for data_batch in self._load(epoch, batch):
                batch += 1
                self.position = Position(epoch, batch, validated=False)
                yield data_batch
            if not batch:
                raise UserError('train_dataloader: there is not one batch; are there data?')
            epoch, batch = epoch + 1, 0

    def _position_of_iteration(self) -> Position:
        if not isinstance(self._batches, KeyedBatches):
            return Position()
        return Position(*self._batches.place_of(self._iter))

    def _progress(self) -> tuple[int, int]:
        return self._iter, self._max_iters
