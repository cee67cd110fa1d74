"""Work directories of trainings that never were, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

from poolformer_dense.measure.evaluation_time import (
    Content,
    generate_detections,
    write_ground_truth,
)
from poolformer_dense.report.hook import ReportHook

# As dumped before the modules that it names were renamed.
CONFIG = """\
custom_imports = dict(imports=['engine.hooks', 'engine.reliability'], allow_failed_imports=False)
custom_hooks = [dict(type='HookThatIsNoMore')]
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


class Images(list):
    """As much of a data set as the hook looks at: its images and classes."""

    def __init__(self, paths: list[Path], classes: list[str]) -> None:
        super().__init__(paths)
        self.metainfo = dict(classes=classes)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(img_id=index + 1, img_path=str(self[index]))


def make_runner(work_dir: Path, metric: Any = None, dataset: Any = None) -> SimpleNamespace:
    """As much of a Runner as the hook looks at, with what it ``told`` its log."""
    told: list[str] = []
    ann_file = work_dir / 'truth.json'
    return SimpleNamespace(
        work_dir=str(work_dir), epoch=1, iter=10, told=told,
        logger=SimpleNamespace(info=told.append, warning=told.append),
        val_loop=SimpleNamespace(evaluator=SimpleNamespace(metrics=[metric])),
        val_dataloader=SimpleNamespace(dataset=dataset),
        cfg=Config(dict(val_evaluator=dict(ann_file=str(ann_file) if ann_file.exists() else None))),
    )  # fmt: skip


def validate(runner: SimpleNamespace, hook: ReportHook, samples: list[Any]) -> dict[str, float]:
    """Do to the metric and the hook what mmengine's loop does in a validation."""
    [metric] = runner.val_loop.evaluator.metrics
    metric.dataset_meta = runner.val_dataloader.dataset.metainfo
    hook.before_val_epoch(runner)
    for index, sample in enumerate(samples):
        as_dict = sample if isinstance(sample, dict) else sample.to_dict()
        metric.process({}, [as_dict])
        hook.after_val_iter(runner, index, outputs=[sample])
    numbers = metric.evaluate(len(samples))
    hook.after_val_epoch(runner, numbers)
    return numbers


def write_detections(
    work_dir: Path, names: list[str], images: int = 6, segm: bool = False
) -> dict[str, float]:
    """Write what `ReportHook` keeps of a detector's validation; returns the metric's numbers."""
    content = Content(images=images, categories=len(names), detections=30)
    truth = write_ground_truth(work_dir / 'truth.json', content, seed=0)
    for category, name in zip(truth['categories'], names, strict=True):
        category['name'] = name
    (work_dir / 'truth.json').write_text(json.dumps(truth))
    cv2.imwrite(str(work_dir / 'picture.jpg'), np.full((480, 640, 3), 90, np.uint8))
    metric = CocoMetric(str(work_dir / 'truth.json'), ['bbox', 'segm'] if segm else ['bbox'])
    runner = make_runner(work_dir, metric, Images([work_dir / 'picture.jpg'] * images, names))
    return validate(runner, ReportHook(), generate_detections(truth, content, seed=0))


def write_label_maps(work_dir: Path, names: list[str]) -> dict[str, float]:
    """Write what `ReportHook` keeps of a segmentor's validation; returns the metric's numbers.

    The two upper rows of each image do not count, and the last class does not occur.
    """
    cv2.imwrite(str(work_dir / 'picture.jpg'), np.full((48, 64, 3), 90, np.uint8))
    samples = []
    for _ in range(3):
        truth = torch.randint(0, len(names) - 1, (1, 48, 64))
        prediction = torch.where(torch.rand(truth.shape) < 0.7, truth, torch.zeros_like(truth))
        truth[:, :2] = 255
        sample = SegDataSample(metainfo=dict(img_path=str(work_dir / 'picture.jpg')))
        sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=truth), PixelData(data=prediction)
        samples.append(sample)
    runner = make_runner(work_dir, IoUMetric(), Images([work_dir / 'picture.jpg'] * 3, names))
    return validate(runner, ReportHook(), samples)
