"""Crops of segmentation have the size that a batch is padded to."""

from __future__ import annotations

import logging
import re

import pytest

from poolformer_dense.config.preflight.crops import check_crop

SIZE = 'model.data_preprocessor.size'
RATIO = 'train_dataloader.dataset.pipeline.2.ratio_range'
CROP = 'train_dataloader.dataset.pipeline.3'


@pytest.mark.parametrize(
    ('overrides', 'level', 'said'),
    [
        ({}, None, ''),
        ({SIZE: None, 'model.data_preprocessor.size_divisor': 32}, None, ''),
        ({f'{CROP}.crop_size': 96}, None, ''),
        ({f'{CROP}.crop_size': 96, SIZE: [96, 96]}, None, ''),
        ({SIZE: (512, 512)}, 'WARNING', r'96x96 are padded to .*, 512x512: 96% .*size=\(96,96\)"'),
        ({f'{CROP}.crop_size': (96, 64)}, 'WARNING', r'crops of 96x64 are .* 96x96: 33% of'),
        ({f'{CROP}.crop_size': (200, 200)}, 'ERROR', r'crops of 200x200 exceed .*unequal sizes'),
        ({f'{CROP}.crop_size': (100, 100), RATIO: (1.0, 1.5)}, 'WARNING', 'exc'),
        ({SIZE: None}, 'ERROR', 'neither size nor size_divisor'),
        ({'model.data_preprocessor.size_divisor': 32}, 'ERROR', 'both size and size_divisor'),
    ],
)
def test_crops_have_the_size_of_a_batch(plan, overrides, level, said):
    found = list(check_crop(plan(overrides)))
    assert [logging.getLevelName(notice.level) for notice in found] == [level] * (level is not None)
    assert all(re.search(said, notice.text) for notice in found), found
    assert not list(check_crop(plan(overrides, ['test'])))


@pytest.mark.parametrize(
    ('step', 'warned'),
    [
        (dict(type='Pad', size=(96, 96)), False),
        (dict(type='Pad', size=(128, 96)), True),
        (dict(type='Resize', scale=(96, 96)), False),  # what comes out is not known
        (dict(type='CenterCrop', crop_size=(64, 96)), True),
        (dict(type='PhotoMetricDistortion'), False),
    ],
)
def test_the_last_step_that_changes_the_size_counts(plan, step, warned):
    assert bool(list(check_crop(plan({}, steps=[step])))) == warned
