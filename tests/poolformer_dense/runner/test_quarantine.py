"""Unreadable samples are replaced the same way every time, listed once, and stop at a limit."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, TRANSFORMS
from torch.utils.data import Dataset

from poolformer_dense.errors import RankError, UserError
from poolformer_dense.runner.loader import Key, SeededDataset
from poolformer_dense.runner.quarantine import Quarantine, count_images
from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import tiny

IMAGES = 8


def _halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _fill_with_zeros(path: Path) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))


def _become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: dict[str, Callable[[Path], Any]] = {
    'truncated': _halve,
    'end lost': lambda path: path.write_bytes(path.read_bytes()[:-2]),
    'zeros': _fill_with_zeros,
    'missing': Path.unlink,
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('<html>404</html>'),
    'folder': _become_folder,
}


@TRANSFORMS.register_module()
class FailAt:
    """A transform that can't do some samples: a stand-in for a mistake in a pipeline."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, results: dict) -> dict:
        if results['img_id'] in self.ids:
            raise KeyError('gt_depth')
        return results


@DATASETS.register_module()
class FailingDataset(tiny.TinyDataset):
    """The tiny data, of which some samples can't be read."""

    def __init__(self, bad: list[int], **options: Any) -> None:
        super().__init__(**options)
        self.bad = bad

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            np.random.rand(3)  # it fails after a while
            raise OSError(f'image {int(index)} is broken')
        return super().__getitem__(index)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return super().get_data_info(index) | dict(img_path=f'/nowhere/{int(index)}.jpg')


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the drawn images, to be broken."""
    shutil.copytree(shapes, tmp_path / 'shapes')
    return tmp_path / 'shapes'


@pytest.fixture
def quarantine(tmp_path: Path) -> Quarantine:
    return Quarantine(tmp_path / 'quarantine.jsonl')


def _detection(data: Path, extra: list[dict] | None = None, **wrapper: Any) -> Any:
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    dataset = dict(
        type='CocoDataset',
        data_root=f'{data}/coco/',
        metainfo=dict(classes=('disc', 'square', 'triangle')),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='RandomFlip', prob=0.5),
            *(extra or []),
            dict(type='PackDetInputs'),
        ],
    )
    return DATASETS.build(dict(**wrapper, dataset=dataset) if wrapper else dataset)


def _segmentation(data: Path) -> Any:
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    return DATASETS.build(
        dict(
            type='BaseSegDataset',
            data_root=f'{data}/ade',
            metainfo=dict(classes=('background', 'disc', 'square', 'triangle')),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            img_suffix='.jpg',
            reduce_zero_label=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
        )
    )


def read(dataset: Any, index: int, seed: int, quarantine: Quarantine) -> Any:
    return SeededDataset(dataset, quarantine)[Key(index, seed=seed)]


def _name(sample: dict[str, Any]) -> str:
    return Path(sample['data_samples'].img_path).name


def _lines(quarantine: Quarantine) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(quarantine.path).read_text().splitlines()]


@pytest.mark.parametrize('fault', FAULTS)
def test_unreadable_image_of_a_detection(data: Path, quarantine: Quarantine, fault: str) -> None:
    dataset = _detection(data)
    path = Path(dataset.get_data_info(3)['img_path'])
    FAULTS[fault](path)
    sample = read(dataset, 3, 0, quarantine)
    assert _name(sample) != path.name
    assert sample['inputs'].shape[0] == 3
    (line,) = _lines(quarantine)
    assert (line['path'], line['index']) == (str(path), 3)
    assert 'rror: ' in line['error']
    assert len(line['error']) < 400


@pytest.mark.parametrize('which', ['img_path', 'seg_map_path'])
@pytest.mark.parametrize('fault', ['truncated', 'missing', 'empty', 'text'])
def test_unreadable_file_of_a_segmentation(
    data: Path, quarantine: Quarantine, which: str, fault: str
) -> None:
    dataset = _segmentation(data)
    info = dataset.get_data_info(5)
    FAULTS[fault](Path(info[which]))
    sample = read(dataset, 5, 0, quarantine)
    assert _name(sample) != Path(info['img_path']).name
    (line,) = _lines(quarantine)
    assert line['path'] == info['img_path']
    assert set(line['files']) == {info['img_path'], info['seg_map_path']}


def test_readable_samples_are_left_alone(data: Path, quarantine: Quarantine) -> None:
    for dataset in (_detection(data), _segmentation(data)):
        for i in range(IMAGES):
            name = Path(dataset.get_data_info(i)['img_path']).name
            assert _name(read(dataset, i, 0, quarantine)) == name
    assert not os.path.exists(quarantine.path)


def test_jpeg_with_something_after_its_end_is_whole(data: Path, quarantine: Quarantine) -> None:
    dataset = _detection(data)
    path = Path(dataset.get_data_info(0)['img_path'])
    path.write_bytes(path.read_bytes() + b'\0' * 100)
    assert _name(read(dataset, 0, 0, quarantine)) == path.name


def test_wrappers_of_data_sets(data: Path, quarantine: Quarantine) -> None:
    dataset = _detection(data, type='RepeatDataset', times=3)
    path = Path(dataset.get_data_info(2)['img_path'])
    path.unlink()
    for index in (2, 2 + IMAGES, 2 + 2 * IMAGES):
        assert _name(read(dataset, index, 0, quarantine)) != path.name
    assert len(_lines(quarantine)) == 1
    assert count_images(dataset) == IMAGES


def test_error_of_a_transform_is_shown_with_its_place(data: Path, quarantine: Quarantine) -> None:
    dataset = _detection(data, extra=[dict(type='FailAt', ids=[4])])
    read(dataset, 3, 0, quarantine)
    (line,) = _lines(quarantine)
    assert line['error'].startswith("KeyError: 'gt_depth' at test_quarantine.py:")


def test_mistake_in_the_pipeline_ends_in_one_line(data: Path, quarantine: Quarantine) -> None:
    dataset = _detection(data, extra=[dict(type='FailAt', ids=[*range(IMAGES + 1)])])
    with pytest.raises(RankError) as error:
        read(dataset, 3, 0, quarantine)
    message = str(error.value)
    assert '\n' not in message
    assert "the first error is KeyError: 'gt_depth' at test_quarantine.py:" in message
    assert dataset.get_data_info(3)['img_path'] in message


def test_none_of_the_pipeline_is_refetched_by_the_data_set(
    data: Path, quarantine: Quarantine
) -> None:
    dataset = _detection(data)
    dataset.pipeline.transforms[0].ignore_empty = True
    path = Path(dataset.get_data_info(3)['img_path'])
    path.unlink()
    np.random.seed(0)
    assert _name(read(dataset, 3, 0, quarantine)) != path.name
    assert not os.path.exists(quarantine.path)


@pytest.mark.parametrize('kind', [MemoryError, KeyboardInterrupt])
def test_what_is_no_fault_of_the_data_is_raised(quarantine: Quarantine, kind: type) -> None:
    class Short(Dataset):
        def __getitem__(self, index: int) -> None:
            raise kind

        def __len__(self) -> int:
            return 3

    with pytest.raises(kind):
        read(Short(), 0, 0, quarantine)
    assert not os.path.exists(quarantine.path)


def _summary(sample: dict[str, Any]) -> str:
    return tiny.checksum(sample)


def test_substitute_depends_on_seed_and_key_alone(tmp_path: Path) -> None:
    dataset = FailingDataset(bad=[1, 5], length=24)
    seen = {}
    for order in ([1, 5, 1], [5, 1], [1], [3, 5]):
        fresh = Quarantine(tmp_path / f'{len(seen)}{order}.jsonl')
        random.seed(len(order))
        np.random.seed(len(order))
        torch.manual_seed(len(order))
        for index in order:
            sample = _summary(read(dataset, index, 7, fresh))
            if index in (1, 5):
                assert seen.setdefault(index, sample) == sample
    others = {
        _summary(read(dataset, 1, seed, Quarantine(tmp_path / 'other.jsonl')))
        for seed in range(100, 110)
    }
    assert len(others) > 5


def test_substitutes_that_fail_too_are_listed_and_passed_over(quarantine: Quarantine) -> None:
    bad = [i for i in range(24) if i % 3]
    dataset = FailingDataset(bad=bad, length=24)
    for index in range(24):
        read(dataset, index, 0, quarantine)
    listed = [line['index'] for line in _lines(quarantine)]
    assert sorted(listed) == bad


def _add_all(quarantine: Quarantine, seed: int) -> None:
    dataset = FailingDataset(bad=[*range(40)], length=80)
    order = [*range(40)] * 2
    random.Random(seed).shuffle(order)
    for index in order:
        read(dataset, index, 0, quarantine)


def test_processes_list_each_sample_once(
    warmed: None, tmp_path: Path, quarantine: Quarantine
) -> None:
    children = [
        tiny.fork(tmp_path / f'child{seed}', _add_all, quarantine, seed) for seed in range(6)
    ]
    for child in children:
        child.result()
    assert sorted(line['index'] for line in _lines(quarantine)) == [*range(40)]


def test_half_a_line_of_a_killed_worker_does_no_harm(quarantine: Quarantine) -> None:
    dataset = FailingDataset(bad=[1, 2], length=24)
    read(dataset, 1, 0, quarantine)
    with open(quarantine.path, 'a') as file:
        file.write('{"path": "/a/b.j')
    read(dataset, 2, 0, Quarantine(quarantine.path))
    assert [entry['index'] for entry in quarantine.entries()] == [1, 2]


def test_mended_image_no_longer_counts(data: Path, quarantine: Quarantine) -> None:
    dataset = _detection(data)
    path = Path(dataset.get_data_info(3)['img_path'])
    whole = path.read_bytes()
    _halve(path)
    read(dataset, 3, 0, quarantine)
    assert len(quarantine.entries()) == 1
    path.write_bytes(whole)
    assert quarantine.entries() == []
    assert _name(read(dataset, 3, 0, quarantine)) == path.name
    _halve(path)
    read(dataset, 3, 0, Quarantine(quarantine.path))
    assert len(quarantine.entries()) == 1


def test_list_that_can_not_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    dataset = FailingDataset(bad=[1], length=24)
    with pytest.warns(UserWarning, match='cannot be written'):
        assert read(dataset, 1, 0, Quarantine(tmp_path / 'no' / 'folder.jsonl'))


def _runner(folder: Path, bad: list[int], hook: dict | None = None, **options: Any) -> Any:
    cfg = tiny.tiny_config(folder, **options)
    cfg.custom_hooks = [dict(type='DirtyDataHook', **(hook or {})), *cfg.custom_hooks]
    cfg.train_dataloader.dataset |= dict(type='FailingDataset', bad=bad)
    return build_runner(cfg)


def _log(runner: Any) -> list[str]:
    lines = Path(runner.log_dir, f'{runner.timestamp}.log').read_text().splitlines()
    return [line for line in lines if 'cannot be read' in line]


@pytest.mark.parametrize('workers', [0, 2])
def test_training_goes_on_without_the_images(runs: Path, workers: int) -> None:
    runner = _runner(runs, [3], steps=6, workers=workers)
    runner.train()
    assert runner.iter == 6
    (line,) = _log(runner)
    assert '/nowhere/3.jpg cannot be read (OSError: image 3 is broken at test_quar' in line
    entries = Quarantine(runs / 'quarantine.jsonl').entries()
    assert [entry['index'] for entry in entries] == [3]


def test_workers_make_no_difference(runs: Path) -> None:
    digests = []
    for workers in (0, 2):
        runner = _runner(runs / str(workers), [3], workers=workers)
        runner.train()
        digests.append(tiny.digest(runner))
    assert digests[0] == digests[1]


@pytest.mark.parametrize('workers', [0, 2])
def test_too_many_stop_the_run(runs: Path, workers: int) -> None:
    # 12 images: one may be lost
    runner = _runner(runs, [3, 4, 5], steps=12, workers=workers)
    with pytest.raises(UserError) as error:
        runner.train()
    message = str(error.value)
    assert '\n' not in message
    assert ' of 12 training images cannot be read, more than the limit of 1 ' in message
    assert message.count(' is broken at test_quarantine.py:') >= 2
    assert str(runs / 'quarantine.jsonl') in message


def test_limit_is_a_share_of_the_images(runs: Path) -> None:
    runner = _runner(runs, [3, 4, 5], dict(limit=0.25), steps=6)
    runner.train()
    assert len(_log(runner)) == 3


def test_new_training_begins_a_new_list(runs: Path) -> None:
    _runner(runs, [3], steps=6).train()
    _runner(runs, [4], steps=6).train()
    listed = [entry['index'] for entry in Quarantine(runs / 'quarantine.jsonl').entries()]
    assert listed == [4]
    assert (runs / 'quarantine.jsonl.old').exists()


def _train(folder: Path, **options: Any) -> tuple[dict[str, str], list[str]]:
    runner = _runner(folder, [3], **options)
    runner.train()
    return tiny.digest(runner), _log(runner)


def test_resumed_training_meets_the_same_samples_and_keeps_its_list(runs: Path) -> None:
    folder = runs / 'run'
    expected, _ = tiny.fork(runs / 'whole', _train, folder, workers=2).result()
    (folder / 'epoch_2.pth').unlink()
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    got, lines = tiny.fork(runs / 'again', _train, folder, resume=True).result()
    assert got == expected
    assert lines
    assert len((folder / 'quarantine.jsonl').read_text().splitlines()) == 1


def _rank(folder: Path, bad: list[int]) -> str:
    # the ranks' workers meet the images at different times
    runner = _runner(
        folder, bad, dict(interval=2), launcher='pytorch', ranks=2, workers=1, steps=12
    )
    try:
        runner.train()
    except UserError as error:
        return f'{runner.iter}: {error}'
    return 'done'


def test_ranks_stop_together(runs: Path) -> None:
    children = tiny.fork_ranks(2, runs / 'ranks', _rank, runs / 'run', [3, 4, 5, 6, 7])
    first, second = [child.result() for child in children]
    assert 'of 24 training images cannot be read' in first
    assert first.partition(':')[0] == second.partition(':')[0]
    listed = [entry['index'] for entry in Quarantine(runs / 'run/quarantine.jsonl').entries()]
    assert len(listed) == len(set(listed))
