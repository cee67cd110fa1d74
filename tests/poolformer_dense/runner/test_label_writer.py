"""Label maps that a test writes have the numbers of the data set's own files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from poolformer_dense.runner.label_writer import DumpLabelMaps, file_labels

CLASSES = ('wall', 'floor', 'door')


@pytest.mark.parametrize(
    ('metainfo', 'numbers'),
    [
        (dict(classes=CLASSES), [0, 1, 2]),
        (dict(classes=CLASSES, reduce_zero_label=True), [1, 2, 3]),
        # A data set that numbers wall, floor, door; the config takes door and wall.
        (dict(classes=('door', 'wall'), label_map={0: 1, 1: 255, 2: 0}), [2, 0]),
        (
            dict(classes=('door', 'wall'), label_map={0: 1, 1: 255, 2: 0}, reduce_zero_label=True),
            [3, 1],
        ),
        (dict(classes=('fg',)), [0, 1]),  # one channel and a threshold predict 0 and 1
    ],
)
def test_numbers_of_the_files(metainfo, numbers):
    labels = file_labels(metainfo)
    assert labels.tolist() == numbers
    assert labels.dtype == np.uint8


def test_more_than_255_classes_take_16_bits():
    labels = file_labels(dict(classes=[str(i) for i in range(256)], reduce_zero_label=True))
    assert labels.dtype == np.uint16
    assert labels[-1] == 256


def test_maps_of_equal_names_stay_apart(tmp_path):
    metric = DumpLabelMaps(str(tmp_path / 'out'), roots=[str(tmp_path / 'images')])
    metric.dataset_meta = dict(classes=CLASSES, reduce_zero_label=True)
    for value, name in enumerate(('images/a/1.jpg', 'images/b/1.jpg', 'elsewhere/2.tif')):
        prediction = dict(data=torch.full((1, 3, 4), value))
        metric.process({}, [dict(pred_sem_seg=prediction, img_path=str(tmp_path / name))])
    found = {
        str(path.relative_to(tmp_path / 'out')): np.unique(np.array(Image.open(path))).tolist()
        for path in (tmp_path / 'out').rglob('*.png')
    }
    assert found == {'a/1.png': [1], 'b/1.png': [2], '2.png': [3]}
    assert metric.evaluate(3) == {}
