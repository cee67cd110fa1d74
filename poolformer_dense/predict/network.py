"""What computes raw predictions: a torch model here; anything else that does the same will do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseTTAModel
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray

from ..config.walk import type_name
from ..data.decoding import Decoder
from ..errors import UserError
from .blending import Scores, votes
from .masks import Masks
from .media import Image


class Instances(NamedTuple):
    """Objects of an image, in its own pixels, the surest first.

    Attributes:
        boxes: (N, 4), float32: x1, y1, x2, y2.
        scores: (N,), float32.
        labels: (N,), int64.
        masks: N of them, or None.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: Masks | None = None

    def above(self, score_thr: float) -> Instances:
        """Return those with a higher score."""
        above = self.scores > score_thr
        count = int(above.sum())
        # Of sorted ones the first: a view, where masks would be copied.
        kept = slice(count) if above[:count].all() else above
        masks = None if self.masks is None else self.masks[kept]
        return Instances(self.boxes[kept], self.scores[kept], self.labels[kept], masks)


# Of a segmentor (H, W), a label for each of the image's own pixels.
Raw = Instances | NDArray[np.int64]


class Prepared(NamedTuple):
    """An image as a network takes it.

    Attributes:
        size: Images of one size can share a batch.
        data: The network's own.
    """

    size: tuple[int, ...]
    data: Any


class Network(Protocol):
    """Predicts images of one size together; threads may share it."""

    def prepare(self, image: Image) -> Prepared:
        """Take an image (H, W, 3), uint8, BGR."""

    def forward(self, batch: Sequence[Prepared]) -> list[Raw]:
        """Predict images of one size."""


@dataclass(frozen=True)
class TorchNetwork:
    """A toolbox's model with its test pipeline.

    Attributes:
        model: In evaluation mode, on its device.
        pipeline: The config's test pipeline, from ``dict(img=image)``.
        dtype: In which it computes; other than float32 it is autocast, from weights in float32.
    """

    model: Any
    pipeline: Compose
    dtype: torch.dtype = torch.float32

    def prepare(self, image: Image) -> Prepared:
        """As `Network` says; the data are the pipeline's: inputs and a data sample."""
        data = dict(self.pipeline(dict(img=image)))
        # With test-time augmentation there are several.
        inputs = data['inputs'] if isinstance(data['inputs'], list) else [data['inputs']]
        return Prepared((*image.shape[:2], *(n for each in inputs for n in each.shape)), data)

    def forward(self, batch: Sequence[Prepared]) -> list[Raw]:
        """As `Network` says."""
        return [_raw(sample) for sample in self._samples(batch)]

    def scores(self, batch: Sequence[Prepared], classes: int) -> list[Scores]:
        """Score the pixels of images of one size for each of so many classes, (C, H, W), float32.

        Where the model has no scores of its prediction, as with test-time augmentation, its labels
        get the score 1.
        """
        return [self._scores(sample, classes) for sample in self._samples(batch)]

    def _scores(self, sample: BaseDataElement, classes: int) -> Scores:
        logits = sample.get('seg_logits')
        if logits is None or isinstance(self.model, BaseTTAModel) or len(logits.data) != classes:
            return votes(cast('NDArray[np.int64]', _raw(sample)), classes)
        found: Scores = logits.data.float().numpy()
        return found

    def _samples(self, batch: Sequence[Prepared]) -> list[BaseDataElement]:
        # An exported file has none.
        device = next((each.device.type for each in self.model.parameters()), 'cpu')
        cast = torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32)
        with torch.no_grad(), cast:
            samples = self.model.test_step(pseudo_collate([each.data for each in batch]))
        return [sample.cpu() for sample in samples]


def _raw(sample: BaseDataElement) -> Raw:
    if 'pred_sem_seg' in sample:
        labels: NDArray[np.int64] = sample.pred_sem_seg.data[0].numpy()
        return labels
    found = sample.pred_instances.numpy()
    masks = None
    if 'masks' in found:
        height, width = sample.ori_shape[:2]
        masks = Masks(found.masks.astype(bool, copy=False), (height, width))
    return Instances(found.bboxes, found.scores, found.labels, masks)


def steps_in_memory(
    steps: Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], Decoder]:
    """Return a test pipeline that takes the image itself, and no annotations; and its decoder.

    Raises:
        UserError: It does not load images.
    """
    kept: list[dict[str, Any]] = []
    decoder = None
    for step in steps:
        name = type_name(step)
        if name == 'LoadImageFromFile':
            kept.append({**step, 'type': 'LoadImageFromNDArray'})
            decoder = Decoder.of(step)
        elif name == 'TestTimeAug':
            options = [_without_loading(option) for option in step['transforms']]
            kept.append({**step, 'transforms': [option for option in options if option]})
        else:
            kept += _without_loading([step])
    if decoder is None:
        raise UserError(
            'test_dataloader.dataset.pipeline has no LoadImageFromFile: predictions start from '
            'images; add it as the first step'
        )
    return kept, decoder


def _without_loading(steps: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(step) for step in steps if not type_name(step).startswith('Load')]
