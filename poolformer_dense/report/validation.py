"""What a validation leaves for the report, in the folder ``validation`` of a work directory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ..files import replacing

SUMMARY = 'summary.json'
_RESULTS = ('bbox', 'segm')
_KEPT_TRUTHS = ('truth.gt.json', 'results.gt.json')
_LABEL_MAP = re.compile(r'[a-z]+_[0-9]+_(truth|prediction)\.png')
# Pictures of each of best, median and worst.
PICTURES = 3


def choose(scores: Sequence[float]) -> dict[str, list[int]]:
    """Return the positions of the best, median and worst scores, `PICTURES` of each at most.

    No position is in two of the three, and each lists its highest score first.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    count = max(1, min(PICTURES, len(order) // 3))
    best, worst, between = order[:count], order[count:][-count:], order[count : len(order) - count]
    start = max(0, (len(between) - count) // 2)
    return {'best': best, 'median': between[start : start + count], 'worst': worst}


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """Return the IoU of each class, NaN where a class does not occur.

    Args:
        confusion: Pixels by true class (rows) and predicted class, (K, K).
    """
    hits = np.diag(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def label_record(sample: Any, classes: int, ignore_index: int) -> dict[str, Any]:
    """Return what the report needs of one segmented image.

    Args:
        sample: A data sample with ``gt_sem_seg`` and ``pred_sem_seg``, (1, H, W) each.
        classes: Number of classes.
        ignore_index: The label that does not count.

    Returns:
        The image's ``path``; its mean IoU over the classes that occur as ``score``; the cells of
        its confusion matrix that are not zero, as ``cells`` and ``counts``; and both label maps
        as PNG files: ``truth`` and ``prediction``.
    """
    prediction = sample.pred_sem_seg.data.squeeze(0).int()
    truth = sample.gt_sem_seg.data.squeeze(0).to(prediction)
    counted = (truth != ignore_index) & (truth >= 0) & (truth < classes)
    # The last of these cells takes what does not count.
    cell = torch.where(counted, truth * classes + prediction, classes * classes)
    cells = torch.bincount(cell.flatten(), minlength=classes * classes + 1)[:-1].cpu().numpy()
    iou = intersection_over_union(cells.reshape(classes, classes))
    places = np.flatnonzero(cells)
    return dict(
        path=os.path.abspath(sample.img_path),
        score=float(np.nanmean(iou)) if np.isfinite(iou).any() else float('nan'),
        cells=places,
        counts=cells[places],
        truth=_png(truth),
        prediction=_png(prediction),
    )


def keep_label_maps(
    records: Sequence[Mapping[str, Any]], metainfo: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Write the label maps of a few images into a folder, and return the summary.

    The records are those of `label_record`, of every process.
    """
    classes = len(metainfo['classes'])
    confusion = np.zeros(classes * classes, dtype=np.int64)
    for record in records:
        confusion[record['cells']] += record['counts']
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob('*.png'):
        if _LABEL_MAP.fullmatch(old.name):
            old.unlink()
    scored = [record for record in records if np.isfinite(record['score'])]
    pictures = []
    for kind, places in choose([record['score'] for record in scored]).items():
        for number, record in enumerate((scored[place] for place in places), start=1):
            names = {side: f'{kind}_{number}_{side}.png' for side in ('truth', 'prediction')}
            for side, name in names.items():
                (folder / name).write_bytes(record[side])
            pictures.append(dict(kind=kind, image=record['path'], score=record['score'], **names))
    matrix = confusion.reshape(classes, classes).tolist()
    return dict(kind='segmentation', **_names(metainfo), confusion=matrix, pictures=pictures)


def keep_detections(
    records: Sequence[tuple[dict, dict]],
    metric: Any,
    ann_file: str | None,
    dataset: Any,
    folder: Path,
) -> dict[str, Any]:
    """Write detections as COCO result files into a folder, and return the summary.

    Args:
        records: The ``results`` of the metric, of every process: truth and detections of an image.
        metric: A ``CocoMetric`` after it has evaluated.
        ann_file: The annotation file; None if the metric takes ground truth from the data set.
        dataset: For the paths of the images.
        folder: Where the result files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth, found = zip(*records, strict=True)
    prefix = str(folder / 'results')
    files = metric.results2json(found, prefix)
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    return dict(
        kind='detection',
        **_names(dataset.metainfo),
        ann_file=os.path.abspath(ann_file or metric.gt_to_coco_json(truth, prefix)),
        results={kind: files[kind] for kind in ('bbox', 'segm') if kind in metric.metrics},
        images={str(info['img_id']): os.path.abspath(info['img_path']) for info in infos},
    )


def keep_boxes(
    records: Sequence[tuple[str, tuple[dict[str, np.ndarray], list[np.ndarray]]]],
    metainfo: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Write what a ``VOCMetric`` compared as COCO's files into a folder, and return the summary.

    Objects that it ignores become crowds, which COCO's evaluation ignores.

    Args:
        records: For each image, of every process: its path, and the ``results`` of the metric:
            ``bboxes`` (N, 4), ``labels`` (N,), the same of what is ignored, and the detections of
            each class, (M, 5).
        metainfo: The data set's.
        folder: Where the files go.
    """
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (_, (truth, found)) in enumerate(records, start=1):
        for suffix, ignored in (('', 0), ('_ignore', 1)):
            boxes, labels = truth[f'bboxes{suffix}'], truth[f'labels{suffix}']
            for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                width, height = x2 - x1, y2 - y1
                annotations.append(
                    dict(
                        id=len(annotations) + 1, image_id=image, category_id=label + 1,
                        bbox=[x1, y1, width, height], area=width * height, iscrowd=ignored,
                    )
                )  # fmt: skip
        results += (
            dict(image_id=image, category_id=label, bbox=[x1, y1, x2 - x1, y2 - y1], score=score)
            for label, boxes in enumerate(found, start=1)
            for x1, y1, x2, y2, score in boxes.tolist()
        )
    names = _names(metainfo)
    content = dict(
        images=[dict(id=i) for i in range(1, len(records) + 1)],
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(names['classes'], start=1)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = {'truth': folder / 'truth.gt.json', 'bbox': folder / 'results.bbox.json'}
    for kind, written in (('truth', content), ('bbox', results)):
        files[kind].write_text(json.dumps(written))
    return dict(
        kind='detection',
        **names,
        ann_file=str(files['truth']),
        results=dict(bbox=str(files['bbox'])),
        images={str(i): path for i, (path, _) in enumerate(records, start=1)},
    )


def keep_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Write what the report begins with, in one step: an interruption leaves the one before."""
    with replacing(folder / SUMMARY) as file:
        file.write(json.dumps(summary).encode())


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read what `keep_summary` wrote, None if there is nothing.

    The folder may be a stranger's or have been moved: the files that a validation keeps in it are
    looked for there under the names that they are given here, whatever paths the summary has. Only
    the images and an annotation file that are outside are where it says.

    Raises:
        ValueError: It is something else.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text(encoding='utf-8', errors='replace'))
        return _IN_PLACE[summary['kind']](summary, folder)
    except (KeyError, TypeError, AttributeError, RecursionError, IndexError) as error:
        raise ValueError('it is not what a validation leaves') from error


def _detections_in_place(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    given = str(summary['ann_file'])
    kept = [name for name in _KEPT_TRUTHS if os.path.basename(given) == name]
    return (
        summary
        | _named(summary)
        | dict(
            ann_file=str(folder / kept[0]) if kept else given,
            results={
                k: str(folder / f'results.{k}.json') for k in _RESULTS if k in summary['results']
            },
            images={str(k): str(path) for k, path in summary.get('images', {}).items()},
        )
    )


def _label_maps_in_place(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    names = _named(summary)
    confusion = np.array(summary['confusion'], dtype=np.int64)
    if confusion.shape != (len(names['classes']),) * 2 or confusion.min(initial=0) < 0:
        raise ValueError('its confusion matrix does not fit its classes')
    return (
        summary
        | names
        | dict(
            confusion=confusion.tolist(),
            pictures=[_picture(entry) for entry in summary['pictures']],
        )
    )


def _picture(entry: Mapping[str, Any]) -> dict[str, Any]:
    sides = {side: os.path.basename(entry[side]) for side in ('truth', 'prediction')}
    if not all(map(_LABEL_MAP.fullmatch, sides.values())):
        raise ValueError('a name in it is not that of a label map')
    return dict(
        kind=str(entry['kind']), image=str(entry['image']), score=float(entry['score']), **sides
    )


_IN_PLACE = {'detection': _detections_in_place, 'segmentation': _label_maps_in_place}


def _named(summary: Mapping[str, Any]) -> dict[str, Any]:
    palette = summary.get('palette') or None
    if palette and not all(0 <= value < 256 for r, g, b in palette for value in (r, g, b)):
        raise ValueError('its palette is not one of colours')
    return dict(
        classes=list(map(str, summary['classes'])),
        palette=[[int(value) for value in colour] for colour in palette] if palette else None,
    )


def _names(metainfo: Mapping[str, Any]) -> dict[str, Any]:
    palette = metainfo.get('palette')
    return dict(
        classes=list(metainfo['classes']),
        palette=[list(map(int, colour)) for colour in palette] if palette else None,
    )


def _png(labels: torch.Tensor) -> bytes:
    array = labels.cpu().numpy()
    array = array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16)
    # The fastest level: a validation waits for it.
    return cv2.imencode('.png', array, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
