"""A small data set of drawn shapes, in COCO's and ADE20K's layouts, for the demo and the tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('disc', 'square', 'triangle')
# Label maps have a class for what is behind the shapes, after ADE20K's manner: 0 is unlabelled.
SEGMENTATION_CLASSES = ('background', *CLASSES)
_SIDES = {'disc': 28, 'square': 4, 'triangle': 3}
# OpenCV's hue has 180 degrees. Each class keeps to its own: minutes of training suffice then.
_HUES = {'disc': 0, 'square': 110, 'triangle': 55}


@dataclass
class Scene:
    """One drawn image.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        labels: The class of each shape, an index into `CLASSES`.
        polygons: The outline of each shape, (N, 2) in pixels.
    """

    image: np.ndarray
    labels: list[int]
    polygons: list[np.ndarray]


def draw_scene(seed: tuple[int, ...], long_side: int = 128, short_side: int = 96) -> Scene:
    """Draw 2 to 6 shapes, apart from each other, on a noisy background.

    Args:
        seed: The same numbers give the same scene.
        long_side: Pixels of the longer side; half the scenes are upright.
        short_side: Pixels of the shorter side.
    """
    rng = np.random.default_rng(seed)
    width, height = rng.permutation([long_side, short_side]).tolist()
    image = draw_background(rng, width, height)
    labels: list[int] = []
    polygons: list[np.ndarray] = []
    taken = np.zeros((height, width), np.uint8)
    count = rng.integers(2, 7)
    for _ in range(30):
        if len(labels) == count:
            break
        label = int(rng.integers(len(CLASSES)))
        radius = rng.uniform(0.13, 0.26) * short_side
        center = rng.uniform([radius, radius], [width - radius, height - radius])
        polygon = _outline(CLASSES[label], center, radius, rng.uniform(0, 2 * np.pi))
        room = cv2.fillPoly(np.zeros_like(taken), [polygon.astype(np.int32)], 1)
        if (room & taken).any():
            continue
        taken |= cv2.dilate(room, np.ones((5, 5), np.uint8))
        color = _color(CLASSES[label], rng)
        cv2.fillPoly(image, [polygon.astype(np.int32)], color, cv2.LINE_AA)
        labels.append(label)
        polygons.append(polygon)
    return Scene(image, labels, polygons)


def draw_background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw what is behind the shapes: a ramp of a gray and noise, (H, W, 3) uint8."""
    ramp = np.linspace(0, 1, width)[None, :, None] * rng.uniform(-60, 60)
    noise = rng.normal(0, 8, (height, width, 3))
    gray = rng.uniform(60, 190) + rng.uniform(-15, 15, 3)
    return np.clip(gray + ramp + noise, 0, 255).astype(np.uint8)


def write_coco(
    root: str | Path,
    num_train: int,
    num_val: int,
    seed: int = 0,
    categories: Sequence[str] = CLASSES,
) -> None:
    """Write scenes as ``train2017/``, ``val2017/`` and ``annotations/instances_*2017.json``.

    Args:
        root: The folder to write to; made if need be.
        num_train: Images for training.
        num_val: Images for validation.
        seed: The same number gives the same files.
        categories: What the file lists as categories; the shapes are of the first three.
    """
    for split, name, scenes in _splits(num_train, num_val, seed):
        images: list[dict] = []
        annotations: list[dict] = []
        for image_id, scene in enumerate(scenes, start=1):
            file_name = f'{image_id:012d}.jpg'
            _write_image(Path(root, name, file_name), scene.image)
            height, width = scene.image.shape[:2]
            images.append(dict(id=image_id, file_name=file_name, width=width, height=height))
            for label, polygon in zip(scene.labels, scene.polygons, strict=True):
                x, y = polygon.min(0)
                w, h = polygon.max(0) - polygon.min(0)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=image_id,
                        category_id=label + 1,
                        bbox=[round(float(v), 2) for v in (x, y, w, h)],
                        area=round(float(cv2.contourArea(polygon.astype(np.float32))), 2),
                        segmentation=[[round(float(v), 2) for v in polygon.ravel()]],
                        iscrowd=0,
                    )
                )
        content = dict(
            images=images,
            annotations=annotations,
            categories=[dict(id=i, name=name) for i, name in enumerate(categories, start=1)],
        )
        path = Path(root, 'annotations', f'instances_{split}2017.json')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def write_ade20k(root: str | Path, num_train: int, num_val: int, seed: int = 0) -> None:
    """Write scenes as ``images/`` and ``annotations/``, each of ``training/`` and ``validation/``.

    Label maps are PNGs: 0 unlabelled (a strip at the top), 1 background, then the shapes.
    """
    for split, _, scenes in _splits(num_train, num_val, seed):
        folder = {'train': 'training', 'val': 'validation'}[split]
        for number, scene in enumerate(scenes, start=1):
            label_map = np.ones(scene.image.shape[:2], np.uint8)
            for label, polygon in zip(scene.labels, scene.polygons, strict=True):
                cv2.fillPoly(label_map, [polygon.astype(np.int32)], label + 2)
            label_map[:2] = 0
            _write_image(Path(root, 'images', folder, f'{number:08d}.jpg'), scene.image)
            _write_image(Path(root, 'annotations', folder, f'{number:08d}.png'), label_map)


def _outline(shape: str, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    angles = angle + np.linspace(0, 2 * np.pi, _SIDES[shape], endpoint=False)
    return center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _color(shape: str, rng: np.random.Generator) -> list[int]:
    hue = (_HUES[shape] + rng.integers(-12, 13)) % 180
    hsv = np.array([[[hue, rng.integers(130, 256), rng.integers(110, 256)]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist()


def _splits(num_train: int, num_val: int, seed: int) -> Iterator[tuple[str, str, Iterator[Scene]]]:
    for i, (split, count) in enumerate([('train', num_train), ('val', num_val)]):
        yield split, f'{split}2017', (draw_scene((seed, i, n)) for n in range(count))


def _write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f'{path} could not be written')
