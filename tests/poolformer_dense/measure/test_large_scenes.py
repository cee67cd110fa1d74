"""Large scenes: drawn right, and scored as an oracle deserves."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from poolformer_dense.measure.large_scenes import (
    draw_large_scene,
    evaluate_scenes,
    resizing_to,
    ways_of,
)
from poolformer_dense.predict.results import Segmentation
from tests.tiny_models import tiny_config


@pytest.fixture(scope='module')
def scenes():
    return [draw_large_scene((0, n), 300, filled=0.5) for n in range(2)]


def test_objects_have_the_size_that_is_asked_for(scenes):
    sides = [np.ptp(p, axis=0).max() for scene in scenes for p in scene.polygons]
    assert len(sides) > 50
    assert np.median(sides) == pytest.approx(16, abs=6)
    assert all((p >= 0).all() and (p < 300).all() for scene in scenes for p in scene.polygons)


def _oracle(scenes, detects, half=False):
    """Answers with the truth, or with every other object of it."""

    def predict(images, **_):
        for scene in scenes:
            step = 2 if half else 1
            objects = list(zip(scene.labels, scene.polygons, strict=True))[::step]
            boxes = [[*p.min(0), *np.ptp(p, axis=0)] for _, p in objects]
            labels = np.zeros(scene.image.shape[:2], np.int64)
            for label, polygon in objects:
                mask = np.zeros(labels.shape, np.uint8)
                labels[cv2.fillPoly(mask, [polygon.astype(np.int32)], 1) > 0] = label + 1

            def to_coco(image_id, boxes=boxes, objects=objects):
                return [
                    dict(image_id=image_id, category_id=label + 1, bbox=box, score=0.9)
                    for box, (label, _) in zip(boxes, objects, strict=True)
                ]

            if detects:
                yield SimpleNamespace(to_coco=to_coco)
            else:
                yield Segmentation(
                    image=scene.image, classes=(), artist=None, labels=labels.astype(np.uint8)
                )

    return SimpleNamespace(predict=predict, detects=detects)


@pytest.mark.parametrize('detects', [True, False])
def test_the_truth_scores_1_and_half_of_it_less(scenes, detects):
    assert evaluate_scenes(_oracle(scenes, detects), scenes, None) == pytest.approx(1)
    half = evaluate_scenes(_oracle(scenes, detects, half=True), scenes, None)
    assert half == pytest.approx(0.5, abs=0.15)


def test_nothing_scores_0(scenes):
    nothing = SimpleNamespace(detects=True, predict=lambda images, **_: [])
    assert evaluate_scenes(nothing, scenes, 64) == 0


def test_the_ways_differ_in_tiles_and_scale(root):
    tiled, resized, whole = ways_of(4096, 256, 2)
    assert (tiled.tile, tiled.scale) == (256, 512)
    assert (resized.tile, resized.scale) == (None, 512)
    assert (whole.tile, whole.scale) == (None, 4096)
    cfg = tiny_config(root, 'fpn')
    resizing_to(cfg, 512)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (512, 512)
