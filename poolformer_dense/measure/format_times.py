"""A whole detector or segmentor in each format, from the image to the result, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.table import Table

from ..errors import UserError
from ..exporting.exporter import calibration_images, quantize_file, write_export
from ..predict.media import Image
from ..predict.predictor import Predictor, load_predictor
from .shapes import draw_scene

FORMATS = ('reference', 'torch', 'compile', 'onnx', 'openvino', 'openvino-int8')


@dataclass(frozen=True)
class FormatRow:
    """What was measured of a format.

    Attributes:
        name: Of `FORMATS`.
        seconds: Of each round, one image each.
        megabytes: Of its weights on disk; 0 for a model in memory.
    """

    name: str
    seconds: tuple[float, ...]
    megabytes: float

    @property
    def latency(self) -> float:
        """The median, in milliseconds."""
        return 1000 * statistics.median(self.seconds)


def compare_formats(
    cfg: Config,
    checkpoint: str,
    formats: Sequence[str],
    folder: Path,
    rounds: int = 10,
    calibration: str = 'train',
) -> list[FormatRow]:
    """Time formats in turns, after a round to warm up, on the CPU.

    Args:
        cfg: The config.
        checkpoint: Its checkpoint.
        formats: Of `FORMATS`.
        folder: Where exported files go.
        rounds: Of measurement.
        calibration: Images for 8-bit integers, as for tools/export.py.

    Raises:
        UserError: A format is unknown, or what it needs is missing.
    """
    if unknown := set(formats) - set(FORMATS):
        raise UserError(f'--formats {min(unknown)}: it is none of {", ".join(FORMATS)}')
    image = draw_scene((5,), 640, 480).image
    runs: dict[str, Callable[[Image], Any]] = {}
    sizes: dict[str, float] = {}
    for name in formats:
        predictor, sizes[name] = _make(name, cfg, checkpoint, folder, calibration)
        runs[name] = lambda image, predictor=predictor: list(predictor.predict(image))  # type: ignore[misc]
        runs[name](image)
    seconds: dict[str, list[float]] = {name: [] for name in formats}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(image)
            seconds[name].append(time.perf_counter() - start)
    return [FormatRow(name, tuple(seconds[name]), sizes[name]) for name in formats]


def format_table(rows: Sequence[FormatRow]) -> Table:
    """Return what was measured as a table; the first row is what others are compared with."""
    table = Table('format', 'ms an image', 'images a second', f'times {rows[0].name}', 'MB on disk')
    for row in rows:
        ratio = rows[0].latency / row.latency
        size = f'{row.megabytes:.1f}' if row.megabytes else ''
        table.add_row(
            row.name, f'{row.latency:.1f}', f'{1000 / row.latency:.2f}', f'{ratio:.2f}', size
        )
    return table


def _make(
    name: str, cfg: Config, checkpoint: str, folder: Path, calibration: str
) -> tuple[Predictor, float]:
    """A predictor of a format, and the megabytes of its weights on disk."""
    predictor = load_predictor(cfg, checkpoint, 'cpu', compiled=name == 'compile')
    if name == 'reference':
        predictor.model.backbone.set_backend('reference')
    if name in ('reference', 'torch', 'compile'):
        return predictor, 0.0
    path = folder / f'{name}{".onnx" if name == "onnx" else ".xml"}'
    path.parent.mkdir(parents=True, exist_ok=True)
    one_stage = hasattr(predictor.model, 'bbox_head')
    write_export(predictor, path, None, nms=one_stage)
    if name == 'openvino-int8':
        quantize_file(predictor, path, calibration_images(predictor, calibration, 20))
    weights = path.with_suffix('.bin') if path.suffix == '.xml' else path
    return load_predictor(cfg, str(path)), weights.stat().st_size / 1e6
