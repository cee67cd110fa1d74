"""The wrapper around a training data set."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import DataLoader, IterableDataset

from poolformer_dense.runner import DenseRunner
from poolformer_dense.runner.loader import Key, SeededDataset, build_exact_dataloader
from tests.poolformer_dense.runner import tiny


def _states() -> str:
    return tiny.checksum([random.getstate(), list(np.random.get_state()), torch.get_rng_state()])


def test_a_sample_depends_on_its_key_alone():
    data = SeededDataset(tiny.TinyDataset(4))
    first = data[Key(2, draw=9, seed=1)]['inputs']
    random.random(), np.random.rand(), torch.rand(1)
    assert torch.equal(data[Key(2, draw=9, seed=1)]['inputs'], first)
    for other in (Key(2, draw=8, seed=1), Key(2, draw=9, seed=0)):
        assert not torch.equal(data[other]['inputs'], first)


def test_the_process_keeps_its_random_states():
    data = SeededDataset(tiny.TinyDataset(4))
    before = _states()
    data[Key(2, draw=9)]
    assert _states() == before
    data[2]  # no key: as the data set does it
    assert _states() != before


def test_an_error_leaves_the_random_states_too():
    data = SeededDataset([])
    before = _states()
    with pytest.raises(IndexError):
        data[Key(2)]
    assert _states() == before


def test_it_looks_like_the_data_set():
    inner = tiny.TinyDataset(4)
    data = SeededDataset(inner)
    assert len(data) == 4
    assert data.metainfo is inner.metainfo
    assert data.get_data_info(1)['img_id'] == 1
    data.augment = False  # as hooks switch a pipeline
    assert inner.augment is False
    assert not hasattr(data, 'pipeline')
    copy = pickle.loads(pickle.dumps(data))
    assert len(copy) == 4
    assert copy.augment is False


def _loader(workers: int, **options: Any) -> DataLoader:
    options = dict(batch_size=2, num_workers=workers, worker_init_fn=_reseed) | options
    loader = build_exact_dataloader(
        DenseRunner, DataLoader(tiny.TinyDataset(12), **options), seed=7
    )
    loader.batch_sampler.start(0)
    return loader


def _reseed(worker: int) -> None:
    random.seed(worker)
    np.random.seed(worker)
    torch.manual_seed(worker)


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_do_not_matter(workers):
    expected = [batch['inputs'] for batch in _loader(0)]
    found = [batch['inputs'] for batch in _loader(workers)]
    assert len(found) == 6
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_the_loader_keeps_its_options():
    loader = _loader(2, timeout=33, prefetch_factor=3, persistent_workers=True, drop_last=True)
    assert (loader.timeout, loader.prefetch_factor, loader.num_workers) == (33, 3, 2)
    assert loader.persistent_workers
    assert loader.worker_init_fn is _reseed
    assert loader.batch_sampler.drop_last
    assert len(loader) == 6


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize(
    'loader',
    [
        DataLoader(Stream(), batch_size=1),
        DataLoader(tiny.TinyDataset(3), batch_size=None),
        type('Own', (DataLoader,), {})(tiny.TinyDataset(3)),
    ],
)
def test_what_can_not_be_wrapped_is_left(loader):
    assert build_exact_dataloader(DenseRunner, loader, seed=0) is loader


def _coco(shapes, **changes: Any) -> dict[str, Any]:
    return (
        dict(
            type='CocoDataset',
            data_root=f'{shapes}/coco',
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            metainfo=dict(classes=('disc', 'square', 'triangle')),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PhotoMetricDistortion'),
                dict(type='RandomFlip', prob=0.5),
            ],
        )
        | changes
    )


def _ade(shapes) -> dict[str, Any]:
    return dict(
        type='BaseSegDataset',
        data_root=f'{shapes}/ade',
        metainfo=dict(classes=('background', 'disc', 'square', 'triangle')),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(48, 48)),
            dict(type='PhotoMetricDistortion'),
        ],
    )


@pytest.mark.parametrize(
    ('scope', 'build'),
    [
        ('mmdet', _coco),
        ('mmseg', _ade),
        ('mmdet', lambda s: dict(type='RepeatDataset', times=2, dataset=_coco(s))),
        ('mmdet', lambda s: dict(type='ConcatDataset', datasets=[_coco(s), _coco(s)])),
        (
            'mmdet',
            lambda s: dict(
                type='MultiImageMixDataset',
                dataset=_coco(s),
                pipeline=[
                    dict(type='Mosaic', img_scale=(64, 64)),
                    dict(type='RandomFlip', prob=0.5),
                ],
            ),
        ),
    ],
    ids=['mmdet', 'mmseg', 'repeat', 'concat', 'mosaic'],
)
def test_the_toolboxes_data_sets(shapes, scope, build):
    __import__(f'{scope}.utils').utils.register_all_modules(init_default_scope=False)
    init_default_scope(scope)
    inner = DATASETS.build(build(shapes))
    data = SeededDataset(inner)
    assert data.metainfo['classes'] == inner.metainfo['classes']
    assert data.pipeline is inner.pipeline if hasattr(inner, 'pipeline') else True
    index = len(data) - 1
    samples = [data[Key(index, draw)]['img'] for draw in (1, 1, 2)]
    assert np.array_equal(samples[0], samples[1])
    assert samples[0].shape != samples[2].shape or not np.array_equal(samples[0], samples[2])
