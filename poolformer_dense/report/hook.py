"""Keeps what the last validation predicted, and writes the report when a training ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..config.walk import evaluators_of
from .validation import (
    keep_boxes,
    keep_detections,
    keep_label_maps,
    keep_summary,
    label_record,
)


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes ``report.html`` into the work directory at the end of a training.

    What each validation predicts is kept in the folder ``validation`` of the work directory, over
    what was there: detections as COCO result files, and of segmentations the confusion matrix and a
    few label maps. A failure is logged and never ends the training.

    Args:
        predictions: Keep what is predicted; without it the report lacks what is made from it.
        page: Write the report.
    """

    priority = 'VERY_LOW'  # after logs and checkpoints

    def __init__(self, predictions: bool = True, page: bool = True) -> None:
        self.predictions = predictions
        self.page = page
        self._records: list[Any] = []
        self._failed = False

    def before_val_epoch(self, runner: Runner) -> None:
        self._records, self._failed = [], False

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        metric = self._metric(runner)
        if metric is None or self._failed or not outputs:
            return
        with self._harmless(runner, 'predictions are not kept for the report'):
            if type(metric).__name__ == 'IoUMetric':
                classes = len(metric.dataset_meta['classes'])
                self._records += [label_record(s, classes, metric.ignore_index) for s in outputs]
            elif type(metric).__name__ == 'VOCMetric':
                paths = (os.path.abspath(sample.img_path) for sample in outputs)
                self._records += zip(paths, metric.results[-len(outputs) :], strict=True)
            else:
                # The metric's own, whose masks are encoded: a second copy would take as much again.
                self._records += metric.results[-len(outputs) :]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        metric = self._metric(runner)
        if metric is None:
            return
        with self._harmless(runner, 'predictions are not kept for the report'):
            dataset = runner.val_dataloader.dataset
            folder = Path(runner.work_dir, 'validation').absolute()
            # Each process takes part, also one whose records failed.
            records = collect_results(self._records, len(dataset), metric.collect_device)
            if records:  # the first process has all, the others none
                if type(metric).__name__ == 'IoUMetric':
                    summary = keep_label_maps(records, dataset.metainfo, folder)
                elif type(metric).__name__ == 'VOCMetric':
                    summary = keep_boxes(records, dataset.metainfo, folder)
                else:
                    summary = keep_detections(records, metric, _ann_file(runner), dataset, folder)
                keep_summary(dict(epoch=runner.epoch, iter=runner.iter) | summary, folder)
        self._records = []

    def after_train(self, runner: Runner) -> None:
        if not self.page or not is_main_process():
            return
        with self._harmless(runner, 'the report was not written'):
            from .page import write_report  # draws: its imports are not for every process

            path = write_report([Path(runner.work_dir)])
            runner.logger.info(f'Report: {path}')

    def _metric(self, runner: Runner) -> Any:
        """Return the first metric whose predictions can be kept, None if there is none."""
        known = ('CocoMetric', 'FasterCocoMetric', 'VOCMetric', 'IoUMetric')
        found = (m for m in runner.val_loop.evaluator.metrics if type(m).__name__ in known)
        return next(found, None) if self.predictions else None

    @contextlib.contextmanager
    def _harmless(self, runner: Runner, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # no failure of a report is worth hours of training
            self._failed = True
            runner.logger.warning(f'{consequence}: {type(error).__name__}: {error}')


def _ann_file(runner: Runner) -> str | None:
    metrics = evaluators_of(runner.cfg, 'val')
    return next((metric['ann_file'] for _, metric in metrics if metric.get('ann_file')), None)
