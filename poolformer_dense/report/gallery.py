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
from mmengine.structures import InstanceData, PixelData

from .scores import SCORE_THRESHOLD, Detections
from .validation import choose

# Longer side of a picture, in pixels; names drawn into smaller ones than the first can't be read.
_SMALLEST, _LARGEST = 360, 720


@dataclass
class Picture:
    """An image of the gallery.

    Attributes:
        kind: best, median or worst.
        name: The image's file name.
        score: Its score.
        truth: Ground truth drawn in, as a data URI.
        truth_text: The same in words.
        prediction: The prediction drawn in, as a data URI.
        prediction_text: The same in words.
    """

    kind: str
    name: str
    score: float
    truth: str
    truth_text: str
    prediction: str
    prediction_text: str


def draw_detections(
    validation: Mapping[str, Any], detections: Detections, scores: Mapping[int, float]
) -> Iterator[Picture]:
    """Draw the images with the best, median and worst scores.

    Args:
        validation: What `describe_detection` returned.
        detections: Boxes, or masks with their boxes.
        scores: Scores by image id.

    Raises:
        FileNotFoundError: An image is not where it was.
    """
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer

    labels = {category: i for i, category in enumerate(detections.categories)}
    visualizer = DetLocalVisualizer(name='report', vis_backends=None, alpha=0.6)
    visualizer.dataset_meta = dict(classes=detections.classes, palette=_palette(validation))
    ids = list(scores)
    for kind, places in choose([scores[i] for i in ids]).items():
        for image_id in (ids[place] for place in places):
            path = validation['images'][str(image_id)]
            image, factor = _read(path)
            drawn, words = [], []
            for side, coco in (('gt', detections.truth), ('pred', detections.found)):
                found = [
                    a
                    for a in coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
                    if a['category_id'] in labels and a.get('score', 1.0) >= SCORE_THRESHOLD
                ]
                sample = DetDataSample()
                instances = _instances(coco, found, labels, factor, detections.kind)
                setattr(sample, f'{side}_instances', instances)
                visualizer.add_datasample(
                    'report', image, sample, draw_gt=side == 'gt', draw_pred=side == 'pred',
                    pred_score_thr=SCORE_THRESHOLD,
                )  # fmt: skip
                drawn.append(_data_uri(visualizer.get_image()))
                counts = Counter(detections.classes[labels[a['category_id']]] for a in found)
                words.append(', '.join(f'{n} {name}' for name, n in counts.items()) or 'no object')
            yield Picture(
                kind, Path(path).name, scores[image_id], drawn[0], words[0], drawn[1], words[1]
            )


def draw_label_maps(validation: Mapping[str, Any], folder: Path) -> Iterator[Picture]:
    """Draw the images whose label maps were kept.

    Args:
        validation: What `describe_segmentation` returned.
        folder: The folder of the label maps.

    Raises:
        FileNotFoundError: An image or a label map is not where it was.
    """
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    classes = validation['classes']
    visualizer = SegLocalVisualizer(name='report', vis_backends=None, alpha=0.6)
    visualizer.dataset_meta = dict(classes=classes, palette=_palette(validation))
    for entry in validation['pictures']:
        image, _ = _read(entry['image'])
        drawn, words = [], []
        for side, name in (('truth', 'gt_sem_seg'), ('prediction', 'pred_sem_seg')):
            labels = cv2.imread(str(folder / entry[side]), cv2.IMREAD_UNCHANGED)
            if labels is None:
                raise FileNotFoundError(f'{folder / entry[side]} is missing or unreadable')
            labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            sample = SegDataSample()
            sample.set_data({name: PixelData(data=torch.from_numpy(labels[None].astype('int64')))})
            visualizer.add_datasample(
                'report', image, sample, draw_gt=side == 'truth', draw_pred=side != 'truth',
                with_labels=False,
            )  # fmt: skip
            drawn.append(_data_uri(visualizer.get_image()))
            words.append(_shares(labels, classes))
        yield Picture(
            entry['kind'], Path(entry['image']).name, entry['score'],
            drawn[0], words[0], drawn[1], words[1],
        )  # fmt: skip


def legend(validation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names and colours of classes in drawn label maps."""
    pairs = zip(validation['classes'], _palette(validation), strict=False)
    return [(name, 'rgb({}, {}, {})'.format(*colour)) for name, colour in pairs]


def _read(path: str) -> tuple[np.ndarray, float]:
    """Return an image in RGB at the size that is drawn, and by what it was enlarged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path} does not exist any more')
    image = mmcv.imread(path, channel_order='rgb')
    longer = max(image.shape[:2])
    factor = min(max(1.0, _SMALLEST / longer), _LARGEST / longer)
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    method = cv2.INTER_NEAREST if factor > 1 else cv2.INTER_AREA
    return cv2.resize(image, size, interpolation=method), factor


def _instances(
    coco: Any, found: Sequence[dict], labels: Mapping[int, int], factor: float, kind: str
) -> InstanceData:
    boxes = np.array([a['bbox'] for a in found], dtype=np.float32).reshape(-1, 4) * factor
    boxes[:, 2:] += boxes[:, :2]
    instances = InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.tensor([labels[a['category_id']] for a in found], dtype=torch.long),
    )
    if all('score' in a for a in found):
        instances.scores = torch.tensor([a['score'] for a in found])
    if kind == 'segm' and found:
        masks = [coco.annToMask(a) for a in found]
        size = tuple(max(1, round(side * factor)) for side in masks[0].shape[::-1])
        masks = [cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) for m in masks]
        instances.masks = np.stack(masks).astype(bool)
    return instances


def _palette(validation: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Return the classes' colours as RGB of 0 to 255, the data set's or colours of the rainbow."""
    classes, palette = validation['classes'], validation.get('palette')
    if not palette or len(palette) < len(classes):
        rainbow = matplotlib.colormaps['hsv'](np.linspace(0, 1, len(classes), endpoint=False))
        palette = (255 * rainbow[:, :3]).astype(int).tolist()
    return [tuple(colour) for colour in palette]


def _shares(labels: np.ndarray, classes: Sequence[str]) -> str:
    counts = np.bincount(labels[labels < len(classes)], minlength=len(classes))
    order = [i for i in np.argsort(-counts).tolist() if counts[i]][:6]
    listed = [f'{classes[i]} {counts[i] / max(1, counts.sum()):.0%}' for i in order]
    return ', '.join(listed) or 'nothing'


def _data_uri(image: np.ndarray) -> str:
    image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return f'data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}'
