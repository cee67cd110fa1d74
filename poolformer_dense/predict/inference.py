"""Predictions of a detector or segmentor for files, by the toolboxes' own inferencers."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS, MODELS
from torch import nn

from backbones import MetaFormer
from backbones.checkpoints import load_weights, read_checkpoint

from ..config.datasets import check_num_classes
from ..errors import UserError

Group = list[tuple[Any, np.ndarray, dict]]


def build_inferencer(
    cfg: Config,
    checkpoint: str,
    device: str | None = None,
    fuse: bool = False,
    unsafe_load: bool = False,
) -> BaseInferencer:
    """Build the toolbox's inferencer for a config, its checkpoint strictly loaded.

    Args:
        cfg: The config, as `config.load.load_config` returns it; it is not changed.
        checkpoint: A file, URL or name, read by `backbones.checkpoints`.
        device: As torch names it; a GPU if there is one.
        fuse: Fold the backbone's norms and layer scales into its weights.
        unsafe_load: Run the code that the checkpoint holds.

    Raises:
        UserError: The device is not there, the config has no inferencer, its classes disagree with
            its heads, or the backbone can't be folded.
        CheckpointError: The checkpoint can't be read or does not fit.
    """
    device = check_device(device)
    cfg = copy.deepcopy(cfg)
    # Nothing is logged: a backend would only make folders.
    cfg.visualizer.vis_backends = []
    if cfg.default_scope == 'mmdet':
        from mmdet.apis import DetInferencer as upstream
    elif cfg.default_scope == 'mmseg':
        from mmseg.apis import MMSegInferencer as upstream
    else:
        raise UserError(f'default_scope={cfg.default_scope!r}: inference is for mmdet and mmseg')

    class StrictInferencer(_StrictLoading, upstream):
        unsafe = unsafe_load

    inferencer = StrictInferencer(cfg, checkpoint, device=device, show_progress=False)
    if fuse:
        fold(inferencer.model)
    return inferencer


def fold(model: nn.Module) -> None:
    """Fold a detector's backbone for inference, in place.

    Raises:
        UserError: It is not one of ours.
    """
    if not isinstance(model.backbone, MetaFormer):
        raise UserError(f'--fuse: the backbone {type(model.backbone).__name__} can not be folded')
    model.backbone.fuse()


def check_device(name: str | None) -> str:
    """Return a device's name, the GPU's or else the CPU's if none is given.

    Raises:
        UserError: There is no such device.
    """
    if name is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'--device {name}: torch can not use it here ({reason})') from error
    return name


class _StrictLoading:
    """In place of an inferencer's own loading, which falls back to the unsafe unpickler."""

    unsafe: bool

    def _init_collate(self, cfg: Config) -> Callable:
        # Upstream comes to the same after a warning about a registry.
        named = 'collate_fn' in cfg.test_dataloader
        return super()._init_collate(cfg) if named else pseudo_collate

    def _init_model(self, cfg: Config, weights: str, device: str = 'cpu') -> nn.Module:
        checkpoint = read_checkpoint(weights, 'cpu', self.unsafe)
        model = MODELS.build(cfg.model)
        model.cfg = cfg
        load_weights(model, checkpoint, source=weights)
        model.dataset_meta = _dataset_meta(cfg, checkpoint)
        return model.to(device).eval().requires_grad_(False)


def _dataset_meta(cfg: Config, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The classes that the checkpoint was trained on, or else the config's, and their colours."""
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True, pipeline=[]))
    own = dataset.metainfo
    saved = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    classes = list(saved.get('classes') or own.get('classes') or [])
    check_num_classes(cfg.model, len(classes), 'the checkpoint' if saved else 'test_dataloader')
    palette = own.get('palette') or saved.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) < len(classes):
        palette = np.random.default_rng(0).integers(0, 256, (len(classes), 3)).tolist()
    return dict(classes=classes, palette=[tuple(colour) for colour in palette[: len(classes)]])


def predict(
    inferencer: BaseInferencer, images: Iterable[tuple[Any, np.ndarray]], batch: int = 1
) -> Iterator[tuple[Any, np.ndarray, Any]]:
    """Predict images in batches; yield key, image and the toolbox's data sample of each.

    A batch holds images that have one size, before and after the pipeline: nothing is padded for
    the sake of a neighbour (which would change PoolFormer's statistics over the whole map), so
    results don't depend on the batch. Images of rare sizes wait, at most 4 batches of them; their
    results come later than their turn.

    Args:
        inferencer: What `build_inferencer` returns.
        images: Keys, and images (H, W, 3), uint8, BGR.
        batch: Images of one forward pass.
    """
    waiting: dict[tuple, Group] = defaultdict(list)
    for key, image in images:
        data = inferencer.pipeline(image)
        size = (*image.shape[:2], *data['inputs'].shape)
        waiting[size].append((key, image, data))
        if len(waiting[size]) == batch:
            yield from _forward(inferencer, waiting.pop(size))
        elif sum(map(len, waiting.values())) >= 4 * batch:
            fullest = max(waiting, key=lambda size: len(waiting[size]))
            yield from _forward(inferencer, waiting.pop(fullest))
    for group in waiting.values():
        yield from _forward(inferencer, group)


def _forward(inferencer: BaseInferencer, group: Group) -> Iterator[tuple[Any, np.ndarray, Any]]:
    samples = inferencer.forward(inferencer.collate_fn([data for _, _, data in group]))
    for (key, image, _), sample in zip(group, samples, strict=True):
        yield key, image, sample.cpu()


def draw(
    inferencer: BaseInferencer, image: np.ndarray, sample: Any, score_thr: float
) -> np.ndarray:
    """Draw a prediction with the toolbox's visualizer.

    Args:
        inferencer: What `build_inferencer` returns.
        image: (H, W, 3), uint8, BGR.
        sample: The prediction for it.
        score_thr: Detections with this score or less are left out.

    Returns:
        (H, W, 3), uint8, BGR.
    """
    threshold = dict(pred_score_thr=score_thr) if 'pred_instances' in sample else {}
    if 'pred_sem_seg' in sample:
        sample = sample.numpy()  # mmseg's visualizer fails on a tensor of one pixel
    rgb = np.ascontiguousarray(image[..., ::-1])
    with warnings.catch_warnings():
        # A box, outline or label that touches the border is no news.
        warnings.filterwarnings('ignore', 'Warning: The (bbox|polygon|text) is out of bounds')
        [picture] = inferencer.visualize([rgb], [sample], return_vis=True, **threshold)
    return np.ascontiguousarray(picture[..., ::-1])
