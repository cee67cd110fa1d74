"""A detector or segmentor that takes images as users have them and returns plain data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray

from ..config.augmentation import tta_fault
from ..data.decoding import Decoder
from ..errors import UserError
from .batches import in_batches
from .drawing import Artist
from .media import Frame, Image, OnUnreadable, Source, find_media, read_sources
from .network import Instances, Network, Raw, TorchNetwork
from .results import Detections, Result, Segmentation
from .tiles import OVERLAP, Tiling
from .tiling import OnTile, TilePredictor

SCORE_THR = 0.3


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
        meta: What the checkpoint says of its training.
    """

    network: Network
    classes: list[str]
    detects: bool
    decoder: Decoder
    artist: Artist
    cfg: Config
    augmented: Network | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

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
