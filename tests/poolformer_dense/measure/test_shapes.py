"""The generated data: deterministic, and true to the formats it claims."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from poolformer_dense.measure.shapes import CLASSES, draw_scene, write_coco


@given(seed=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
@settings(max_examples=40)
def test_a_scene_is_its_seed(seed):
    one, two = draw_scene(seed), draw_scene(seed)
    np.testing.assert_array_equal(one.image, two.image)
    assert one.labels == two.labels
    height, width = one.image.shape[:2]
    assert {height, width} == {96, 128}
    assert len(one.labels) == len(one.polygons) >= 1
    for polygon in one.polygons:
        assert polygon.min() >= 0
        assert (polygon.max(0) <= (width, height)).all()


def test_splits_share_no_scene():
    assert not np.array_equal(draw_scene((0, 0, 1)).image, draw_scene((0, 1, 1)).image)


def test_coco_annotations_agree_with_the_pixels(shapes):
    coco = COCO(str(shapes / 'coco/annotations/instances_train2017.json'))
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        image = coco.loadImgs(annotation['image_id'])[0]
        pixels = cv2.imread(str(shapes / 'coco/train2017' / image['file_name']))
        assert pixels.shape[:2] == (image['height'], image['width'])
        mask = coco.annToMask(annotation)
        assert mask.sum() == pytest.approx(annotation['area'], rel=0.1)
        ys, xs = np.nonzero(mask)
        x, y, w, h = annotation['bbox']
        np.testing.assert_allclose((xs.min(), ys.min()), (x, y), atol=1.5)
        np.testing.assert_allclose((xs.max() + 1, ys.max() + 1), (x + w, y + h), atol=1.5)
        inside, outside = pixels[mask > 0].astype(float), pixels[mask == 0].astype(float)
        assert np.abs(inside.mean(0) - outside.mean(0)).max() > 15


def test_ade20k_label_maps_agree_with_the_coco_masks(shapes):
    coco = COCO(str(shapes / 'coco/annotations/instances_val2017.json'))
    maps = sorted((shapes / 'ade/annotations/validation').iterdir())
    assert len(maps) == len(coco.getImgIds())
    for image_id, path in zip(coco.getImgIds(), maps, strict=True):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert labels.ndim == 2
        assert (labels[:2] == 0).all()
        assert set(np.unique(labels)) <= {0, 1, *range(2, 2 + len(CLASSES))}
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            mask = coco.annToMask(annotation).astype(bool)
            mask[:2] = False
            assert (labels[mask] == annotation['category_id'] + 1).mean() > 0.9


def test_two_runs_write_the_same_files(tmp_path):
    for name in ('a', 'b'):
        write_coco(tmp_path / name, num_train=2, num_val=1)
    files = sorted(p.relative_to(tmp_path / 'a') for p in (tmp_path / 'a').rglob('*.*'))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / 'a' / file).read_bytes() == (tmp_path / 'b' / file).read_bytes()
