"""Predictions as files: pictures, videos, one COCO result file, label maps."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from ..data.decoding import Unreadable, quiet_decoders
from ..errors import UserError
from ..files import replacing
from .media import (
    Image,
    describe_video,
    distinct_names,
    is_video,
    read_ahead,
    read_video,
)
from .predictor import Predictor

Entry = dict[str, Any]


@dataclass
class CocoWriter:
    """Detections as ``results.json``, and what its numbers stand for as ``images.json``.

    The first is a list of COCO results (boxes x, y, width, height in pixels; masks run-length
    encoded), the second has COCO's ``images`` and ``categories``: together pycocotools loads them.
    Images are numbered from 1 by name and frame, whatever their order of arrival.

    Args:
        folder: Where the two files go.
        classes: Names of the categories, numbered from 1.
        score_thr: Detections with this score or less are left out.
    """

    folder: Path
    classes: Sequence[str]
    score_thr: float
    found: list[tuple[Entry, list[Entry]]] = field(default_factory=list, init=False)

    def add(self, file: str, name: Path, frame: int | None, sample: BaseDataElement) -> None:
        """Keep the prediction of a file, or of one frame of it; `LabelWriter` needs its name."""
        height, width = sample.ori_shape[:2]
        image = dict(file_name=file, width=width, height=height)
        results: list[Entry] = []
        self.found.append((image if frame is None else image | dict(frame=frame), results))
        found = sample.pred_instances
        found = found[found.scores > self.score_thr].numpy()
        masks = found.get('masks')
        for i, (x1, y1, x2, y2) in enumerate(found.bboxes.tolist()):
            result = dict(
                category_id=int(found.labels[i]) + 1,
                bbox=[round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                score=round(float(found.scores[i]), 5),
            )
            if masks is not None:
                code = pycocotools.mask.encode(np.asfortranarray(masks[i].astype(np.uint8)))
                result['segmentation'] = dict(size=code['size'], counts=code['counts'].decode())
            results.append(result)

    def close(self) -> None:
        """Write what was kept."""
        self.found.sort(key=lambda entry: (entry[0]['file_name'], entry[0].get('frame', 0)))
        numbered = list(enumerate(self.found, start=1))
        images = [dict(id=number, **image) for number, (image, _) in numbered]
        results = [dict(image_id=n, **result) for n, (_, found) in numbered for result in found]
        categories = [dict(id=i, name=name) for i, name in enumerate(self.classes, start=1)]
        index = dict(images=images, annotations=[], categories=categories)
        for name, content in (('results.json', results), ('images.json', index)):
            write_whole(self.folder / name, json.dumps(content).encode())


@dataclass
class LabelWriter:
    """Label maps as ``labels/NAME.png`` (one channel; a video's as ``labels/NAME/FRAME.png``).

    ``classes.json`` lists the classes: the first is label 0. Beyond 256 of them the PNGs have 16
    bits.

    Args:
        folder: Where they go.
        classes: Names of the classes.
    """

    folder: Path
    classes: Sequence[str]

    def add(self, file: str, name: Path, frame: int | None, sample: BaseDataElement) -> None:
        """Write the label map of a file under a name of its own, or that of one frame of it."""
        path = Path(f'{name}.png') if frame is None else name / f'{frame:06d}.png'
        labels = sample.pred_sem_seg.data[0].numpy()
        depth = np.uint8 if len(self.classes) <= 256 else np.uint16
        write_image(self.folder / 'labels' / path, labels.astype(depth))

    def close(self) -> None:
        """Write the classes."""
        write_whole(self.folder / 'classes.json', json.dumps(list(self.classes)).encode())


def infer_files(
    predictor: Predictor,
    paths: Sequence[Path],
    out: Path,
    score_thr: float = 0.3,
    batch: int = 1,
    pictures: bool = True,
    report: Callable[[str], None] = print,
) -> tuple[int, list[Path]]:
    """Predict images and videos and write everything below a folder, with a progress bar.

    What was predicted when the run is interrupted is written too.

    Args:
        predictor: The model.
        paths: Images and videos.
        out: The folder: ``pictures/``, and what the writers above say.
        score_thr: Detections with this score or less are neither drawn nor written.
        batch: Images of one forward pass.
        pictures: Whether to draw.
        report: Takes one line for each file that can't be read, or of which not all is.

    Returns:
        How many images and frames have a result, and the files that can't be read.
    """
    writer: CocoWriter | LabelWriter = LabelWriter(out, predictor.classes)
    if predictor.detects:
        writer = CocoWriter(out, predictor.classes, score_thr)
    names = dict(zip(paths, distinct_names(paths), strict=True))
    videos = [path for path in paths if is_video(path)]
    images = [path for path in paths if path not in videos]
    frames = sum(max(describe_video(path)[0], 1) for path in videos)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    done = 0
    unreadable: list[Path] = []
    with ExitStack() as stack:
        stack.callback(writer.close)
        stack.enter_context(quiet_decoders())
        # A box, outline or label that touches the border is not worth a warning.
        warnings.filterwarnings('ignore', 'Warning: The (bbox|polygon|text) is out of bounds')
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        task = progress.add_task('predicting', total=len(images) + frames)

        def refuse(path: Path, error: Unreadable) -> None:
            unreadable.append(path)
            report(f'skipped {path}: {error}')
            progress.advance(task)

        def readable_images() -> Iterator[tuple[Path, Image]]:
            for path, found in read_ahead(images, predictor.decoder, 2 * batch + 2):
                if isinstance(found, Unreadable):
                    refuse(path, found)
                    continue
                if found.remark:
                    report(f'note on {path}: {found.remark}')
                yield path, found.pixels

        for path, image, sample in predictor.predict(readable_images(), batch):
            writer.add(str(path), names[path], None, sample)
            if pictures:
                picture = predictor.draw(image, sample, score_thr)
                write_image(_picture_path(out, names[path], path.suffix), picture)
            done += 1
            progress.advance(task)
        for path in videos:
            stream = enumerate(read_video(path))
            try:
                with VideoWriter(out / 'pictures' / f'{names[path]}.mp4', path) as film:
                    before = done
                    for frame, image, sample in predictor.predict(stream, batch):
                        writer.add(str(path), names[path], frame, sample)
                        if pictures:
                            film.add(predictor.draw(image, sample, score_thr))
                        done += 1
                        progress.advance(task)
                announced = describe_video(path)[0]
                if done - before < 0.98 * announced:  # some formats only estimate it
                    said = f'{done - before} of the {announced} frames that it announces'
                    report(f'note on {path}: only {said} can be decoded')
            except Unreadable as error:
                refuse(path, error)
    return done, unreadable


class VideoWriter:
    """Writes pictures as an MP4 at another video's rate; without pictures, no file.

    Args:
        path: The file to write.
        like: The video whose rate it gets.
    """

    def __init__(self, path: Path, like: Path) -> None:
        self.path = path
        self.rate = describe_video(like)[1]
        self.writer: cv2.VideoWriter | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.release()

    def add(self, picture: Image) -> None:
        """Append a picture, (H, W, 3), uint8, BGR."""
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*'mp4v')
            size = picture.shape[1::-1]
            self.writer = cv2.VideoWriter(str(self.path), code, self.rate, size)
            if not self.writer.isOpened():
                raise UserError(f'{self.path} can not be written: OpenCV has no MP4 encoder here')
        self.writer.write(picture)


def write_image(path: Path, image: Image) -> None:
    """Write an image in the format of its suffix; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise UserError(f'{path} could not be written; is the disk full?')


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


def _picture_path(out: Path, name: Path, suffix: str) -> Path:
    # OpenCV writes gray into .pgm, and a name that keeps its suffix needs no second one.
    suffix = suffix.lower() if suffix.lower() in ('.jpg', '.jpeg', '.png') else '.png'
    return out / 'pictures' / f'{name}{"" if name.suffix.lower() == suffix else suffix}'
