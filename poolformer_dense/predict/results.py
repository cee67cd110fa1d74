"""What is predicted of an image: plain data of numpy arrays, in the image's own pixels."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import UserError
from ..files import replacing
from .drawing import Artist
from .masks import Masks, encode_mask
from .media import Image

if TYPE_CHECKING:
    import supervision

Entry = dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Result(ABC):
    """What all predictions have.

    Attributes:
        image: The image as the model got it, (H, W, 3), uint8, BGR.
        classes: Names of the classes, in the order of the labels.
        path: The file that it was read from, None for an image in memory.
        frame: Of a video its number, from 0.
        artist: Draws it.
    """

    image: Image = field(repr=False)
    classes: Sequence[str] = field(repr=False)
    path: Path | None = None
    frame: int | None = None
    artist: Artist = field(repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""
        height, width = self.image.shape[:2]
        return height, width

    @abstractmethod
    def to_coco(
        self, image_id: int | str = 1, category_ids: Sequence[int] | None = None
    ) -> list[Entry]:
        """Return COCO results; see the subclasses."""

    @abstractmethod
    def to_supervision(self) -> supervision.Detections:
        """Return what the package supervision works on; see the subclasses."""

    @abstractmethod
    def draw(self) -> Image:
        """Return the image with the prediction drawn on it, (H, W, 3), uint8, BGR."""

    def save(self, path: str | Path) -> None:
        """Write the drawn picture, or to a ``.json`` file what `to_coco` returns.

        Args:
            path: The file; folders on the way are made.

        Raises:
            UserError: It can't be written.
        """
        path = Path(path)
        if path.suffix.lower() == '.json':
            write_whole(path, json.dumps(self.to_coco()).encode())
        else:
            write_image(path, self.draw())

    def show(self) -> None:
        """Show the drawn picture: in a notebook below the cell, else in a window."""
        picture = PIL.Image.fromarray(np.ascontiguousarray(self.draw()[..., ::-1]))
        try:
            from IPython.core.getipython import get_ipython
            from IPython.display import display
        except ImportError:
            picture.show()
            return
        if get_ipython() is None:
            picture.show()
        else:
            display(picture)


@dataclass(frozen=True, eq=False, kw_only=True)
class Detections(Result):
    """N objects of an image, the surest first.

    Attributes:
        boxes: (N, 4), float32: x1, y1, x2, y2 in pixels.
        scores: (N,), float32, from 0 to 1.
        labels: (N,), int64, an index into ``classes``.
        masks: N masks (H, W), None of a detector of boxes alone.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: Masks | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def to_coco(
        self, image_id: int | str = 1, category_ids: Sequence[int] | None = None
    ) -> list[Entry]:
        """Return COCO results: boxes x, y, width, height; masks run-length encoded.

        Args:
            image_id: What the entries say of the image.
            category_ids: Of each class its category; numbers from 1 if not given.
        """
        results: list[Entry] = []
        codes = None if self.masks is None else self.masks.encode()
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            result: Entry = dict(
                image_id=image_id,
                category_id=_category(int(self.labels[i]), category_ids),
                bbox=[round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                score=round(float(self.scores[i]), 5),
            )
            if codes is not None:
                result['segmentation'] = _as_text(codes[i])
            results.append(result)
        return results

    def to_supervision(self) -> supervision.Detections:
        """Return supervision's detections, with the names in ``data['class_name']``.

        Raises:
            UserError: supervision is not installed.
        """
        return _import_supervision().Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            mask=None if self.masks is None else np.asarray(self.masks),
            data=dict(class_name=np.array([self.classes[i] for i in self.labels], dtype=str)),
        )

    def draw(self) -> Image:
        """Return the image with boxes, masks, names and scores, (H, W, 3), uint8, BGR."""
        return self.artist.draw_detections(self)


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmentation(Result):
    """A class for each pixel of an image.

    Attributes:
        labels: (H, W), an index into ``classes``; uint8, or uint16 beyond 256 classes.
    """

    labels: NDArray[np.unsignedinteger[Any]]

    def to_coco(
        self, image_id: int | str = 1, category_ids: Sequence[int] | None = None
    ) -> list[Entry]:
        """Return COCO-Stuff's results: of each class that is there its mask, run-length encoded.

        Args:
            image_id: What the entries say of the image.
            category_ids: Of each class its category; numbers from 1 if not given.
        """
        return [
            dict(
                image_id=image_id,
                category_id=_category(int(label), category_ids),
                segmentation=_as_text(encode_mask(self.labels == label)),
            )
            for label in np.unique(self.labels)
        ]

    def to_supervision(self) -> supervision.Detections:
        """Return of each class that is there its mask and the box around it.

        Raises:
            UserError: supervision is not installed.
        """
        package = _import_supervision()
        present = np.unique(self.labels)
        masks = np.stack([self.labels == label for label in present])
        return package.Detections(
            xyxy=package.mask_to_xyxy(masks).astype(np.float32),
            class_id=present.astype(np.int64),
            mask=masks,
            data=dict(class_name=np.array([self.classes[i] for i in present], dtype=str)),
        )

    def draw(self) -> Image:
        """Return the image with the classes' colours over it, (H, W, 3), uint8, BGR."""
        return self.artist.draw_labels(self)


def write_image(path: Path, image: NDArray[Any]) -> None:
    """Write an image in the format of its suffix; folders are made.

    Raises:
        UserError: OpenCV can't write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), image)
    except cv2.error as error:
        raise UserError(f'{path} could not be written: take .jpg or .png') from error
    if not written:
        raise UserError(f'{path} could not be written; is the disk full?')


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


def _category(label: int, category_ids: Sequence[int] | None) -> int:
    return label + 1 if category_ids is None else category_ids[label]


def _as_text(code: Entry) -> Entry:
    return dict(size=[int(v) for v in code['size']], counts=code['counts'].decode())


def _import_supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise UserError('to_supervision needs supervision: pip install supervision') from error
    return supervision
