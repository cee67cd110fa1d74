"""An exported file in the place of a toolbox's model: evaluated and used in the same way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

from ..errors import UserError
from .outputs import Array, Objects, paste_mask, read_detections
from .runtime import Runtime, open_runtime

# Of a segmentor's maps at the size of the image, which are computed so many at a time.
_CHANNELS_IN_CACHE = 8


@MODELS.register_module()
class ExportedModel(BaseModel):
    """Runs an exported file on what the test pipeline packs, for mmdet's and mmseg's evaluators.

    Args:
        file: What tools/export.py wrote.
        unsafe_load: Let torch run what a ``.pt2`` file holds.

    Raises:
        UserError: The file can't be opened.
    """

    def __init__(self, file: str, unsafe_load: bool = False) -> None:
        super().__init__()
        self.use(open_runtime(Path(file), unsafe_load, needs_labels=False))

    def use(self, runtime: Runtime) -> None:
        """Run another file, or one that is not written yet."""
        self.runtime = runtime
        self.segments = 'nms' not in runtime.description

    def forward(
        self, inputs: Any, data_samples: Any = None, mode: str = 'predict'
    ) -> list[BaseDataElement]:
        """Return the data samples with predictions in pixels of the original images.

        Args:
            inputs: Images, (3, H, W) uint8, BGR, as the test pipeline resized them.
            data_samples: One of each image; it says of which size the original was.
            mode: Only ``predict``.
        """
        assert mode == 'predict'
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, image in enumerate(inputs):
            groups[image.shape].append(i)
        for group in groups.values():
            step = 1 if self.runtime.size else len(group)
            for start in range(0, len(group), step):
                part = group[start : start + step]
                self._predict([inputs[i] for i in part], [data_samples[i] for i in part])
        return list(data_samples)

    def test_step(self, data: Any) -> list[BaseDataElement]:
        """As `forward`, of what a data loader yields."""
        return self.forward(data['inputs'], data['data_samples'])

    val_step = test_step

    def _predict(self, inputs: Sequence[Tensor], samples: Sequence[Any]) -> None:
        images = np.stack([each.flip(0).numpy() for each in inputs])  # (B, 3, H, W), RGB
        resized = images.shape[2:]
        images, size = self._fitted(images)
        found = self.runtime.run(images)
        if self.segments:
            for sample, logits in zip(samples, found['logits'], strict=True):
                labels = self._labels(logits, images.shape[2:], size, sample.ori_shape[:2])
                sample.pred_sem_seg = PixelData(data=labels[None])
            return
        nms = self.runtime.description['nms']
        for sample, each in zip(samples, read_detections(found, nms), strict=True):
            scale = np.array(sample.scale_factor[:2]) * size[::-1] / resized[::-1]
            # In a file of one size boxes may reach into the filling.
            corner = np.tile(np.array(size[::-1], np.float32), 2)
            boxes = each.boxes.clip(0, corner) / np.tile(scale.astype(np.float32), 2)
            sample.pred_instances = InstanceData(
                bboxes=torch.from_numpy(boxes),
                scores=torch.from_numpy(each.scores),
                labels=torch.from_numpy(each.labels.astype(np.int64)),
            )
            if each.masks is not None:
                masks = self._masks(each, boxes, size, sample.ori_shape[:2])
                sample.pred_instances.masks = torch.from_numpy(masks)

    def _fitted(self, images: Array) -> tuple[Array, tuple[int, int]]:
        """Fit images to the one size of a file: make them smaller if need be, and fill up.

        They are filled with the mean colour, which is 0 in the graph, as mmdet's padding is.

        Returns:
            The images, and the height and width that they have now.
        """
        height, width = images.shape[2:]
        size = self.runtime.size
        if size is None or size == (height, width):
            return images, (height, width)
        scale = min(size[0] / height, size[1] / width, 1.0)
        new = (min(size[0], round(height * scale)), min(size[1], round(width * scale)))
        prepared = self.runtime.description['in_graph']
        mean = np.array(prepared['mean'] or [0, 0, 0])[
            :: 1 if prepared['channels'] == 'RGB' else -1
        ]
        fitted = np.empty((*images.shape[:2], *size), np.uint8)
        fitted[:] = mean.round().astype(np.uint8)[:, None, None]
        for image, target in zip(images, fitted, strict=True):
            smaller = cv2.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), (new[1], new[0]))
            target[:, : new[0], : new[1]] = smaller.transpose(2, 0, 1)
        return fitted, new

    def _labels(
        self, logits: Array, padded: Sequence[int], size: tuple[int, int], original: Sequence[int]
    ) -> Tensor:
        """As mmseg computes them: from logits at the size of the input, then of the original."""
        corners = bool(self.runtime.description['align_corners'])
        best = torch.full(tuple(original), -torch.inf)
        labels = torch.zeros(tuple(original), dtype=torch.int64)
        for first in range(0, len(logits), _CHANNELS_IN_CACHE):
            maps = torch.from_numpy(logits[None, first : first + _CHANNELS_IN_CACHE])
            for target in (padded, original):
                maps = F.interpolate(maps, tuple(target), mode='bilinear', align_corners=corners)
                maps = maps[..., : size[0], : size[1]] if target is padded else maps
            found = maps[0].max(0)
            labels = torch.where(found.values > best, found.indices + first, labels)
            best = torch.maximum(best, found.values)
        return labels

    def _masks(
        self, found: Objects, boxes: Array, size: tuple[int, int], original: Sequence[int]
    ) -> Array:
        height, width = original
        masks = np.zeros((len(found), height, width), bool)
        threshold = float(self.runtime.description['mask_threshold'])
        assert found.masks is not None
        for i, mask in enumerate(found.masks):
            if mask.dtype == np.uint8:  # pasted in the graph
                cut = mask[: size[0], : size[1]]
                masks[i] = cv2.resize(cut, (width, height), interpolation=cv2.INTER_NEAREST)
            else:
                masks[i] = paste_mask(mask, boxes[i], (height, width), threshold)
        return masks


def check_task(model: ExportedModel, file: str, cfg: Config) -> None:
    """Refuse a config of another task than a file's.

    Raises:
        UserError: One finds objects, the other segments.
    """
    if model.segments != (cfg.default_scope == 'mmseg'):
        task = 'a segmentor' if model.segments else 'a detector'
        raise UserError(f'{file} is {task}; the config is of {cfg.default_scope}')


def evaluate_exported(cfg: Config, file: str, unsafe_load: bool = False) -> None:
    """Put an exported file in the place of a config's model, for a test.

    Args:
        cfg: The config, which is changed.
        file: What tools/export.py wrote.
        unsafe_load: Let torch run what a ``.pt2`` file holds.

    Raises:
        UserError: The file can't be opened, or has another task or other classes than the config's
            test data.
    """
    model = ExportedModel(file, unsafe_load)
    check_task(model, file, cfg)
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as datasets:
        dataset = datasets.build(dict(cfg.test_dataloader.dataset, lazy_init=True, pipeline=[]))
    own, expected = list(model.runtime.description['classes']), list(dataset.metainfo['classes'])
    if own != expected:
        pairs = zip(own, expected, strict=False)
        first = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        raise UserError(
            f'{file} has {len(own)} classes, test_dataloader.dataset has {len(expected)}'
            + ('' if first is None else f'; number {first} is {own[first]} and {expected[first]}')
        )
    cfg.model = dict(type='ExportedModel', file=file, unsafe_load=unsafe_load)
    cfg.pop('data_preprocessor', None)  # mmengine would give it to the model
    cfg.load_from = None
