"""Browsed pictures are of what the pipeline gives, with the labels where the objects are."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from mmengine.runner import set_random_seed

from poolformer_dense.config.browse import draw_samples
from poolformer_dense.config.load import load_config
from poolformer_dense.errors import UserError


@pytest.fixture
def demo(root, shapes):
    def load(name='mask_rcnn', **overrides):
        layout = 'ade' if name == 'fpn' else 'coco'
        overrides = {key.replace('__', '.'): value for key, value in overrides.items()}
        path = root / f'configs/demo/{name}_poolformer_s12.py'
        return load_config(str(path), {'data_root': str(shapes / layout), **overrides})

    return load


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """What the visualizer was given, images (RGB) and labels; it draws them only if asked to."""
    from mmdet.visualization import DetLocalVisualizer
    from mmseg.visualization import SegLocalVisualizer

    def draw(cfg, really=False, **arguments):
        calls = []
        with monkeypatch.context() as patch:
            for visualizer in (DetLocalVisualizer, SegLocalVisualizer):
                original = visualizer.add_datasample

                def record(self, name, image, labels, _original=original, **options):
                    calls.append((image.copy(), labels))
                    if really:
                        _original(self, name, image, labels, **options)

                patch.setattr(visualizer, 'add_datasample', record)
            paths = list(draw_samples(cfg, tmp_path / 'out', **arguments))
        return [(*call, path) for call, path in zip(calls, paths, strict=True)]

    return draw


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _image_of(labels):
    return cv2.imread(labels.img_path)[..., ::-1]


@pytest.mark.parametrize('name', ['retinanet', 'mask_rcnn', 'fpn'])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_pictures_are_written(demo, drawn, tmp_path, name, split):
    samples = drawn(demo(name), really=True, split=split, number=2)
    assert _names(tmp_path / 'out') == sorted(path.name for *_, path in samples)
    assert len({labels.img_path for _, labels, _ in samples}) == 2  # not one image thrice
    for image, labels, path in samples:
        assert Path(labels.img_path).stem in path.stem
        picture = cv2.imread(str(path))[..., ::-1]
        assert picture.shape == image.shape
        assert min(picture.shape[:2]) >= 400
        # Something is drawn, and the image still shows.
        assert 1 < np.abs(picture.astype(int) - image).mean() < 60


def test_more_pictures_than_images_are_the_images(demo, drawn):
    assert len(drawn(demo(), number=99)) == 8


def test_the_seed_decides(demo, tmp_path):
    def draw(folder, seed):
        paths = list(draw_samples(demo(), tmp_path / folder, number=1, seed=seed))
        return {path.name: path.read_bytes() for path in paths}

    assert draw('a', 0) == draw('b', 0)
    assert draw('a', 0) != draw('c', 1)


def test_colours_are_those_of_the_photograph(demo, drawn):
    cfg = demo()
    cfg.train_dataloader.dataset.pipeline[3].prob = 0.0
    for image, labels, _ in drawn(cfg):
        original = _image_of(labels)
        small = cv2.resize(image, original.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - original).mean() < 1


def test_a_model_given_rgb_is_drawn_in_rgb(demo, drawn):
    [(bgr, *_)] = drawn(demo(), number=1)
    cfg = demo(model__data_preprocessor__rgb_to_bgr=True)
    [(rgb, *_)] = drawn(cfg, number=1)
    assert (rgb == bgr[..., ::-1]).all()


def test_boxes_and_masks_follow_the_augmentation(demo, drawn):
    cfg = demo()
    cfg.train_dataloader.dataset.pipeline[3].prob = 1.0
    for image, labels, _ in drawn(cfg):
        assert labels.flip
        height, width = image.shape[:2]
        instances = labels.gt_instances
        assert instances.masks.shape[1:] == (height, width)
        for box, mask in zip(instances.bboxes, instances.masks, strict=True):
            rows, columns = np.nonzero(mask)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box == pytest.approx(around, abs=2 * height / labels.img_shape[0])
            inside, outside = image[mask > 0], image[mask == 0]
            # Shapes are saturated, what is behind them is gray.
            assert np.ptp(inside.mean(0)) > 2 * np.ptp(np.median(outside, 0))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_label_maps_lie_on_their_image(demo, drawn, split):
    for image, labels, _ in drawn(demo('fpn'), split=split, number=2):
        label_map = labels.gt_sem_seg.data[0]
        assert label_map.shape == image.shape[:2]
        spread = np.ptp(image.astype(int), axis=2)
        assert spread[(label_map > 0) & (label_map < 4)].mean() > 2 * spread[label_map == 0].mean()
        if split == 'train':
            assert labels.img_shape == (96, 96)  # cropped


def test_validation_labels_are_of_the_image_on_disk(demo, drawn, shapes):
    cfg = demo()
    cfg.val_dataloader.dataset.pipeline[1].scale = (512, 300)  # not the labels' scale
    truth = json.loads((shapes / 'coco/annotations/instances_val2017.json').read_text())
    for image, labels, _ in drawn(cfg, split='val'):
        original = _image_of(labels)
        factor = image.shape[0] // original.shape[0]
        assert image.shape[:2] == tuple(factor * side for side in original.shape[:2])
        boxes = [
            [x, y, x + w, y + h]
            for a in truth['annotations']
            if a['image_id'] == labels.img_id
            for x, y, w, h in [a['bbox']]
        ]
        assert labels.gt_instances.bboxes / factor == pytest.approx(np.array(boxes), abs=1e-3)


def test_values_beyond_a_byte_are_clipped(demo, drawn):
    cfg = demo()
    distort = dict(type='PhotoMetricDistortion', brightness_delta=250)
    cfg.train_dataloader.dataset.pipeline.insert(3, distort)
    images = [image for image, *_ in drawn(cfg)]
    assert all(image.dtype == np.uint8 for image in images)
    # What overflows wraps around where it is not clipped: some image would be bright and dark.
    assert any(image.max() == 255 for image in images)


@pytest.mark.parametrize('wrapper', ['RepeatDataset', 'MultiImageMixDataset', 'ConcatDataset'])
def test_wrapped_data_sets(demo, drawn, wrapper):
    cfg = demo()
    inner = cfg.train_dataloader.dataset
    if wrapper == 'RepeatDataset':
        cfg.train_dataloader.dataset = dict(type=wrapper, times=2, dataset=inner)
    elif wrapper == 'ConcatDataset':
        cfg.train_dataloader.dataset = dict(type=wrapper, datasets=[inner, inner])
    else:
        inner.pipeline[1].with_mask = False  # which Mosaic can't do
        pack = inner.pipeline.pop()
        mix = [dict(type='Mosaic', img_scale=(128, 128)), pack]
        cfg.train_dataloader.dataset = dict(type=wrapper, dataset=inner, pipeline=mix)
    samples = drawn(cfg, number=99)
    assert len(samples) == (8 if wrapper == 'MultiImageMixDataset' else 16)
    if wrapper == 'MultiImageMixDataset':
        assert all(labels.img_shape == (256, 256) for _, labels, _ in samples)


def test_what_the_network_gets_is_what_is_drawn(demo, drawn):
    cfg = demo('fpn')
    [(image, labels, _)] = drawn(cfg, number=1, seed=3)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    set_random_seed(3)
    sample = dataset[int(np.random.permutation(len(dataset))[0])]
    assert labels.img_path == sample['data_samples'].img_path
    factor = image.shape[0] // 96
    given = torch.from_numpy(image[::factor, ::factor, ::-1].copy()).permute(2, 0, 1)
    assert torch.equal(given, sample['inputs'])


def test_a_split_that_is_not_there(demo, tmp_path):
    cfg = demo()
    cfg.pop('test_dataloader')
    with pytest.raises(UserError, match='no test_dataloader'):
        list(draw_samples(cfg, tmp_path, 'test'))


def test_real_photographs(root, tiny_coco, tmp_path):
    config = str(root / 'configs/mask_rcnn_poolformer_s12.py')
    cfg = load_config(config, {'data_root': str(tiny_coco)})
    for path in draw_samples(cfg, tmp_path, number=1):
        height, width = cv2.imread(str(path)).shape[:2]
        assert max(height, width) <= 1333
        assert min(height, width) <= 800
        assert max(height / 800, width / 800) >= 1
