"""Samplers that start anywhere and say for each sample where in the run it is drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from torch.utils.data import BatchSampler, Sampler

# Draws are counted anew in each epoch, from a multiple of this.
EPOCH = 1 << 32


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


class KeyedBatches(Sampler):
    """Any batch sampler's batches, from any one on, as lists of `Key`.

    Batches before the first are passed over by their indices alone; what mmengine's
    `InfiniteSampler` would yield next is computed. Nothing comes before `start` was called: an
    older mmengine asks for batches when a loop is built, before it is known where to resume.

    Args:
        batches: The batch sampler.
        seed: Of the run, the same on all ranks, for the augmentation.
    """

    def __init__(self, batches: BatchSampler, seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self._epoch: int | None = None
        self._first = 0
        self._rank, self._ranks = get_dist_info()

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

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
        if _can_jump(self.batches):
            return 0, iterations
        epoch = 0
        while True:
            self.start(epoch)
            with _sizes_remembered(self.batches):
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
        if _can_jump(self.batches):
            count = first * self.batches.batch_size
            sampler = self.batches.sampler
            sampler.indices = indices_from(sampler, count)
            batches = iter(self.batches)
        else:
            count = 0
            batches = iter(self.batches)
            with _sizes_remembered(self.batches):
                for batch in islice(batches, first):
                    count += len(batch)
        for batch in batches:
            yield [self._key(index, epoch, count + place) for place, index in enumerate(batch)]
            count += len(batch)

    def _key(self, index: Any, epoch: int, count: int) -> Any:
        if not isinstance(index, int):  # samplers of videos yield pairs
            return index
        return Key(index, epoch * EPOCH + count * self._ranks + self._rank, self.seed)


@contextmanager
def _sizes_remembered(batches: Any) -> Iterator[None]:
    """Ask for the size of each image only once: an endless sampler comes back to it."""
    sampler = getattr(batches, 'sampler', None)
    dataset = getattr(sampler, 'dataset', None)
    if not hasattr(dataset, 'get_data_info'):
        yield
        return
    sampler.dataset = _Sizes(dataset)
    try:
        yield
    finally:
        sampler.dataset = dataset


class _Sizes:
    """A data set that remembers the size of each image; reading an annotation takes longer."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._known: dict[int, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def get_data_info(self, index: int) -> dict[str, Any]:
        known = self._known.get(index)
        if known is None:
            known = self._dataset.get_data_info(index)
            if {'width', 'height'} <= known.keys():
                known = self._known[index] = {key: known[key] for key in ('width', 'height')}
        return known


def _can_jump(batches: Any) -> bool:
    """Whether batch ``n`` begins at index ``n * batch_size`` of mmengine's endless sampler."""
    return type(batches) is BatchSampler and type(batches.sampler) is InfiniteSampler


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


def seed_process(words: Sequence[int]) -> None:
    """Seed python's, numpy's and torch's random states of the CPU from any number of words."""
    # torch.manual_seed would seed the GPU too.
    states = np.random.SeedSequence(words).generate_state(3, np.uint64)
    random.seed(int(states[0]))
    np.random.seed(states[1:2].view(np.uint32))
    torch.default_generator.manual_seed(int(states[2]))
