"""Pictures of what a network is given: images after augmentation, with their labels drawn in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS
from mmengine.runner import set_random_seed
from mmengine.structures import PixelData
from numpy.typing import NDArray

from ..data.label_order import in_class_order
from ..errors import UserError
from .datasets import check_paths
from .walk import datasets_of

# Names drawn into pictures of fewer pixels cover the objects or can't be read.
_LEGIBLE = 400


def draw_samples(
    cfg: Config, folder: str | Path, split: str = 'train', number: int = 20, seed: int = 0
) -> Iterator[Path]:
    """Draw samples of a data set as its pipeline gives them to the model.

    A training sample is drawn augmented, at the size it has then. The labels of validation and
    test data are those of the image as it is on disk: its picture is brought back to that size.
    What the data preprocessor does to a batch (normalisation, padding) is left out. Pixels of small
    images are repeated, so that the names can be read.

    Args:
        cfg: The config, overrides merged; its toolbox must be importable.
        folder: Where the pictures go: ``<number>_<name of the image>.jpg``.
        split: train, val or test.
        number: How many samples; drawn at random without repetition.
        seed: The same number gives the same pictures.

    Yields:
        Each picture when it is written.

    Raises:
        UserError: The config has no such data, or it is missing.
    """
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        raise UserError(f'the config has no {split}_dataloader; --split takes one that it has')
    for place, source in datasets_of(cfg, split):
        check_paths(cfg, place, source)
        resized_back = _labels_follow_resizing(source.get('pipeline') or [])
    dataset = DATASETS.build(in_class_order(loader.dataset, DATASETS))
    # A visualizer of its own: the config's would also write to its backends.
    visualizer = VISUALIZERS.build(
        {**cfg.visualizer, 'name': 'browse', 'vis_backends': None, 'alpha': 0.6}
    )
    visualizer.dataset_meta = dataset.metainfo
    preprocessor = cfg.model.get('data_preprocessor') or {}
    set_random_seed(seed)
    chosen = np.random.permutation(len(dataset))[:number]
    for count, index in enumerate(chosen.tolist()):
        sample = dataset[index]
        image = _as_rgb(sample['inputs'], preprocessor)
        labels = sample['data_samples']
        if resized_back:
            image = mmcv.imresize(image, labels.ori_shape[1::-1])
        image, labels = _enlarge(image, labels, math.ceil(_LEGIBLE / min(image.shape[:2])))
        path = Path(folder, f'{count:04d}_{Path(labels.img_path).stem}.jpg')
        visualizer.add_datasample(path.stem, image, labels, draw_pred=False, out_file=str(path))
        yield path


def _labels_follow_resizing(pipeline: list[dict[str, Any]]) -> bool:
    """Whether labels are loaded after the image is resized, as in the toolboxes' test pipelines."""
    steps = [step['type'] for step in pipeline]
    before = steps[: steps.index('LoadAnnotations')] if 'LoadAnnotations' in steps else []
    return any('Resize' in str(step) for step in before)


def _as_rgb(inputs: Any, preprocessor: dict[str, Any]) -> NDArray[np.uint8]:
    """Return a (C, H, W) tensor of 0 to 255 as an (H, W, 3) uint8 RGB image."""
    image = np.clip(inputs.numpy().transpose(1, 2, 0), 0, 255).astype(np.uint8)
    # The loaders read BGR; only a model that swaps to BGR itself is given RGB.
    return np.ascontiguousarray(image if preprocessor.get('rgb_to_bgr') else image[..., ::-1])


def _enlarge(image: NDArray[np.uint8], labels: Any, factor: int) -> tuple[NDArray[np.uint8], Any]:
    """Repeat pixels, of the labels too; returns labels as the visualizers take them: arrays."""

    def repeated(array: Any, first_axis: int) -> NDArray[np.uint8]:
        return np.asarray(array).repeat(factor, first_axis).repeat(factor, first_axis + 1)

    if 'gt_sem_seg' in labels:
        labels.gt_sem_seg = PixelData(data=repeated(labels.gt_sem_seg.data, 1))
    if 'gt_instances' in labels:
        instances = labels.gt_instances
        if 'bboxes' in instances:
            boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)  # mmdet's box type
            instances.bboxes = boxes * factor
        if 'masks' in instances:
            instances.masks = repeated(instances.masks.to_ndarray(), 1)
    return repeated(image, 0), labels.numpy()
