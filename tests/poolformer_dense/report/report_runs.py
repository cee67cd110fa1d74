"""Work directories of trainings that never were, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from poolformer_dense.measure.evaluation_time import (
    Content,
    generate_detections,
    write_ground_truth,
)

CONFIG = """\
train_cfg = dict(max_epochs=12)
train_dataloader = dict(batch_size=2)
model = dict(type='RetinaNet', backbone=dict(type='PoolFormer', arch='s12'))
"""
LOG = """\
2026/01/01 00:00:00 - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: linux
    PyTorch compiling details: PyTorch built with:
  - GCC 13.3

Runtime environment:
    seed: 0
    GPU number: 4
------------------------------------------------------------
    not: there
"""


def train_record(step: int, **more: Any) -> dict[str, Any]:
    """A line of the log of figures, ten iterations an epoch."""
    return dict(lr=1e-3, loss=1 / step, time=0.5, iter=step, step=step, epoch=1 + step // 10) | more


def val_record(epoch: int, value: float) -> dict[str, Any]:
    """A line of a validation."""
    return {'coco/bbox_mAP': value, 'time': 0.1, 'data_time': 0.1, 'step': epoch}


def write_session(
    work_dir: Path, records: list[dict], name: str = '20260101_000000', config: str = CONFIG
) -> Path:
    """Write what mmengine writes of one session; returns its folder."""
    folder = work_dir / name
    (folder / 'vis_data').mkdir(parents=True)
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (folder / 'vis_data/scalars.json').write_text(lines)
    (folder / 'vis_data/config.py').write_text(config)
    (folder / f'{name}.log').write_text(LOG)
    return folder


def write_detections(
    work_dir: Path, names: list[str], images: int = 6, segm: bool = False
) -> dict[str, Any]:
    """Write what `ReportHook` keeps of a detector's validation; returns the summary."""
    folder = work_dir / 'validation'
    folder.mkdir(parents=True)
    content = Content(images=images, categories=len(names), detections=30)
    truth_file = folder / 'truth.json'
    truth = write_ground_truth(truth_file, content, seed=0)
    for category, name in zip(truth['categories'], names, strict=True):
        category['name'] = name
    truth_file.write_text(json.dumps(truth))
    results = []
    for sample in generate_detections(truth, content, seed=0):
        found = sample['pred_instances']
        boxes = found['bboxes'].numpy().copy()
        boxes[:, 2:] -= boxes[:, :2]
        for i, box in enumerate(boxes.tolist()):
            results.append(
                dict(
                    image_id=sample['img_id'],
                    bbox=box,
                    score=float(found['scores'][i]),
                    category_id=int(found['labels'][i]) + 1,
                    segmentation=found['masks'][i],
                )
            )
    kinds = ('bbox', 'segm') if segm else ('bbox',)
    files = {kind: folder / f'results.{kind}.json' for kind in kinds}
    for kind, path in files.items():
        skipped = 'segmentation' if kind == 'bbox' else 'none'
        path.write_text(json.dumps([{k: v for k, v in r.items() if k != skipped} for r in results]))
    picture = folder / 'picture.jpg'
    cv2.imwrite(str(picture), np.full((480, 640, 3), 90, np.uint8))
    summary = dict(
        kind='detection', epoch=1, iter=10, classes=names, palette=None,
        ann_file=str(truth_file), results={kind: str(path) for kind, path in files.items()},
        images={str(image['id']): str(picture) for image in truth['images']},
    )  # fmt: skip
    (folder / 'summary.json').write_text(json.dumps(summary))
    return summary


def write_label_maps(work_dir: Path, names: list[str]) -> dict[str, Any]:
    """Write what `ReportHook` keeps of a segmentor's validation; returns the summary."""
    folder = work_dir / 'validation'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / 'picture.jpg'), np.full((48, 64, 3), 90, np.uint8))
    pictures = []
    for kind in ('best', 'median', 'worst'):
        entry = dict(kind=kind, image=str(folder / 'picture.jpg'), score=0.5)
        for side in ('truth', 'prediction'):
            entry[side] = f'{kind}_{side}.png'
            labels = rng.integers(0, len(names), (48, 64)).astype(np.uint8)
            cv2.imwrite(str(folder / entry[side]), labels)
        pictures.append(entry)
    confusion = rng.integers(0, 50, (len(names), len(names))) + 900 * np.eye(len(names), dtype=int)
    summary = dict(
        kind='segmentation', epoch=0, iter=10, classes=names, palette=None,
        confusion=confusion.tolist(), pictures=pictures,
    )  # fmt: skip
    (folder / 'summary.json').write_text(json.dumps(summary))
    return summary
