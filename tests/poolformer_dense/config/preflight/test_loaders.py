"""Shared memory that is too small for the batches is said before a worker waits for it."""

from __future__ import annotations

import logging

import pytest
from mmengine.config import Config

from poolformer_dense.config.load import load_config
from poolformer_dense.config.preflight import loaders
from poolformer_dense.config.preflight.loaders import check_shared_memory
from poolformer_dense.config.preflight.plan import Plan
from poolformer_dense.shared_memory import Room, room_for_batches

MB = 1 << 20
RESIZE = dict(type='Resize', scale=(1024, 1024))


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ('LOCAL_WORLD_SIZE', 'SLURM_NTASKS_PER_NODE'):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def found(monkeypatch):
    """Check a loader of images of 3 MB where so many megabytes are free."""

    def check(free, steps=(RESIZE,), splits=('train',), **options):
        room = Room(int(free * MB), 64 * MB)
        monkeypatch.setattr(loaders, 'room_for_batches', lambda: room)
        pipeline = [dict(type='LoadImageFromFile'), *steps, dict(type='PackDetInputs')]
        loader = dict(batch_size=2, num_workers=2, dataset=dict(pipeline=pipeline)) | options
        cfg = Config(dict(train_dataloader=loader))
        return list(check_shared_memory(Plan(cfg, splits)))

    return check


def test_no_room_for_one_batch_is_an_error(found):
    [notice] = found(5.9)
    assert notice.level == logging.ERROR
    assert notice.text.startswith('train_dataloader: a batch of 2 images takes 6.0 MB of shared ')
    assert '/dev/shm has 5.9 MB of 64 MB free; enlarge it (docker run --shm-size=16g' in notice.text
    assert '--ipc=host' in notice.text
    assert '--cfg-options train_dataloader.num_workers=0' in notice.text


def test_no_room_for_what_is_prepared_ahead_is_a_warning(found):
    [notice] = found(23.9)
    assert notice.level == logging.WARNING
    assert '1 x 2 workers prepare up to 4 batches of 6.0 MB' in notice.text
    assert not found(24)
    assert not found(12, prefetch_factor=1)
    assert found(12, prefetch_factor=2)


def test_processes_of_one_host_share_it(found, monkeypatch):
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '8')
    [notice] = found(100)
    assert '8 x 2 workers prepare up to 32 batches' in notice.text
    assert not found(192)


def test_without_workers_it_is_not_needed(found):
    assert not found(0, num_workers=0)
    assert not found(0, splits=('val',))


@pytest.mark.parametrize(
    ('steps', 'level'),
    [
        ([dict(type='Resize', scale=(1024, 1024), keep_ratio=True)], logging.WARNING),
        ([dict(type='RandomChoiceResize', scales=[(99, 99), (1024, 1024)])], logging.WARNING),
        ([dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2))], logging.WARNING),
        ([RESIZE, dict(type='RandomCrop', crop_size=(900, 900))], None),
        ([RESIZE, dict(type='RandomCrop', crop_size=(1000, 1000))], logging.ERROR),
        ([dict(type='RandomCrop', crop_size=(1000, 1000))], logging.WARNING),
        ([RESIZE, dict(type='RandomCrop', crop_size=0.5)], logging.WARNING),
        ([RESIZE, dict(type='StepOfTheUser')], logging.WARNING),
        ([dict(type='Resize', scale_factor=2.0)], None),
        ([], None),
    ],
)
def test_only_what_is_sure_is_refused(found, steps, level):
    levels = [notice.level for notice in found(5, steps, num_workers=1, prefetch_factor=1)]
    assert levels == ([] if level is None else [level])


def test_the_configs_are_fine_where_docker_has_enlarged_it(root, monkeypatch):
    monkeypatch.setattr(loaders, 'room_for_batches', lambda: Room(1024 * MB, 1024 * MB))
    for path in sorted((root / 'configs').glob('*_s12.py')):
        cfg = load_config(str(path))
        assert not list(check_shared_memory(Plan(cfg, ['train', 'val', 'test']))), path


def test_room_is_that_of_the_folder(tmp_path):
    room = room_for_batches(str(tmp_path))
    assert 0 < room.free <= room.total
    assert room_for_batches(str(tmp_path / 'missing')) is None
    assert str(Room(300 * 1024, 64 * MB)) == '0.3 MB of 64 MB free'
