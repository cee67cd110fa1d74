"""A whole detector or segmentor in each format, from the image to the result, in turns."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from mmengine.config import Config
from rich.table import Column, Table

from ...errors import UserError
from ...exporting.exporter import calibration_images, quantize_file, write_export
from ...predict.building import load_predictor
from ...predict.media import Image
from ...predict.predictor import Predictor
from ..shapes import draw_scene

# The peak of a process counts what it was forked from: so that is a small one.
_PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
FORMATS = ('reference', 'torch', 'compile', 'onnx', 'openvino', 'openvino-int8')


@dataclass(frozen=True)
class FormatRow:
    """What was measured of a format.

    Attributes:
        name: Of `FORMATS`.
        file: What to evaluate: the exported file, or the checkpoint.
        seconds: Of each round, one image each.
        memory: Peak MiB of a process that predicts the image once, `infer`.
        megabytes: Of its file; 0 if that is not on this disk.
    """

    name: str
    file: str
    seconds: tuple[float, ...]
    memory: float
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
    folder.mkdir(parents=True, exist_ok=True)
    cfg.dump(str(folder / 'config.py'))
    cv2.imwrite(str(folder / 'image.png'), image)
    runs: dict[str, Callable[[Image], Any]] = {}
    files: dict[str, str] = {}
    for name in formats:
        predictor, files[name] = _make(name, cfg, checkpoint, folder, calibration)
        runs[name] = lambda image, predictor=predictor: list(predictor.predict(image))  # type: ignore[misc]
        runs[name](image)
    seconds: dict[str, list[float]] = {name: [] for name in formats}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(image)
            seconds[name].append(time.perf_counter() - start)
    return [
        FormatRow(
            name, files[name], tuple(seconds[name]), _memory(name, files[name], folder),
            _megabytes(files[name]),
        )
        for name in formats
    ]  # fmt: skip


def format_table(rows: Sequence[FormatRow]) -> Table:
    """Return what was measured as a table; the first row is what others are compared with."""
    table = Table(
        Column('format', no_wrap=True), 'ms an image', Column('min-max', no_wrap=True),
        'images a second', 'times the first', 'MiB at peak', 'MB on disk',
    )  # fmt: skip
    for row in rows:
        ratio = rows[0].latency / row.latency
        low, high = (1000 * end(row.seconds) for end in (min, max))
        table.add_row(
            row.name, f'{row.latency:.1f}', f'{low:.1f}-{high:.1f}', f'{1000 / row.latency:.2f}',
            f'{ratio:.2f}', f'{row.memory:.0f}', f'{row.megabytes:.1f}',
        )  # fmt: skip
    return table


def format_options(name: str) -> dict[str, Any]:
    """What makes a format of a checkpoint when it is evaluated: ``api.evaluate`` takes it."""
    known: dict[str, dict[str, Any]] = {
        'reference': {'model.backbone.backend': 'reference'},
        'compile': {'compiled': True},
    }
    return known.get(name, {})


def _make(
    name: str, cfg: Config, checkpoint: str, folder: Path, calibration: str
) -> tuple[Predictor, str]:
    """A predictor of a format, and its file."""
    predictor = load_predictor(cfg, checkpoint, 'cpu', compiled=name == 'compile')
    if name == 'reference':
        predictor.model.backbone.set_backend('reference')
    if name in ('reference', 'torch', 'compile'):
        return predictor, checkpoint
    path = folder / f'{name}{".onnx" if name == "onnx" else ".xml"}'
    write_export(predictor, path, None, nms=hasattr(predictor.model, 'bbox_head'))
    if name == 'openvino-int8':
        quantize_file(predictor, path, path, calibration_images(predictor, calibration, 20))
    return load_predictor(cfg, str(path)), str(path)


def _memory(name: str, file: str, folder: Path) -> float:
    """Peak MiB of a process that predicts the image."""
    command = [
        sys.executable, '-m', 'poolformer_dense', 'infer', folder / 'config.py', file,
        folder / 'image.png', '--device', 'cpu', '--out', folder / 'predicted',
    ]  # fmt: skip
    command += ['--compile'] if name == 'compile' else []
    if name == 'reference':
        command += ['--cfg-options', 'model.backbone.backend=reference']
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    measured = subprocess.run(
        [sys.executable, '-c', _PEAK, *map(str, command)], env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    if measured.returncode:
        lines = measured.stderr.splitlines()
        reason = next(reversed(lines), f'exit code {measured.returncode}')
        raise UserError(f'{name}: the process for its memory ended: {reason}')
    return int(measured.stdout.splitlines()[-1]) / 1024


def _megabytes(file: str) -> float:
    path = Path(file)
    weights = path.with_suffix('.bin') if path.suffix == '.xml' else path
    return weights.stat().st_size / 1e6 if weights.is_file() else 0.0
