"""Predicted label maps as files, numbered as the data set's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from numpy.typing import NDArray
from PIL import Image


@METRICS.register_module()
class DumpLabelMaps(BaseMetric):
    """Writes each predicted label map as a PNG of one channel; it gives no figures.

    A class has the number that the data set's files have for it: with ``reduce_zero_label`` the
    first class is 1, and where ``metainfo`` takes a part of the classes, they keep their numbers.

    Args:
        folder: Where the PNGs go, named after the images.
        roots: Folders of images, whose subfolders are kept, so that no two maps share a name.
        collect_device: As for mmengine.
    """

    format_only = True

    def __init__(self, folder: str, roots: Sequence[str] = (), collect_device: str = 'cpu') -> None:
        super().__init__(collect_device=collect_device)
        self.folder = Path(folder).absolute()
        self.roots = [os.path.abspath(root) for root in roots]

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Write the label maps of a batch; samples have ``pred_sem_seg`` of (1, H, W)."""
        numbers = file_labels(self.dataset_meta or {})
        for sample in data_samples:
            labels = numbers[sample['pred_sem_seg']['data'][0].cpu().numpy()]
            path = self.folder / self._relative(sample['img_path']).with_suffix('.png')
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
            self.results.append(1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Say how many were written."""
        print_log(f'{len(results)} label maps are in {self.folder}', 'current')
        return {}

    def _relative(self, image: str) -> Path:
        for root in self.roots:
            if os.path.commonpath([root, path := os.path.abspath(image)]) == root:
                return Path(os.path.relpath(path, root))
        return Path(os.path.basename(image))


def file_labels(metainfo: dict[str, Any]) -> NDArray[Any]:
    """Return the number in the data set's files of each label that a model predicts, (N,).

    Args:
        metainfo: Of the data set: classes, reduce_zero_label, and label_map where the classes are
            a part of those that the files number.
    """
    labels = np.arange(max(2, len(metainfo['classes'])))
    for file_label, label in (metainfo.get('label_map') or {}).items():
        if label < len(labels):  # 255 stands for left out
            labels[label] = file_label
    labels = labels + bool(metainfo.get('reduce_zero_label'))
    return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
