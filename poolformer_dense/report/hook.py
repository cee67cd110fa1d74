"""Keeps what the last validation predicted, and writes the report when a training ends."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from .validation import describe_detection, describe_segmentation, label_record, write_summary

# Metrics that write COCO result files when they are given a prefix.
_COCO_METRICS = ('CocoMetric', 'FasterCocoMetric')
# Bytes; the results of COCO's validation set take 72 MB, with masks a few times that.
_ROOM = 1 << 29


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes ``report.html`` into the work directory at the end of a training.

    What each validation predicts is kept in the folder ``validation`` of the work directory, over
    what was there: detections as COCO result files, which the evaluator writes in any case, and of
    segmentations the confusion matrix and a few label maps. A failure is logged and never ends the
    training.

    Args:
        predictions: Keep what is predicted; without it the report lacks what is made from it.
        page: Write the report.
    """

    priority = 'VERY_LOW'  # after logs and checkpoints

    def __init__(self, predictions: bool = True, page: bool = True) -> None:
        self.predictions = predictions
        self.page = page
        self._records: list[dict[str, Any]] = []
        self._failed = False

    def before_val_epoch(self, runner) -> None:
        self._records, self._failed = [], not self.predictions
        if not self.predictions:
            return
        ours, room = str(_folder(runner) / 'results'), _has_room(runner.work_dir)
        for metric in _metrics(runner, _COCO_METRICS):
            if metric.outfile_prefix in (None, ours):
                # It writes there itself, and would end the training where it can't.
                metric.outfile_prefix = ours if room else None
        if not room:
            self._failed = True
            runner.logger.warning('The disk is nearly full: no predictions are kept for the report')

    def after_val_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        metrics = _metrics(runner, ('IoUMetric',))
        if self._failed or not metrics:
            return
        with self._harmless(runner, 'predictions are not kept for the report'):
            classes = len(metrics[0].dataset_meta['classes'])
            self._records += [
                label_record(sample, classes, metrics[0].ignore_index) for sample in outputs
            ]

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if not self.predictions:
            return
        with self._harmless(runner, 'predictions are not kept for the report'):
            dataset = runner.val_dataloader.dataset
            summary = None
            if _metrics(runner, ('IoUMetric',)):
                # Each process takes part, also one whose records failed.
                records = collect_results(self._records, len(dataset), 'cpu')
                if is_main_process():
                    summary = describe_segmentation(records, dataset.metainfo, _folder(runner))
            elif is_main_process():
                found = _metrics(runner, _COCO_METRICS)
                if found and found[0].outfile_prefix:
                    summary = describe_detection(found[0], _evaluators(runner), dataset)
            if summary:
                when = dict(epoch=runner.epoch, iter=runner.iter)
                write_summary(_folder(runner), when | summary)
        self._records = []

    def after_train(self, runner) -> None:
        if not self.page or not is_main_process():
            return
        with self._harmless(runner, 'the report was not written'):
            from .page import write_report  # draws: its imports are not for every process

            path = write_report([Path(runner.work_dir)])
            runner.logger.info(f'Report: {path}')

    @contextlib.contextmanager
    def _harmless(self, runner, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, hours of training are worth more
            self._failed = True
            runner.logger.warning(f'{consequence}: {type(error).__name__}: {error}')


def _folder(runner) -> Path:
    return Path(runner.work_dir, 'validation').absolute()


def _has_room(folder: str) -> bool:
    return shutil.disk_usage(folder).free >= _ROOM


def _metrics(runner, names: Sequence[str]) -> list[Any]:
    return [m for m in runner.val_loop.evaluator.metrics if type(m).__name__ in names]


def _evaluators(runner) -> list[dict[str, Any]]:
    configured = runner.cfg.get('val_evaluator') or []
    return [configured] if isinstance(configured, dict) else list(configured)
