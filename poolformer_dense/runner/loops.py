"""mmengine's loops: training that resumes after any iteration, evaluation of images of any size."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmengine.dist import all_gather_object, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import UserError
from .loader import KeyedBatches, build_exact_dataloader, can_be_rebuilt, with_options_of
from .quarantine import FILE_NAME, DirtyDataHook, Quarantine
from .random_state import kept_random_state
from .state import bare_model, own_share
from .workers import WatchedLoader, clear_errors, watched

if TYPE_CHECKING:
    from .runner import DenseRunner


class OwnLoader(BaseLoop):
    """A loop that ends its loader's workers; put it before mmengine's loop among the bases."""

    dataloader: DataLoader

    def end_workers(self) -> None:
        """End the workers that the loader keeps for its next iteration; that would start others.

        Nothing may hold an iterator of it. Left to the garbage collector, which takes their queues
        first, each of them is waited for.
        """
        loader = self.dataloader
        if can_be_rebuilt(loader) and loader.persistent_workers:
            self.dataloader = with_options_of(loader, loader.dataset)


class ExactResume(OwnLoader):
    """What both loops share; put it before mmengine's loop among the bases.

    Its state are the seeds of sampler and augmentation; ``runner.position`` is where it stands.

    Args:
        runner: The run.
        dataloader: As for mmengine's loop.
        options: As for mmengine's loop.
    """

    runner: DenseRunner

    def __init__(
        self, runner: DenseRunner, dataloader: DataLoader | Mapping[str, Any], **options: Any
    ) -> None:
        replaces = any(isinstance(hook, DirtyDataHook) for hook in runner.hooks)
        self.quarantine = Quarantine(Path(runner.work_dir, FILE_NAME)) if replaces else None
        self._loader_cfg = dataloader
        super().__init__(runner, self._build(runner, runner.seed), **options)
        self._batches = self.dataloader.batch_sampler
        size = getattr(self._batches, 'batch_size', 1)
        size = sum(size) if isinstance(size, (list, tuple)) else size
        runner.position.count_in(size * get_world_size())
        if not isinstance(self._batches, KeyedBatches):
            runner.logger.warning(
                'The training data loader is not supported for exact resume: a resumed run will '
                'draw other samples than an uninterrupted one.'
            )

    def seeds(self) -> dict[str, int]:
        """The seeds of this rank's sampler and augmentation."""
        if not isinstance(self._batches, KeyedBatches):
            return {}
        sampler = getattr(self._batches.inner, 'seed', None)
        return dict(data=self._batches.seed) | ({} if sampler is None else dict(sampler=sampler))

    def state_dict(self) -> dict[str, Any]:
        return dict(ranks=all_gather_object(self.seeds()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the seeds of the run that is resumed; this one's may be drawn at random."""
        seeds = own_share(state['ranks']) or state['ranks'][0]
        if not isinstance(self._batches, KeyedBatches):
            return
        if seeds.get('sampler') != self.seeds().get('sampler'):
            self.dataloader = self._build(self.runner, seeds['sampler'])
            self._batches = self.dataloader.batch_sampler
        cast(KeyedBatches, self._batches).reseed(seeds['data'])

    def _build(self, runner: DenseRunner, seed: int) -> DataLoader:
        """Build the loader, the data set at the first time alone."""
        if isinstance(self._loader_cfg, DataLoader):
            return build_exact_dataloader(runner, self._loader_cfg, seed, False, self.quarantine)
        differ = (runner.cfg.get('randomness') or {}).get('diff_rank_seed', False)
        differ = differ and seed == runner.seed
        loader = build_exact_dataloader(runner, self._loader_cfg, seed, differ, self.quarantine)
        self._loader_cfg = {**self._loader_cfg, 'dataset': loader.dataset}
        return loader

    def _restore(self) -> None:
        """Restore the state of the checkpoint that is resumed from, if there is one."""
        if not self.runner.restore_run_state():
            self.runner.logger.warning(
                'The checkpoint has no run state (another program saved it): random states are '
                'seeded again, and an incomplete epoch is repeated.'
            )
            self.runner.position.move(*self._place_of_iteration())
        done, last = self._progress()
        if self.runner.resumed and done >= last:
            key = 'max_iters' if isinstance(self, IterBasedTrainLoop) else 'max_epochs'
            self.runner.logger.warning(
                f'Nothing is left to do: {self.runner.loaded_from} has {done} {key[4:]} done, and '
                f'train_cfg.{key} is {last}. To train on, set it above {done}.'
            )

    def _place_of_iteration(self) -> tuple[int, int]:
        raise NotImplementedError

    def _load(self, epoch: int, first: int) -> Iterator[Any]:
        """Return the batches of an epoch from one on; no random state changes."""
        with kept_random_state():
            if isinstance(self._batches, KeyedBatches):
                self._batches.start(epoch, first)
            batches = iter(self.dataloader)
        watches = isinstance(self.dataloader, WatchedLoader)  # a user's own loader does not
        return batches if watches else watched(batches, self.dataloader.timeout)

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        done, last = self._progress()
        if (
            self.runner.val_loop is not None
            and done >= self.val_begin
            and (done % self.val_interval == 0 or done == last)
        ):
            with self.runner.random.kept(), clear_errors('val'):
                self.runner.val_loop.run()
        self.runner.position.settle()

    def _progress(self) -> tuple[int, int]:
        raise NotImplementedError


@LOOPS.register_module()
class ExactEpochBasedTrainLoop(ExactResume, EpochBasedTrainLoop):
    """mmengine's epoch-based loop, with exact resume also within an epoch."""

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self._restore()
        if not self.runner.position.validated:
            self._validate_if_due()
        while self._epoch < self.max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Run one epoch, or the rest of it."""
        first = self.runner.position.batch
        with kept_random_state() if first else nullcontext():
            self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in enumerate(self._load(self._epoch, first), first):
            self.run_iter(idx, data_batch)
        self.runner.position.move(self._epoch + 1, 0, validated=False)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        self.runner.position.move(self._epoch, idx + 1)
        super().run_iter(idx, data_batch)

    def _place_of_iteration(self) -> tuple[int, int]:
        return self._epoch, 0

    def _progress(self) -> tuple[int, int]:
        return self._epoch, self.max_epochs


@LOOPS.register_module()
class ExactIterBasedTrainLoop(ExactResume, IterBasedTrainLoop):
    """mmengine's iteration-based loop, with exact resume from the first batch that is not done."""

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._restore()
        self.dataloader_iterator = self._endless()
        if not self.runner.position.validated:
            self._validate_if_due()
        while self.iter < self.max_iters and not self.stop_training:
            self.runner.model.train()
            data_batch = next(self.dataloader_iterator)
            self.run_iter(data_batch)
            self._validate_if_due()
        self.dataloader_iterator.close()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _endless(self) -> Generator[Any, None, None]:
        position = self.runner.position
        epoch, batch = position.epoch, position.batch
        while True:
            for data_batch in self._load(epoch, batch):
                batch += 1
                position.move(epoch, batch, validated=False)
                yield data_batch
            if not batch:
                raise UserError(
                    'train_dataloader: it has no batches: is the data set empty, or smaller than '
                    'a batch?'
                )
            epoch, batch = epoch + 1, 0

    def _place_of_iteration(self) -> tuple[int, int]:
        if not isinstance(self._batches, KeyedBatches):
            return 0, 0
        return self._batches.place_of(self.iter)

    def _progress(self) -> tuple[int, int]:
        return self.iter, self.max_iters


class BySize(OwnLoader):
    """An evaluation whose batches are given to mmseg's models in parts, each of images of one size.

    mmseg's data preprocessor stacks no others. What is predicted does not depend on the batch, as
    it would if images were padded to a common size; the order is kept. Put it before mmengine's
    loop among the bases.
    """

    def run_iter(self, idx: int, data_batch: Any) -> None:
        processor = getattr(bare_model(self.runner), 'data_preprocessor', None)
        # mmdet's calls it seg_pad_value, and pads.
        parts = parts_by_size(data_batch) if hasattr(processor, 'seg_pad_val') else [data_batch]
        for part in parts:
            super().run_iter(idx, part)


def parts_by_size(data_batch: Any) -> list[Any]:
    """Split a batch where the next image, (C, H, W), has another size than the one before.

    With test-time augmentation a batch is a list of the images for each way to augment them.
    """
    inputs = data_batch.get('inputs') if isinstance(data_batch, Mapping) else None
    if not isinstance(inputs, (list, tuple)):
        return [data_batch]
    augmented = bool(inputs) and all(isinstance(view, (list, tuple)) for view in inputs)
    views = inputs if augmented else [inputs]
    if not all(isinstance(image, Tensor) for view in views for image in view):
        return [data_batch]
    sizes = [[image.shape for image in images] for images in zip(*views, strict=True)]
    groups = groupby(range(len(sizes)), key=lambda i: sizes[i])
    chosen = [list(indices) for _, indices in groups]

    def take(values: Sequence[Any], part: list[int]) -> list[Any]:
        return [values[i] for i in part]

    if augmented:
        return [
            {k: [take(view, part) for view in v] for k, v in data_batch.items()} for part in chosen
        ]
    return [{k: take(v, part) for k, v in data_batch.items()} for part in chosen]


@LOOPS.register_module()
class BySizeValLoop(BySize, ValLoop):
    """mmengine's ValLoop, also for segmentors whose batches hold images of several sizes."""


@LOOPS.register_module()
class BySizeTestLoop(BySize, TestLoop):
    """mmengine's TestLoop, also for segmentors whose batches hold images of several sizes."""


EVALUATING: dict[type[BaseLoop], type[BaseLoop]] = {
    ValLoop: BySizeValLoop,
    TestLoop: BySizeTestLoop,
}
EXACT: dict[type[BaseLoop], type[BaseLoop]] = {
    EpochBasedTrainLoop: ExactEpochBasedTrainLoop,
    IterBasedTrainLoop: ExactIterBasedTrainLoop,
}
