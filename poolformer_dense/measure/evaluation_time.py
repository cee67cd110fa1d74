"""Generated ground truth and detections, and the time that an evaluator takes for them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet.evaluation
import numpy as np
import torch
from mmengine.logging import MMLogger
from pycocotools import mask as mask_utils

from ..errors import UserError

_OUTLINE = np.linspace(0, 2 * np.pi, 12, endpoint=False)


@dataclass(frozen=True)
class Content:
    """How much is generated; the defaults are of the size of COCO's val2017.

    Attributes:
        images: Number of images, each of 640x480 pixels.
        categories: Number of categories.
        objects: Mean number of objects of an image that has any.
        detections: Number of detections of an image that has any.
        empty: Share of images without an object, and, apart from them, without a detection.
        crowd: Share of objects that are crowd regions.
        scores: Number of different scores; few make many ties.
    """

    images: int = 5000
    categories: int = 80
    objects: float = 7.3
    detections: int = 100
    empty: float = 0.01
    crowd: float = 0.012
    scores: int = 10**6


def write_ground_truth(path: Path, content: Content, seed: int) -> dict[str, Any]:
    """Write a COCO annotation file of ellipses in 640x480 images and return what it holds."""
    rng = np.random.default_rng((seed, 0))
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, content.images + 1):
        count = 0 if rng.random() < content.empty else rng.poisson(content.objects)
        for box in _random_boxes(rng, count):
            [rle] = _masks(box[None])
            crowd = bool(rng.random() < content.crowd)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=int(rng.integers(content.categories)) + 1,
                    bbox=box.tolist(),
                    area=float(mask_utils.area(rle)),
                    iscrowd=int(crowd),
                    segmentation=rle if crowd else [_polygon(box).tolist()],
                )
            )
    truth = dict(
        images=[dict(id=i, width=640, height=480) for i in range(1, content.images + 1)],
        annotations=annotations,
        categories=[dict(id=i, name=f'c{i}') for i in range(1, content.categories + 1)],
    )
    path.write_text(json.dumps(truth))
    return truth


def generate_detections(truth: dict[str, Any], content: Content, seed: int) -> list[dict[str, Any]]:
    """Return detections: objects' boxes displaced more or less, and boxes out of nowhere.

    Returns:
        One data sample an image, as a detector's `test_step` gives it to a metric.
    """
    rng = np.random.default_rng((seed, 1))
    objects: dict[int, list[dict]] = {image['id']: [] for image in truth['images']}
    for annotation in truth['annotations']:
        objects[annotation['image_id']].append(annotation)
    samples = []
    for image_id, found in objects.items():
        count = 0 if rng.random() < content.empty else content.detections
        boxes = _random_boxes(rng, count)
        labels = rng.integers(content.categories, size=count)
        scores = rng.random(count) ** 6
        # Objects are found twice, once well and once badly, most of them in their own category.
        order = rng.permutation(len(found))[: count // 2]
        for i, (place, shift) in enumerate([(o, s) for s in (0.03, 0.2) for o in order]):
            target = found[place]
            box = np.array(target['bbox'])
            boxes[i] = box + rng.normal(0, shift, 4) * np.tile(box[2:], 2)
            if rng.random() < 0.8:
                labels[i] = target['category_id'] - 1
                scores[i] = rng.random() ** (shift / 0.1)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
        scores = np.ceil(scores * content.scores) / content.scores
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        predictions = dict(
            bboxes=torch.from_numpy(corners),
            scores=torch.from_numpy(scores),
            labels=torch.from_numpy(labels),
            masks=_masks(boxes),
        )
        samples.append(dict(img_id=image_id, ori_shape=(480, 640), pred_instances=predictions))
    return samples


def time_evaluator(
    metric_type: str,
    annotations: Path,
    samples: Sequence[dict[str, Any]],
    metric: str,
    **options: Any,
) -> tuple[dict[str, float], float]:
    """Evaluate as the end of a test does, without its printing.

    Args:
        metric_type: CocoMetric or FasterCocoMetric.
        annotations: The annotation file.
        samples: What `generate_detections` returned.
        metric: bbox or segm.
        options: Further arguments of the metric.

    Returns:
        The numbers by name, and the seconds of processor time, of all threads together.

    Raises:
        UserError: The installed mmdet has no such metric.
    """
    upstream = getattr(mmdet.evaluation, metric_type, None)
    if upstream is None:
        raise UserError(f"the installed mmdet has no {metric_type}; the maintained line's has one")
    categories = json.loads(annotations.read_text())['categories']
    # A loop would assign the classes to the metric.
    meta = dict(classes=tuple(category['name'] for category in categories))
    metric_class = type(metric_type, (upstream,), dict(dataset_meta=meta))
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = metric_class(ann_file=str(annotations), metric=metric, **options)
            start = time.process_time()
            evaluator.process({}, samples)
            numbers = evaluator.evaluate(len(samples))
            seconds = time.process_time() - start
    finally:
        logger.setLevel(level)
    return numbers, seconds


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes x, y, w, h in pixels, (count, 4); the areas span COCO's three ranges."""
    sides = np.exp(rng.uniform(np.log(8), np.log(240), (count, 1))) * rng.uniform(
        0.7, 1.4, (count, 2)
    )
    corners = rng.uniform(0, 1, (count, 2)) * ([640, 480] - sides)
    return np.concatenate([corners, sides], axis=1)


def _polygon(box: np.ndarray) -> np.ndarray:
    """Return the ellipse in a box as x0, y0, x1, y1, ..."""
    center, radii = box[:2] + box[2:] / 2, box[2:] / 2
    return (center + radii * np.stack([np.cos(_OUTLINE), np.sin(_OUTLINE)], axis=1)).ravel()


def _masks(boxes: np.ndarray) -> list[dict[str, Any]]:
    """Return the ellipses in boxes as run-length encoded masks with text counts."""
    masks = [mask_utils.frPyObjects([_polygon(box).tolist()], 480, 640)[0] for box in boxes]
    return [mask | {'counts': mask['counts'].decode()} for mask in masks]
