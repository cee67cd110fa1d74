"""Training data from any batch on, whose augmentation depends on the draw alone.

Which samples are drawn and how they are augmented depends neither on the workers nor on what was
drawn before, so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from ..data.decoding import is_cut_jpeg
from ..data.label_order import in_class_order
from ..errors import UserError
from .random_state import seeded
from .workers import WatchedLoader

if TYPE_CHECKING:
    from .quarantine import Quarantine

# Draws are counted in each epoch from a multiple of this.
EPOCH = 1 << 32
# What a DataLoader is made of beside its data set and its batch sampler.
_OPTIONS = (
    'num_workers',
    'collate_fn',
    'pin_memory',
    'timeout',
    'worker_init_fn',
    'multiprocessing_context',
    'generator',
    'prefetch_factor',
    'persistent_workers',
    'pin_memory_device',
    'in_order',
)


class Key(int):
    """The index of a sample, and what its augmentation is seeded with.

    Attributes:
        draw: Which draw of the run this is: the epoch times `EPOCH`, plus the sample's place in
            the epoch, counted over all ranks.
        seed: Of the run.
    """

    draw: int
    seed: int

    def __new__(cls, index: int, draw: int = 0, seed: int = 0) -> Key:
        key = super().__new__(cls, index)
        key.draw, key.seed = draw, seed
        return key

    def __reduce__(self) -> tuple[Any, ...]:
        return Key, (int(self), self.draw, self.seed)


class SeededDataset:
    """A data set that seeds each sample with its `Key`; in all else it is the data set itself.

    Args:
        dataset: Any map-style data set.
        quarantine: Where samples that can't be read are listed and replaced by others; None
            leaves their errors alone.
    """

    seeded = True  # also as seen through mmengine's wrapper of a part of a data set

    def __init__(self, dataset: Any, quarantine: Quarantine | None = None) -> None:
        vars(self).update(wrapped=dataset, quarantine=quarantine, sizes=None)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, Key):
            return self.wrapped[key]
        with seeded([key.seed, key.draw, int(key)]):
            if self.quarantine is None:
                return self.wrapped[key]
            try:
                return read_whole(self.wrapped, key)
            except (MemoryError, UserError):
                raise
            except Exception as error:  # decoders and transforms raise anything on broken data
                return self.quarantine.substitute(self.wrapped, key, error)

    def __len__(self) -> int:
        return len(self.wrapped)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return what is known of an image; within `remembering_sizes` maybe only its size."""
        if self.sizes is None:
            return self.wrapped.get_data_info(index)
        known = self.sizes.get(index)
        if known is None:
            known = self.wrapped.get_data_info(index)
            if {'width', 'height'} <= known.keys():
                self.sizes[index] = {key: known[key] for key in ('width', 'height')}
        return known

    @contextmanager
    def remembering_sizes(self) -> Iterator[None]:
        """Read each image's annotation only once, for samplers that ask for sizes."""
        vars(self).update(sizes={})
        try:
            yield
        finally:
            vars(self).update(sizes=None)

    def __getattr__(self, name: str) -> Any:
        # Unpickling asks for attributes before there are any.
        if name == 'wrapped' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.wrapped, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> SeededDataset:
        # mmengine copies the configs that it builds from; the data are not part of a config.
        return self


def read_whole(dataset: Any, index: int) -> Any:
    """Return a sample of a data set.

    Raises:
        OSError: Its JPEG ends before its picture does: OpenCV would fill the rest with gray.
        Exception: Whatever the data set raises.
    """
    sample = dataset[index]
    samples = sample.get('data_samples') if isinstance(sample, dict) else None
    path = getattr(samples, 'metainfo', {}).get('img_path')
    if isinstance(path, str) and is_cut_jpeg(path):
        raise OSError(f'{path} is truncated: the JPEG has no end marker')
    return sample


class KeyedBatches(Sampler):
    """Any batch sampler's batches, from any one on, as lists of `Key`.

    Batches before the first are skipped by their indices alone; those of mmengine's
    `InfiniteSampler` are computed. Nothing comes before `start` was called: an older mmengine asks
    for batches when a loop is built, before it is known where to resume.

    Args:
        batches: The batch sampler.
        seed: Of the run, the same on all ranks, for the augmentation.
        rank: Of this process, and how many there are; those of the process group by default.
    """

    def __init__(
        self, batches: BatchSampler, seed: int, rank: tuple[int, int] | None = None
    ) -> None:
        self.batches = batches
        self.seed = seed
        self._epoch: int | None = None
        self._first = 0
        self._rank: int
        self._ranks: int
        self._rank, self._ranks = rank or get_dist_info()

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def reseed(self, seed: int) -> None:
        """Take another seed for the augmentation."""
        self.seed = seed

    @property
    def inner(self) -> Any:
        """The sampler of indices below the batches; None if there is none."""
        return getattr(self.batches, 'sampler', None)

    def start(self, epoch: int, first: int = 0) -> None:
        """Say where the next iteration begins.

        Args:
            epoch: The pass over the data.
            first: Its batches that are done.
        """
        self._epoch, self._first = epoch, first
        if hasattr(self.inner, 'set_epoch'):
            self.inner.set_epoch(epoch)

    def place_of(self, iterations: int) -> tuple[int, int]:
        """Return the epoch and the batch in it that come after so many iterations."""
        if self._can_jump():
            return 0, iterations
        epoch = 0
        while True:
            self.start(epoch)
            with self._remembering_sizes():
                done = sum(1 for _ in islice(self.batches, iterations))
            if done == iterations:
                return epoch, done
            if not done:
                raise ValueError('the batch sampler has no batches')
            iterations -= done
            epoch += 1

    def __iter__(self) -> Iterator[list[Key]]:
        if self._epoch is None:
            return
        # When the first batch is asked for, and not before: torch makes iterators that it drops.
        epoch, first, self._first = self._epoch, self._first, 0
        if self._can_jump():
            size = self.batches.batch_size
            count = first * size
            indices = indices_from(self.inner, count)
            batches = iter(lambda: list(islice(indices, size)), [])
        else:
            batches = iter(self.batches)
            with self._remembering_sizes():
                count = sum(len(batch) for batch in islice(batches, first))
        for batch in batches:
            yield [self._key(index, epoch, count + place) for place, index in enumerate(batch)]
            count += len(batch)

    def _key(self, index: Any, epoch: int, count: int) -> Any:
        if not isinstance(index, int):  # samplers of videos yield pairs
            return index
        return Key(index, epoch * EPOCH + count * self._ranks + self._rank, self.seed)

    def _can_jump(self) -> bool:
        """Whether batch ``n`` begins at index ``n * batch_size`` of mmengine's endless sampler."""
        return type(self.batches) is BatchSampler and type(self.inner) is InfiniteSampler

    def _remembering_sizes(self) -> Any:
        dataset = getattr(self.inner, 'dataset', None)
        if isinstance(dataset, SeededDataset):
            return dataset.remembering_sizes()
        return nullcontext()


def indices_from(sampler: InfiniteSampler, taken: int) -> Iterator[int]:
    """Yield what the sampler yields after so many indices, without making those.

    Args:
        sampler: mmengine's endless sampler, of which only its settings are used.
        taken: Indices of this rank to leave out.
    """
    passes, offset = divmod(sampler.rank + taken * sampler.world_size, sampler.size)
    generator = torch.Generator()
    generator.manual_seed(sampler.seed)
    if sampler.shuffle:
        for _ in range(passes):
            torch.randperm(sampler.size, generator=generator)

    def endless() -> Iterator[int]:
        while True:
            if sampler.shuffle:
                yield from torch.randperm(sampler.size, generator=generator).tolist()
            else:
                yield from range(sampler.size)

    return islice(endless(), offset, None, sampler.world_size)


def build_exact_dataloader(
    runner: Runner,
    dataloader: DataLoader | Mapping[str, Any],
    seed: int | None,
    diff_rank_seed: bool = False,
    quarantine: Quarantine | None = None,
) -> DataLoader:
    """Build a training's loader as mmengine does, then with keyed batches and seeded samples.

    Args:
        runner: The run, whose ``build_dataloader`` is used.
        dataloader: As for mmengine. Of a loader that is already built, a subclass, a data set
            that is only iterable and a loader without batches are left as they are.
        seed: Of the run; a sampler's own, which is the same on all ranks, takes precedence.
        diff_rank_seed: As for mmengine.
        quarantine: For `SeededDataset`.
    """
    if isinstance(dataloader, DataLoader):
        built = dataloader
    else:
        dataset = dataloader['dataset']
        if isinstance(dataset, dict):
            dataset = DATASETS.build(in_class_order(dataset, DATASETS))
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
        if not isinstance(dataset, IterableDataset) and not getattr(dataset, 'seeded', False):
            dataset = SeededDataset(dataset, quarantine)
        built = runner.build_dataloader(
            {**dataloader, 'dataset': dataset}, seed=seed, diff_rank_seed=diff_rank_seed
        )
    if not can_be_rebuilt(built):
        return built
    dataset = built.dataset
    if not getattr(dataset, 'seeded', False):
        dataset = SeededDataset(dataset, quarantine)
    batches = KeyedBatches(cast(BatchSampler, built.batch_sampler), seed or 0)
    # With diff_rank_seed the run's seed is this rank's own.
    batches.reseed(getattr(batches.inner, 'seed', batches.seed))
    return with_options_of(built, dataset, batch_sampler=batches)


def can_be_rebuilt(loader: DataLoader) -> bool:
    """Whether `with_options_of` makes a loader of the same batches from this one's parts."""
    return (
        type(loader) in (DataLoader, WatchedLoader)
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    )


def with_options_of(loader: DataLoader, dataset: Any, **batches: Any) -> WatchedLoader:
    """Return a loader like another, that watches its workers.

    Args:
        loader: The other.
        dataset: Its data set.
        batches: What a DataLoader is told of its batches; what the other was told by default.
    """
    if not batches and loader.batch_size is not None:
        names = ('batch_size', 'sampler', 'drop_last')
        batches = {name: getattr(loader, name) for name in names}
    elif not batches:
        batches = dict(batch_sampler=loader.batch_sampler)
    options = {name: getattr(loader, name) for name in _OPTIONS if hasattr(loader, name)}
    return WatchedLoader(dataset=dataset, **batches, **options)
