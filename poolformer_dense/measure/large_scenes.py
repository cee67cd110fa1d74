"""Large drawn scenes with small objects: what tiles find, and the whole image, resized or not."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..config.walk import nodes_of_type
from ..predict.predictor import Predictor
from ..predict.results import Segmentation
from .shapes import CLASSES, SEGMENTATION_CLASSES, Scene, draw_background, draw_scene

# The shapes of `draw_scene` are a quarter to a half of its short side.
_OBJECT = 0.39


class Way(NamedTuple):
    """A way to predict a large image.

    Attributes:
        name: What it is called.
        tile: The side of the tiles, None for the whole image.
        scale: The side that the pipeline resizes to, in pixels.
    """

    name: str
    tile: int | None
    scale: int


def draw_large_scene(
    seed: tuple[int, ...], side: int, small: int = 16, filled: float = 1 / 32
) -> Scene:
    """Draw a square scene with the shapes of some small ones, all on one background.

    Args:
        seed: The same numbers give the same scene.
        side: Pixels of a side.
        small: About the pixels of an object's side.
        filled: The part of the places of small scenes that have one, of 2 to 6 objects.
    """
    rng = np.random.default_rng(seed)
    short = round(small / _OBJECT)
    cell = round(short * 4 / 3)
    image = draw_background(rng, side, side)
    labels: list[int] = []
    polygons: list[np.ndarray] = []
    for y in range(0, side, cell):
        for x in range(0, side, cell):
            if rng.random() >= filled:
                continue
            scene = draw_scene((*seed, y, x), cell, cell)
            part = image[y : y + cell, x : x + cell]
            for label, polygon in zip(scene.labels, scene.polygons, strict=True):
                if (polygon.max(0) < part.shape[1::-1]).all():
                    shape = np.zeros((cell, cell), np.uint8)
                    cv2.fillPoly(shape, [polygon.astype(np.int32)], 1)
                    inside = shape[: part.shape[0], : part.shape[1]] > 0
                    part[inside] = scene.image[: part.shape[0], : part.shape[1]][inside]
                    labels.append(label)
                    polygons.append(polygon + np.array((x, y)))
    return Scene(image, labels, polygons)


def ways_of(side: int, tile: int, enlarge: float) -> list[Way]:
    """Return tiles, enlarged; the image resized to what a tile becomes; and as it is."""
    scale = round(tile * enlarge)
    return [Way('tiled', tile, scale), Way('resized', None, scale), Way('whole', None, side)]


def resizing_to(cfg: Any, scale: int) -> None:
    """Let a config's test pipeline resize to squares of that many pixels, keeping the ratio."""
    for _, step in nodes_of_type(cfg.test_dataloader.dataset.pipeline, 'Resize'):
        step['scale'] = (scale, scale)


def evaluate_scenes(predictor: Predictor, scenes: Sequence[Scene], tile: int | None) -> float:
    """Return AP of a detector's boxes, from 0 to 1, or mIoU of a segmentor.

    Args:
        predictor: Of the classes of `shapes`.
        scenes: Large ones.
        tile: The side of the tiles, None for the whole image.
    """
    images = (scene.image for scene in scenes)
    if predictor.detects:
        found = predictor.predict(images, score_thr=0.0, tile=tile)
        results = [each.to_coco(i) for i, each in enumerate(found, start=1)]
        return _average_precision(scenes, [entry for each in results for entry in each])
    size = len(SEGMENTATION_CLASSES)
    confusion = np.zeros((size, size), np.int64)
    for scene, each in zip(scenes, predictor.predict(images, tile=tile), strict=True):
        truth = np.zeros(scene.image.shape[:2], np.uint8)
        for label, polygon in zip(scene.labels, scene.polygons, strict=True):
            cv2.fillPoly(truth, [polygon.astype(np.int32)], label + 1)
        assert isinstance(each, Segmentation)
        pairs = truth.astype(np.int64) * size + each.labels
        confusion += np.bincount(pairs.ravel(), minlength=size**2).reshape(size, size)
    hits = confusion.diagonal()
    return float((hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean())


def _average_precision(scenes: Sequence[Scene], results: list[dict[str, Any]]) -> float:
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        for label, polygon in zip(scene.labels, scene.polygons, strict=True):
            (x, y), (w, h) = polygon.min(0), np.ptp(polygon, axis=0)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=label + 1,
                    bbox=[float(v) for v in (x, y, w, h)],
                    area=float(w * h),
                    iscrowd=0,
                )
            )
    if not results:
        return 0.0
    # pycocotools prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(
            images=[dict(id=i) for i in range(1, len(scenes) + 1)],
            annotations=annotations,
            categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)],
        )
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), 'bbox')
        # A large image has more objects than COCO's.
        evaluation.params.maxDets = [len(results)] * 3
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())
