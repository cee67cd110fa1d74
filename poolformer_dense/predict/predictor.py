"""A detector or segmentor with its test pipeline, for images in memory."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from numpy.typing import NDArray

from backbones import MetaFormer
from backbones.checkpoints import load_weights, read_checkpoint

from ..config.datasets import check_names, check_num_classes, checkpoint_classes
from ..data.decoding import Decoder
from ..errors import UserError
from .media import Image

Key = TypeVar('Key')


@dataclass(frozen=True)
class Predictor:
    """A model and what belongs to its predictions; `load_predictor` makes one.

    Its methods change neither it nor anything in the process, so threads can share it.

    Attributes:
        cfg: The config.
        model: In evaluation mode, on its device.
        pipeline: The config's test pipeline, from ``dict(img=image)``.
        decoder: How that pipeline decodes files.
        new_visualizer: Makes the visualizer that the config names.
        classes: Names of the classes, in the order of the labels.
        palette: Their colours, RGB.
    """

    cfg: Config
    model: Any
    pipeline: Compose
    decoder: Decoder
    new_visualizer: Callable[[], Visualizer]
    classes: list[str]
    palette: list[tuple[int, ...]]

    @property
    def detects(self) -> bool:
        """Whether it finds objects, rather than a label for each pixel."""
        return bool(self.cfg.default_scope == 'mmdet')

    def prepare(self, image: Image) -> dict[str, Any]:
        """Return the model's input and a data sample for an image (H, W, 3), uint8, BGR."""
        return dict(self.pipeline(dict(img=image)))

    def predict(
        self, images: Iterable[tuple[Key, Image]], batch: int = 1
    ) -> Iterator[tuple[Key, Image, BaseDataElement]]:
        """Predict images in batches; yield key, image and the toolbox's data sample of each.

        A batch holds images of one size, before and after the pipeline: nothing is padded to a
        larger neighbour (which would change PoolFormer's statistics over the whole map), so
        results don't depend on the batch. Images of rare sizes wait, at most 4 batches of them;
        their results come out of order.

        Args:
            images: Keys, and images (H, W, 3), uint8, BGR.
            batch: Images of one forward pass.
        """
        waiting: dict[tuple[int, ...], list[tuple[Key, Image, dict[str, Any]]]]
        waiting = defaultdict(list)
        for key, image in images:
            data = self.prepare(image)
            size = (*image.shape[:2], *data['inputs'].shape)
            waiting[size].append((key, image, data))
            if len(waiting[size]) == batch:
                yield from self._forward(waiting.pop(size))
            elif sum(map(len, waiting.values())) >= 4 * batch:
                fullest = max(waiting, key=lambda size: len(waiting[size]))
                yield from self._forward(waiting.pop(fullest))
        for group in waiting.values():
            yield from self._forward(group)

    def _forward(
        self, group: list[tuple[Key, Image, dict[str, Any]]]
    ) -> Iterator[tuple[Key, Image, BaseDataElement]]:
        with torch.no_grad():
            samples = self.model.test_step(pseudo_collate([data for _, _, data in group]))
        for (key, image, _), sample in zip(group, samples, strict=True):
            yield key, image, sample.cpu()

    def draw(self, image: Image, sample: BaseDataElement, score_thr: float) -> Image:
        """Draw a prediction with the toolbox's visualizer.

        Args:
            image: As `predict` yields it.
            sample: The prediction for it.
            score_thr: Detections with this score or less are left out.

        Returns:
            (H, W, 3), uint8, BGR.
        """
        visualizer = self.new_visualizer()
        visualizer.dataset_meta = dict(classes=self.classes, palette=self.palette)
        threshold = dict(pred_score_thr=score_thr) if self.detects else {}
        if not self.detects:
            sample = sample.numpy()  # mmseg's visualizer fails on a tensor of one pixel
        rgb = np.ascontiguousarray(_in_color(image)[..., ::-1])
        visualizer.add_datasample('prediction', rgb, sample, draw_gt=False, **threshold)
        return np.ascontiguousarray(visualizer.get_image()[..., ::-1])


def _in_color(image: NDArray[Any]) -> Image:
    """Return (H, W, 3), uint8, of an image as any decoder gives it."""
    if image.dtype != np.uint8:
        image = np.interp(image, (image.min(), image.max() + 1e-9), (0, 255)).astype(np.uint8)
    image = image.reshape(*image.shape[:2], -1)
    return image[..., :3] if image.shape[2] > 2 else image[..., :1].repeat(3, axis=2)


def load_predictor(
    cfg: Config,
    checkpoint: str,
    device: str | None = None,
    fuse: bool = False,
    unsafe_load: bool = False,
) -> Predictor:
    """Build the model of a config and load a checkpoint into it, strictly.

    Args:
        cfg: The config, as `config.load.load_config` returns it; it is not changed.
        checkpoint: A file, URL or name, read by `backbones.checkpoints`.
        device: As torch names it; a GPU if there is one.
        fuse: Fold the backbone's norms and layer scales into its weights.
        unsafe_load: Run the code that the checkpoint holds.

    Raises:
        UserError: The device is not there, the config is for neither toolbox or does not load
            images, its classes disagree with its heads, or the backbone can't be folded.
        CheckpointError: The checkpoint can't be read or does not fit.
    """
    device = check_device(device)
    cfg = copy.deepcopy(cfg)
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UserError(f'default_scope={cfg.default_scope!r}: inference is for mmdet and mmseg')
    saved = read_checkpoint(checkpoint, 'cpu', unsafe_load)
    steps, decoder = _steps_in_memory(cfg.test_dataloader.dataset.pipeline)
    with VISUALIZERS.switch_scope_and_registry(cfg.default_scope) as visualizers:
        model = MODELS.build(cfg.model)
        pipeline = Compose(steps)
        dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True, pipeline=[]))
        visualizer = visualizers.get(cfg.visualizer.type)
    load_weights(model, saved, source=checkpoint)
    model.to(device).eval().requires_grad_(False)
    if fuse:
        fold(model)
    classes, palette = _classes(cfg, dataset.metainfo, saved)
    # A backend would log the pictures, and make folders for that.
    other = ('type', '_scope_', 'vis_backends')
    arguments = {k: v for k, v in cfg.visualizer.items() if k not in other}
    new_visualizer = partial(visualizer, **arguments)
    return Predictor(cfg, model, pipeline, decoder, new_visualizer, classes, palette)


def fold(model: Any) -> None:
    """Fold a detector's backbone for inference, in place.

    Raises:
        UserError: It is not one of ours.
    """
    backbone = model.backbone
    if not isinstance(backbone, MetaFormer):
        raise UserError(f'--fuse: the backbone {type(backbone).__name__} can not be folded')
    backbone.fuse()


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


def _steps_in_memory(
    steps: Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], Decoder]:
    """Return a test pipeline that takes the image itself, and no annotations; and its decoder."""
    kept: list[dict[str, Any]] = []
    decoder = None
    for step in steps:
        name = getattr(step['type'], '__name__', step['type']).split('.')[-1]
        if name == 'LoadImageFromFile':
            kept.append({**step, 'type': 'LoadImageFromNDArray'})
            decoder = Decoder.of(step)
        elif not name.startswith('Load'):
            kept.append(dict(step))
    if decoder is None:
        raise UserError(
            'test_dataloader.dataset.pipeline has no LoadImageFromFile: predictions start from '
            'images; add it as the first step'
        )
    return kept, decoder


def _classes(
    cfg: Config, declared: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> tuple[list[str], list[tuple[int, ...]]]:
    """The classes that the checkpoint was trained on, or else the config's, and their colours."""
    classes = checkpoint_classes(checkpoint)
    source = 'the checkpoint' if classes else 'test_dataloader.dataset'
    if not classes:
        check_names(declared.get('classes'), f'{source}.metainfo.classes')
        classes = list(declared.get('classes') or [])
    check_num_classes(cfg.model, len(classes), source)
    saved = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    palette = declared.get('palette') or saved.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) < len(classes):
        palette = np.random.default_rng(0).integers(0, 256, (len(classes), 3)).tolist()
    return classes, [tuple(colour) for colour in palette[: len(classes)]]
