"""Drawn images with their objects as other tools write them: Pascal VOC's XML, YOLO's text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import yaml

from poolformer_dense.measure.shapes import CLASSES, Scene, draw_scene

Corners = tuple[int, int, int, int]


def voc_box(scene: Scene, i: int) -> Corners:
    """The first and last pixels of a shape, counted from 1: xmin, ymin, xmax, ymax."""
    polygon = scene.polygons[i]
    (x1, y1), (x2, y2) = (polygon.min(0) + 1).astype(int), (polygon.max(0) + 1).astype(int)
    return int(x1), int(y1), int(x2), int(y2)


def voc_xml(name: str, size: tuple[int, int], objects: Sequence[tuple[str, Corners]]) -> str:
    """An annotation file as LabelImg writes it; the objects are names and corners."""
    lines = [
        '<annotation>',
        f'\t<filename>{escape(name)}</filename>',
        f'\t<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>',
    ]
    for kind, box in objects:
        corners = ''.join(
            f'<{corner}>{value}</{corner}>'
            for corner, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True)
        )
        lines += [
            '\t<object>',
            f'\t\t<name>{escape(kind)}</name>',
            '\t\t<truncated>0</truncated><difficult>0</difficult>',
            f'\t\t<bndbox>{corners}</bndbox>',
            '\t</object>',
        ]
    return '\n'.join([*lines, '</annotation>', ''])


def write_voc(root: Path, num_train: int, num_val: int) -> None:
    """Write scenes as ``JPEGImages/``, ``Annotations/`` and ``ImageSets/Main/*.txt``."""
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, (split, count) in enumerate((('train', num_train), ('val', num_val))):
        names = [f'{split}_{n}' for n in range(count)]
        for n, name in enumerate(names):
            scene = draw_scene((0, i, n))
            height, width = scene.image.shape[:2]
            objects = [(CLASSES[label], voc_box(scene, j)) for j, label in enumerate(scene.labels)]
            cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'), scene.image)
            text = voc_xml(f'{name}.jpg', (width, height), objects)
            (root / f'Annotations/{name}.xml').write_text(text)
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')


def yolo_rows(scene: Scene, polygons: bool = False) -> list[str]:
    """The rows of a label file: class, then box or polygon as shares of the image."""
    height, width = scene.image.shape[:2]
    rows = []
    for label, polygon in zip(scene.labels, scene.polygons, strict=True):
        relative = polygon / (width, height)
        low, high = relative.min(0), relative.max(0)
        values = relative.ravel() if polygons else [*(low + high) / 2, *(high - low)]
        rows.append(' '.join([str(label), *(f'{value:.6f}' for value in values)]))
    return rows


def write_yolo(root: Path, num_train: int, num_val: int, polygons: bool = False) -> None:
    """Write scenes as ``images/``, ``labels/`` and ``data.yaml``."""
    for i, (split, count) in enumerate((('train', num_train), ('val', num_val))):
        for folder in ('images', 'labels'):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            scene = draw_scene((0, i, n))
            cv2.imwrite(str(root / f'images/{split}/{split}_{n}.jpg'), scene.image)
            rows = yolo_rows(scene, polygons)
            (root / f'labels/{split}/{split}_{n}.txt').write_text('\n'.join(rows) + '\n')
    content = dict(train='images/train', val='images/val', names=list(CLASSES))
    (root / 'data.yaml').write_text(yaml.safe_dump(content))
