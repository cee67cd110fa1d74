"""A detector or segmentor that takes images as users have them and returns plain data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS
from numpy.typing import NDArray

from backbones import MetaFormer
from backbones.checkpoints import load_weights, read_checkpoint

from ..config.augmentation import tta_fault, tta_model, tta_pipeline
from ..config.datasets import check_names, check_num_classes, checkpoint_classes
from ..config.preflight.compiler import compiler_fault
from ..data.decoding import Decoder
from ..errors import UserError
from ..runner.compiling import compile_parts
from ..runner.memory_layout import keep_layout
from ..runner.mixed_precision import keep_edges_in_float32
from ..runtimes.exported import ExportedModel, check_task
from ..runtimes.runtime import is_exported
from .batches import in_batches
from .drawing import Artist
from .media import Frame, Image, OnUnreadable, Source, find_media, read_sources
from .network import Instances, Network, Raw, TorchNetwork, steps_in_memory
from .results import Detections, Result, Segmentation
from .tiles import OVERLAP, Tiling
from .tiling import OnTile, TilePredictor

SCORE_THR = 0.3
DTYPES = ('float32', 'bfloat16', 'float16')


@dataclass(frozen=True)
class Predictor:
    """A model and what belongs to its predictions; `poolformer_dense.load` makes one.

    Its methods change neither it nor anything in the process, so threads can share it.

    Attributes:
        network: Computes raw predictions.
        classes: Names of the classes, in the order of the labels.
        detects: Whether it finds objects, rather than a label for each pixel.
        decoder: How files are decoded.
        artist: Draws predictions.
        cfg: The config.
        augmented: Computes predictions with test-time augmentation; None if that is not possible.
    """

    network: Network
    classes: list[str]
    detects: bool
    decoder: Decoder
    artist: Artist
    cfg: Config
    augmented: Network | None = None

    @property
    def model(self) -> Any:
        """The toolbox's model, a torch module."""
        if not isinstance(self.network, TorchNetwork):
            raise UserError(f'{type(self.network).__name__} is no torch model')
        return self.network.model

    def prepare(self, image: Image) -> dict[str, Any]:
        """Return the model's input and a data sample for an image (H, W, 3), uint8, BGR."""
        return dict(self.network.prepare(image).data)

    def predict(
        self,
        images: Source | Iterable[Source],
        score_thr: float | None = None,
        batch_size: int = 1,
        *,
        tile: int | None = None,
        overlap: float = OVERLAP,
        tta: bool = False,
        on_unreadable: OnUnreadable | None = None,
    ) -> Iterator[Result]:
        """Predict images; yield a result for each, in their order, as soon as it is there.

        A batch holds images of one size, before and after the pipeline: nothing is padded to a
        larger neighbour (which would change PoolFormer's statistics over the whole map), so
        results don't depend on the batch. Images of rare sizes wait for others of their size while
        at most 4 batches are read ahead.

        Args:
            images: A path of an image, a video or a folder (with all its subfolders), a pattern
                such as ``shots/**/*.jpg``, an array (H, W, 3) or (B, H, W, 3) of uint8 in the
                order BGR, as OpenCV reads, a PIL image; or any iterable of these, also an endless
                one.
            score_thr: Detections with this score or less are left out (0.3).
            batch_size: Images of one forward pass.
            tile: Predict tiles of so many pixels a side and join what they show; then memory goes
                by a row of tiles, and TIFFs are read by rows if tifffile is installed.
            overlap: The least part of a tile that neighbours have in common. Objects up to that
                size are whole in some tile.
            tta: Predict with test-time augmentation: also smaller, larger and mirrored, joined.
            on_unreadable: Called with the path of a file that can't be read, and the reason; the
                file is left out.

        Yields:
            `Detections` of a detector, `Segmentation` of a segmentor; in pixels of the image.

        Raises:
            UserError: An argument is wrong, a path has no image, a file can't be read and there
                is no ``on_unreadable``, or the model can't be augmented.
        """
        if tta:
            others = dict[str, Any](tile=tile, overlap=overlap, on_unreadable=on_unreadable)
            return self.with_tta().predict(images, score_thr, batch_size, **others)
        tiling = None if tile is None else Tiling(tile, overlap)
        if isinstance(images, (str, Path)):
            find_media([str(images)])  # a wrong path is told at once
        ahead = 2 * batch_size + 2 if tile is None else 1
        frames = read_sources(images, self.decoder, on_unreadable, ahead, tile)
        return self.predict_frames(frames, score_thr, batch_size, tiling)

    def with_tta(self) -> Predictor:
        """Return one that always predicts with test-time augmentation, by the same model.

        Raises:
            UserError: The model predicts masks, or the config augments nothing.
        """
        if self.augmented is None:
            raise UserError(tta_fault(self.cfg) or 'tta: this network has no augmentation')
        return replace(self, network=self.augmented)

    def predict_frames(
        self,
        frames: Iterable[Frame],
        score_thr: float | None = None,
        batch_size: int = 1,
        tiling: Tiling | None = None,
        on_tile: OnTile | None = None,
    ) -> Iterator[Result]:
        """Predict what `read_sources` yields, as `predict` does.

        ``on_tile`` is told how many tiles of an image are done, and of how many.
        """
        if batch_size < 1:
            raise UserError(f'batch_size={batch_size}: at least 1')
        if score_thr is not None and not self.detects:
            raise UserError('score_thr is for detection; label maps have no scores')
        threshold = SCORE_THR if score_thr is None else score_thr
        raw = in_batches(self.network, frames, batch_size)
        if tiling is not None:
            tiles = TilePredictor(self.network, tiling, len(self.classes), batch_size, on_tile)
            raw = ((frame, self._of_tiles(tiles, frame, threshold)) for frame in frames)
        return (self.result_of(frame, found, threshold) for frame, found in raw)

    def labels_by_rows(
        self, frame: Frame, batch_size: int, tiling: Tiling, on_tile: OnTile | None = None
    ) -> Iterator[NDArray[np.int64]]:
        """Yield the labels of an image from top to bottom, (h, W) each, of a segmentor's tiles."""
        return TilePredictor(self.network, tiling, len(self.classes), batch_size, on_tile).label(
            frame.image
        )

    def _of_tiles(self, tiles: TilePredictor, frame: Frame, score_thr: float) -> Raw:
        if self.detects:
            return tiles.detect(frame.image, score_thr)
        # The one array as large as the image; `labels_by_rows` goes without.
        labels = np.empty(frame.image.shape[:2], self._depth)
        top = 0
        for rows in tiles.label(frame.image):
            labels[top : top + len(rows)] = rows
            top += len(rows)
        return cast(Raw, labels)

    @property
    def _depth(self) -> type[np.unsignedinteger[Any]]:
        return np.uint8 if len(self.classes) <= 256 else np.uint16

    def result_of(self, frame: Frame, found: Raw, score_thr: float = SCORE_THR) -> Result:
        """Return what users get of a raw prediction.

        Args:
            frame: The image.
            found: What the network says of it.
            score_thr: Detections with this score or less are left out.
        """
        common: dict[str, Any] = dict(
            image=frame.image,
            classes=self.classes,
            path=frame.path,
            frame=frame.number,
            artist=self.artist,
        )
        if isinstance(found, Instances):
            return Detections(**common, **found.above(score_thr)._asdict())
        return Segmentation(**common, labels=found.astype(self._depth, copy=False))


def load_predictor(
    cfg: Config,
    checkpoint: str,
    device: str | None = None,
    fuse: bool = False,
    unsafe_load: bool = False,
    dtype: str = 'float32',
    compiled: bool = False,
) -> Predictor:
    """Build the model of a config and load a checkpoint into it, strictly.

    Args:
        cfg: The config, as `config.load.load_config` returns it; it is not changed.
        checkpoint: A file, URL or name, read by `backbones.checkpoints`; or an exported file.
        device: As torch names it; a GPU if there is one.
        fuse: Fold the backbone's norms and layer scales into its weights.
        unsafe_load: Run the code that the checkpoint holds.
        dtype: float32, or for autocast bfloat16, on a GPU also float16.
        compiled: Whether by ``torch.compile``; the first images then take longer.

    Raises:
        UserError: The device is not there, or lacks the dtype or a compiler; the config is for
            neither toolbox or does not load images, its classes disagree with its heads, or the
            backbone can't be folded.
        CheckpointError: The checkpoint can't be read or does not fit.
    """
    if is_exported(checkpoint):
        return _load_exported(cfg, checkpoint, device, fuse or compiled, unsafe_load, dtype)
    device = check_device(device)
    if dtype not in DTYPES:
        raise UserError(f'dtype {dtype!r}: it is one of {", ".join(DTYPES)}')
    if dtype == 'float16' and torch.device(device).type == 'cpu':
        raise UserError('dtype float16: on a CPU it is bfloat16 or float32')
    if compiled and (fault := compiler_fault(device)):
        raise UserError(fault)
    cfg = copy.deepcopy(cfg)
    _check_scope(cfg)
    saved = read_checkpoint(checkpoint, 'cpu', unsafe_load)
    steps, decoder = steps_in_memory(cfg.test_dataloader.dataset.pipeline)
    with MODELS.switch_scope_and_registry(cfg.default_scope):
        model = keep_layout(MODELS.build(cfg.model))
        pipeline = Compose(steps)
        dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True, pipeline=[]))
    load_weights(model, saved, source=checkpoint)
    model.to(device).eval().requires_grad_(False)
    if fuse:
        fold(model)
    if dtype != 'float32':
        keep_edges_in_float32(model)
    if compiled:
        compile_parts(model)
    classes = _classes(cfg, dataset.metainfo, saved)
    palette = _palette(len(classes), dataset.metainfo, saved)
    network = TorchNetwork(model, pipeline, getattr(torch, dtype))
    return Predictor(
        network,
        classes,
        cfg.default_scope == 'mmdet',
        decoder,
        Artist.of(cfg, classes, palette),
        cfg,
        _augmented(network, cfg),
    )


def _load_exported(
    cfg: Config, file: str, device: str | None, changed: bool, unsafe_load: bool, dtype: str
) -> Predictor:
    """`load_predictor` of an exported file; it brings its classes with it."""
    if changed or dtype != 'float32' or (device or 'cpu') != 'cpu':
        raise UserError(
            f'{file} is an exported file: it is run as it is, on the CPU; give fuse and dtype to '
            'tools/export.py'
        )
    cfg = copy.deepcopy(cfg)
    _check_scope(cfg)
    steps, decoder = steps_in_memory(cfg.test_dataloader.dataset.pipeline)
    model = ExportedModel(file, unsafe_load).eval()
    check_task(model, file, cfg)
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as datasets:
        pipeline = Compose(steps)
        dataset = datasets.build(dict(cfg.test_dataloader.dataset, lazy_init=True, pipeline=[]))
    classes = list(model.runtime.description['classes'])
    artist = Artist.of(cfg, classes, _palette(len(classes), dataset.metainfo, {}))
    detects = not model.segments
    return Predictor(TorchNetwork(model, pipeline), classes, detects, decoder, artist, cfg)


def _check_scope(cfg: Config) -> None:
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UserError(f'default_scope={cfg.default_scope!r}: inference is for mmdet and mmseg')


def _augmented(network: TorchNetwork, cfg: Config) -> TorchNetwork | None:
    """Return a network that predicts with test-time augmentation by the same model."""
    if tta_fault(cfg):
        return None
    steps, _ = steps_in_memory(tta_pipeline(cfg, cfg.test_dataloader.dataset.pipeline))
    with MODELS.switch_scope_and_registry(cfg.default_scope) as models:
        model = models.build({**tta_model(cfg), 'module': network.model})
        return replace(network, model=model, pipeline=Compose(steps))


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


def _classes(cfg: Config, declared: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> list[str]:
    """The classes that the checkpoint was trained on, or else the config's."""
    classes = checkpoint_classes(checkpoint)
    source = 'the checkpoint' if classes else 'test_dataloader.dataset'
    if not classes:
        check_names(declared.get('classes'), f'{source}.metainfo.classes')
        classes = list(declared.get('classes') or [])
    check_num_classes(cfg.model, len(classes), source)
    return classes


def _palette(
    count: int, declared: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> Sequence[tuple[int, ...]]:
    """The colours of as many classes: the config's, the checkpoint's, or drawn ones."""
    saved = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    palette = declared.get('palette') or saved.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) < count:
        palette = np.random.default_rng(0).integers(0, 256, (count, 3)).tolist()
    return [tuple(colour) for colour in palette[:count]]
