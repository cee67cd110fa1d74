"""Validation images with ground truth beside prediction, as data URIs."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import mmcv
import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer

from .scores import DetectionScores
from .validation import choose

# Longer side of a picture, in pixels; names drawn into smaller ones than the first can't be read.
_SMALLEST, _LARGEST = 360, 720


@dataclass
class Picture:
    """An image of the gallery: truth and prediction drawn in, as data URIs, and in words."""

    kind: str  # best, median or worst
    name: str
    score: float
    truth: str
    truth_text: str
    prediction: str
    prediction_text: str


def draw_detections(
    validation: Mapping[str, Any], detections: DetectionScores
) -> Iterator[Picture]:
    """Draw the images with the best, median and worst scores, of what `keep_detections` told.

    Raises:
        FileNotFoundError: An image is not where it was.
    """
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer

    visualizer = DetLocalVisualizer(name='report', vis_backends=None, alpha=0.6)
    visualizer.dataset_meta.update(classes=detections.classes, palette=palette_of(validation))
    ids, scores = list(detections.image_scores), list(detections.image_scores.values())
    for kind, places in choose(scores).items():
        for place in places:
            path = validation['images'][str(ids[place])]
            image, factor = _read(path)
            truth, found = (
                _instances(annotations, detections, factor)
                for annotations in detections.annotations(ids[place])
            )
            sample = DetDataSample(gt_instances=truth, pred_instances=found)
            sides = _draw_sides(visualizer, image, sample, pred_score_thr=0)
            texts = []
            for instances in (truth, found):
                counts = Counter(detections.classes[label] for label in instances.labels.tolist())
                texts.append(', '.join(f'{n} {name}' for name, n in counts.items()) or 'no object')
            yield Picture(
                kind, Path(path).name, scores[place], sides[0], texts[0], sides[1], texts[1]
            )


def draw_label_maps(validation: Mapping[str, Any], folder: Path) -> Iterator[Picture]:
    """Draw the images whose label maps `keep_label_maps` wrote into a folder.

    Raises:
        FileNotFoundError: An image or a label map is not where it was.
    """
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    classes = validation['classes']
    visualizer = SegLocalVisualizer(name='report', vis_backends=None, alpha=0.6)
    visualizer.dataset_meta.update(classes=classes, palette=palette_of(validation))
    for entry in validation['pictures']:
        image, _ = _read(entry['image'])
        maps, texts = [], []
        for side in ('truth', 'prediction'):
            labels = cv2.imread(str(folder / entry[side]), cv2.IMREAD_UNCHANGED)
            if labels is None:
                raise FileNotFoundError(f'{folder / entry[side]} is missing or unreadable')
            labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            maps.append(PixelData(data=torch.from_numpy(labels[None].astype('int64'))))
            texts.append(_shares(labels, classes))
        sample = SegDataSample(gt_sem_seg=maps[0], pred_sem_seg=maps[1])
        sides = _draw_sides(visualizer, image, sample, with_labels=False)
        name = Path(entry['image']).name
        yield Picture(entry['kind'], name, entry['score'], sides[0], texts[0], sides[1], texts[1])


def palette_of(validation: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Return the classes' colours as RGB of 0 to 255, the data set's or colours of the rainbow."""
    classes, palette = validation['classes'], validation.get('palette')
    if not palette or len(palette) < len(classes):
        rainbow = matplotlib.colormaps['hsv'](np.linspace(0, 1, len(classes), endpoint=False))
        palette = (255 * rainbow[:, :3]).astype(int).tolist()
    return [tuple(colour) for colour in palette]


def _read(path: str) -> tuple[np.ndarray, float]:
    """Return an image in RGB at the size that is drawn, and by what it was enlarged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path} does not exist any more')
    image = mmcv.imread(path, channel_order='rgb')
    longer = max(image.shape[:2])
    factor = min(max(1.0, _SMALLEST / longer), _LARGEST / longer)
    method = cv2.INTER_NEAREST if factor > 1 else cv2.INTER_AREA
    return cv2.resize(image, _scaled(image, factor), interpolation=method), factor


def _scaled(image: np.ndarray, factor: float) -> tuple[int, int]:
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return width, height


def _draw_sides(
    visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, **options: Any
) -> list[str]:
    """Draw ground truth and prediction, and return both as data URIs."""
    drawn = []
    for truth in (True, False):
        visualizer.add_datasample(
            'report', image, sample, draw_gt=truth, draw_pred=not truth, **options
        )
        side = cv2.cvtColor(np.ascontiguousarray(visualizer.get_image()), cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode('.jpg', side, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        drawn.append(f'data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}')
    return drawn


def _instances(
    annotations: Sequence[dict[str, Any]], detections: DetectionScores, factor: float
) -> InstanceData:
    boxes = np.array([a['bbox'] for a in annotations], dtype=np.float32).reshape(-1, 4) * factor
    boxes[:, 2:] += boxes[:, :2]
    instances = InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.tensor([detections.label(a) for a in annotations], dtype=torch.long),
    )
    if all('score' in a for a in annotations):
        instances.scores = torch.tensor([a['score'] for a in annotations])
    if detections.kind == 'segm' and annotations:
        masks = [detections.truth.annToMask(a) for a in annotations]
        size = _scaled(masks[0], factor)
        masks = [cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) for m in masks]
        instances.masks = np.stack(masks).astype(bool)
    return instances


def _shares(labels: np.ndarray, classes: Sequence[str]) -> str:
    counts = np.bincount(labels[labels < len(classes)], minlength=len(classes))
    order = [i for i in np.argsort(-counts).tolist() if counts[i]][:6]
    listed = [f'{classes[i]} {counts[i] / max(1, counts.sum()):.0%}' for i in order]
    return ', '.join(listed) or 'nothing'
