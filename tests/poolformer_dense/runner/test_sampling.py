"""Samplers that start anywhere."""

from __future__ import annotations

import pickle
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler

from poolformer_dense.runner.loader import EPOCH, Key, KeyedBatches, SeededDataset, indices_from

AspectRatioBatchSampler = pytest.importorskip('mmdet.datasets.samplers').AspectRatioBatchSampler


class Sizes:
    """A data set that counts how often it is asked for the size of an image."""

    def __init__(self, length: int = 31) -> None:
        self.length, self.asked = length, 0

    def __len__(self) -> int:
        return self.length

    def get_data_info(self, index: int) -> dict[str, Any]:
        self.asked += 1
        return dict(width=3, height=2 + index * 7 % 3, instances=[])


def _infinite(length: int = 31, seed: int = 0, shuffle: bool = True, rank: int = 0, ranks: int = 1):
    sampler = InfiniteSampler(range(length), shuffle=shuffle, seed=seed)
    sampler.rank, sampler.world_size = rank, ranks
    return sampler


@given(
    length=st.integers(1, 40),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**32),
    ranks=st.integers(1, 5),
    taken=st.integers(0, 200),
    data=st.data(),
)
def test_the_endless_sampler_starts_anywhere(length, shuffle, seed, ranks, taken, data):
    rank = data.draw(st.integers(0, ranks - 1))
    sampler = _infinite(length, seed, shuffle, rank, ranks)
    expected = list(islice(iter(_infinite(length, seed, shuffle, rank, ranks)), taken, taken + 20))
    assert list(islice(indices_from(sampler, taken), 20)) == expected


BATCHES = {
    'default': lambda data: BatchSampler(DefaultSampler(data, seed=3), 4, False),
    'default, without the last': lambda data: BatchSampler(DefaultSampler(data, seed=3), 4, True),
    'infinite': lambda data: BatchSampler(_infinite(len(data), 3), 4, False),
    'aspect ratio': lambda data: AspectRatioBatchSampler(DefaultSampler(data, seed=3), 4),
    'infinite, aspect ratio': lambda data: AspectRatioBatchSampler(_with_data(data), 4),
}


def _with_data(data: Any) -> InfiniteSampler:
    sampler = _infinite(len(data), 3)
    sampler.dataset = data
    return sampler


@pytest.mark.parametrize('kind', BATCHES)
@pytest.mark.parametrize('first', [0, 1, 5, 7])
@pytest.mark.parametrize('epoch', [0, 2])
def test_batches_from_any_one_on(kind, first, epoch):
    data = Sizes()
    whole = KeyedBatches(BATCHES[kind](data), seed=0)
    whole.start(epoch)
    part = KeyedBatches(BATCHES[kind](data), seed=0)
    part.start(epoch, first)
    expected = [[(int(k), k.draw) for k in batch] for batch in islice(whole, first + 12)]
    found = [[(int(k), k.draw) for k in batch] for batch in islice(part, 12)]
    assert found == expected[first:]
    plain = BATCHES[kind](data)
    plain.sampler.set_epoch(epoch)
    assert [[index for index, _ in batch] for batch in expected] == list(islice(plain, first + 12))


def test_the_next_pass_is_whole_again():
    batches = KeyedBatches(BATCHES['default'](Sizes()), seed=0)
    batches.start(0, 5)
    assert len(list(batches)) == 3
    assert len(list(batches)) == len(batches) == 8


def test_no_draw_comes_twice():
    batches = KeyedBatches(BATCHES['default'](Sizes()), seed=0)
    draws = set()
    for epoch in range(3):
        batches.start(epoch)
        keys = [key for batch in batches for key in batch]
        assert all(key.draw // EPOCH == epoch for key in keys)
        draws |= {key.draw for key in keys}
    assert len(draws) == 3 * 31


def test_draws_of_all_ranks_are_the_places_in_the_epoch():
    places = {}
    for rank in range(2):
        sampler = DefaultSampler(range(10), seed=3)
        sampler.rank, sampler.world_size, sampler.num_samples = rank, 2, 5
        batches = KeyedBatches(BatchSampler(sampler, 2, False), seed=0, rank=(rank, 2))
        batches.start(0)
        places |= {key.draw: int(key) for batch in batches for key in batch}
    assert [places[place] for place in range(10)] == list(DefaultSampler(range(10), seed=3))


def test_an_endless_sampler_asks_for_a_size_once():
    data = Sizes()
    batches = KeyedBatches(BATCHES['infinite, aspect ratio'](SeededDataset(data)), seed=0)
    batches.start(0, 2000)
    next(iter(batches))
    # a few more for the batch itself
    assert data.asked < 31 + 20


def test_nothing_comes_before_the_start():
    assert list(KeyedBatches(BATCHES['default'](Sizes()), seed=0)) == []


@pytest.mark.parametrize('kind', BATCHES)
@pytest.mark.parametrize('iterations', [0, 7, 8, 20])
def test_the_place_of_an_iteration(kind, iterations):
    epoch, batch = KeyedBatches(BATCHES[kind](Sizes()), seed=0).place_of(iterations)
    if 'infinite' in kind:
        assert (epoch, batch) == (0, iterations)
    else:
        length = len(BATCHES[kind](Sizes()))
        assert epoch * length + batch == iterations
        assert 0 <= batch <= length


def test_a_key_is_its_index():
    key = Key(7, draw=EPOCH + 3, seed=5)
    assert key == 7
    assert torch.arange(10)[key] == list(range(10))[key] == 7
    copy = pickle.loads(pickle.dumps(key))
    assert (copy, copy.draw, copy.seed) == (7, EPOCH + 3, 5)
