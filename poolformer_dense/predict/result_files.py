"""Predictions as files: pictures, videos, one COCO result file, label maps."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from ..data.decoding import quiet_decoders
from ..errors import UserError
from .label_file import write_label_rows
from .media import Frame, Image, describe_video, distinct_names, is_video, read_sources
from .predictor import Predictor
from .results import Entry, Result, Segmentation, write_image, write_whole
from .tiles import Tiling
from .windows import TiffRows


@dataclass
class CocoWriter:
    """Detections as ``results.json``, and what its numbers stand for as ``images.json``.

    The first is a list of COCO results (boxes x, y, width, height in pixels; masks run-length
    encoded), the second has COCO's ``images`` and ``categories``: together pycocotools loads them.
    Images are numbered from 1 by name and frame, whatever their order of arrival.

    Args:
        folder: Where the two files go.
        classes: Names of the categories, numbered from 1.
    """

    folder: Path
    classes: Sequence[str]
    found: list[tuple[Entry, list[Entry]]] = field(default_factory=list, init=False)

    def add(self, name: Path, found: Result) -> None:
        """Keep the prediction of a file, or of one frame of it; `LabelWriter` needs its name."""
        height, width = found.size
        image = dict(file_name=str(found.path), width=width, height=height)
        image = image if found.frame is None else image | dict(frame=found.frame)
        self.found.append((image, found.to_coco()))

    def close(self) -> None:
        """Write what was kept."""
        self.found.sort(key=lambda entry: (entry[0]['file_name'], entry[0].get('frame', 0)))
        numbered = list(enumerate(self.found, start=1))
        images = [dict(id=number, **image) for number, (image, _) in numbered]
        results = [each | dict(image_id=n) for n, (_, found) in numbered for each in found]
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

    def add(self, name: Path, found: Result) -> None:
        """Write the label map of a file under a name of its own, or that of one frame of it."""
        path = Path(f'{name}.png') if found.frame is None else name / f'{found.frame:06d}.png'
        if isinstance(found, Segmentation):
            write_image(self.folder / 'labels' / path, found.labels)

    def close(self) -> None:
        """Write the classes."""
        write_whole(self.folder / 'classes.json', json.dumps(list(self.classes)).encode())


def infer_files(
    predictor: Predictor,
    paths: Sequence[Path],
    out: Path,
    score_thr: float | None = None,
    batch_size: int = 1,
    pictures: bool = True,
    report: Callable[[str], None] = print,
    tiling: Tiling | None = None,
) -> tuple[int, list[Path]]:
    """Predict images and videos and write everything below a folder, with a progress bar.

    What was predicted when the run is interrupted is written too.

    Args:
        predictor: The model.
        paths: Images and videos.
        out: The folder: ``pictures/``, and what the writers above say.
        score_thr: Detections with this score or less are neither drawn nor written (0.3).
        batch_size: Images of one forward pass.
        pictures: Whether to draw.
        report: Takes one line for each file that can't be read, or of which not all is.
        tiling: Predict in tiles of this kind. Of images that are then read by rows no picture is
            drawn, and label maps are written by rows.

    Returns:
        How many images and frames have a result, and the files that can't be read.
    """
    kind = CocoWriter if predictor.detects else LabelWriter
    writer: CocoWriter | LabelWriter = kind(out, predictor.classes)
    names = dict(zip(paths, distinct_names(paths), strict=True))
    announced = {path: describe_video(path)[0] for path in paths if is_video(path)}
    # Pictures of one size fill batches only while no video comes between.
    ordered = sorted(paths, key=lambda path: path in announced)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    done = 0
    unreadable: list[Path] = []
    with ExitStack() as stack:
        stack.callback(writer.close)
        stack.enter_context(quiet_decoders())
        # A box, outline or label that touches the border is not worth a warning.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings('ignore', 'Warning: The (bbox|polygon|text) is out of bounds')
        film = stack.enter_context(Film(out / 'pictures', names))
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        total = len(paths) - len(announced) + sum(max(n, 1) for n in announced.values())
        task = progress.add_task('predicting', total=total)

        def refuse(path: Path, reason: str) -> None:
            unreadable.append(path)
            report(f'skipped {path}: {reason}')
            progress.advance(task)

        def frames() -> Iterator[Frame]:
            read = dict.fromkeys(announced, 0)
            ahead = 2 * batch_size + 2 if tiling is None else 1
            rows_from = None if tiling is None else tiling.size
            for frame in read_sources(ordered, predictor.decoder, refuse, ahead, rows_from):
                if frame.remark:
                    report(f'note on {frame.path}: {frame.remark}')
                if pictures and isinstance(frame.image, TiffRows):
                    report(f'note on {frame.path}: it is read by rows, so no picture is drawn')
                if frame.path in read:
                    read[frame.path] += 1
                yield frame
            for path, count in read.items():
                if 0 < count < 0.98 * announced[path]:  # some formats only estimate it
                    said = f'{count} of the {announced[path]} frames that it announces'
                    report(f'note on {path}: only {said} can be decoded')

        tiles = None if tiling is None else progress.add_task('tiles of it', total=None)

        def show_tiles(count: int, total: int) -> None:
            if tiles is not None:
                progress.update(tiles, completed=count, total=total)

        def small_frames() -> Iterator[Frame]:
            nonlocal done
            for frame in frames():
                if tiling is None or predictor.detects or not isinstance(frame.image, TiffRows):
                    yield frame
                    continue
                assert frame.path is not None
                rows = predictor.labels_by_rows(frame, batch_size, tiling, show_tiles)
                path = out / 'labels' / f'{names[frame.path]}.png'
                height, width = frame.image.shape[:2]
                write_label_rows(path, rows, (height, width), len(predictor.classes))
                done += 1
                progress.advance(task)

        results = predictor.predict_frames(
            small_frames(), score_thr, batch_size, tiling, show_tiles
        )
        for found in results:
            path = found.path
            assert path is not None
            writer.add(names[path], found)
            drawn = pictures and not isinstance(found.image, TiffRows)
            if drawn and found.frame is None:
                write_image(_picture_path(out, names[path], path.suffix), found.draw())
            elif drawn:
                film.add(path, found.draw())
            done += 1
            progress.advance(task)
    return done, unreadable


class Film:
    """Writes pictures as MP4s, each at the rate of the video that they were; one at a time.

    Args:
        folder: Where they go.
        names: Of each video that of its file, without suffix.
    """

    def __init__(self, folder: Path, names: Mapping[Path, Path]) -> None:
        self.folder, self.names = folder, names
        self.video: Path | None = None
        self.writer: cv2.VideoWriter | None = None

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.release()

    def add(self, video: Path, picture: Image) -> None:
        """Append a picture, (H, W, 3), uint8, BGR, to the film of a video."""
        if video != self.video:
            self.__exit__()
            self.video, self.writer = video, self._start(video, picture.shape[1::-1])
        assert self.writer is not None
        self.writer.write(picture)

    def _start(self, video: Path, size: Sequence[int]) -> cv2.VideoWriter:
        path = self.folder / f'{self.names[video]}.mp4'
        path.parent.mkdir(parents=True, exist_ok=True)
        code = cv2.VideoWriter.fourcc(*'mp4v')
        writer = cv2.VideoWriter(str(path), code, describe_video(video)[1], size)
        if not writer.isOpened():
            raise UserError(f'{path} can not be written: OpenCV has no MP4 encoder here')
        return writer


def _picture_path(out: Path, name: Path, suffix: str) -> Path:
    # OpenCV writes gray into .pgm, and a name that keeps its suffix needs no second one.
    suffix = suffix.lower() if suffix.lower() in ('.jpg', '.jpeg', '.png') else '.png'
    return out / 'pictures' / f'{name}{"" if name.suffix.lower() == suffix else suffix}'
