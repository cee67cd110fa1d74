"""Training data whose augmentation depends on the draw alone, not on who makes it and when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from .dirty_data import Quarantine, read
from .sampling import Key, KeyedBatches, seed_process

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


class SeededDataset:
    """A data set that seeds each sample with its `Key`; in all else it is the data set itself.

    Args:
        dataset: Any map-style data set.
        quarantine: Where samples that can't be read are listed, and others take their place; None
            leaves their errors alone.
    """

    def __init__(self, dataset: Any, quarantine: Quarantine | None = None) -> None:
        vars(self).update(wrapped=dataset, quarantine=quarantine)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, Key):
            return self.wrapped[key]
        with _seeded(key):
            if self.quarantine is None:
                return self.wrapped[key]
            return read(self.wrapped, key, key.seed, self.quarantine)

    def __len__(self) -> int:
        return len(self.wrapped)

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


def exact_dataloader(
    loader: DataLoader, seed: int, quarantine: Quarantine | None = None
) -> DataLoader:
    """Return the loader with keyed batches and a seeded data set; or as it is, if it can't be.

    Args:
        loader: As mmengine builds it. A subclass, a data set that is only iterable and a loader
            without batches are left as they are.
        seed: Of the run; a sampler's own, which is the same on all ranks, comes first.
        quarantine: For `SeededDataset`.
    """
    if (
        type(loader) is not DataLoader
        or loader.batch_sampler is None
        or isinstance(loader.dataset, IterableDataset)
    ):
        return loader
    batches = KeyedBatches(loader.batch_sampler, seed)
    # With diff_rank_seed the run's seed is this rank's own.
    batches.seed = getattr(batches.inner, 'seed', seed)
    return DataLoader(
        dataset=SeededDataset(loader.dataset, quarantine),
        batch_sampler=batches,
        **{name: getattr(loader, name) for name in _OPTIONS if hasattr(loader, name)},
    )


@contextmanager
def _seeded(key: Key) -> Iterator[None]:
    """Random states that depend on the key alone; afterwards those of before."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed_process([key.seed, key.draw, int(key)])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
