"""An export together with what it is worth: how far the file agrees with the model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..exporting.exporter import (
    calibration_images,
    parity_batches,
    quantize_file,
    read_resized,
    usual_size,
    write_export,
)
from ..exporting.parity import Array, Parity, measure_parity
from ..exporting.program import round_weights
from ..predict.building import fold
from ..predict.media import find_media
from ..predict.predictor import Predictor
from ..runtimes import SMALLEST, SUFFIXES
from ..runtimes.runtime import need
from .shapes import draw_scene

# Long and short sides of the drawn images that a dynamic export is compared on.
DRAWN = ((128, 96), (101, 67), (224, 160), (517, 333), (1088, 800))
DTYPES = ('float32', 'bfloat16')


@dataclass(frozen=True)
class Exported:
    """A file, and how it compares with the model.

    Attributes:
        path: The file.
        parity: With the model, of the weights that the file has.
        rounding: With the model of the float32 weights, if the file has others: what that costs.
        unit: What is compared: detections or pixels.
    """

    path: Path
    parity: Parity
    rounding: Parity | None
    unit: str


def export_compared(
    predictor: Predictor,
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    nms: bool = False,
    paste: bool = False,
    dtype: str = 'float32',
    fuse: bool = False,
    int8: str | None = None,
    calibration_count: int = 64,
    max_drop: float | None = None,
    images: Sequence[str] = (),
) -> Exported:
    """Write an export and compare it; see `poolformer_dense.export`.

    The predictor's model may be changed; it must be on the CPU.

    Raises:
        UserError: An argument is wrong, or the model can't be exported so.
    """
    if size and (dynamic or min(size) < SMALLEST):
        raise UserError(f'--size: at least {SMALLEST} {SMALLEST}, and not with --dynamic')
    if path.suffix not in SUFFIXES.values():
        raise UserError(f'{path}: an export is a {" or a ".join(SUFFIXES.values())} file')
    if dtype not in DTYPES:
        raise UserError(f'dtype={dtype!r}: {" or ".join(DTYPES)}')
    if int8 and path.suffix != '.xml':
        raise UserError('--int8 is for --to openvino, whose files are .xml')
    if max_drop is not None and not int8:
        raise UserError('--max-drop is for --int8')
    if calibration_count < 1:
        raise UserError(f'--calibration-images {calibration_count}: at least 1')
    paths = find_media(images)[0] if images else []
    if int8:
        need('nncf', 'nncf')
        scales = calibration_images(predictor, int8, calibration_count)
    reference = copy.deepcopy(predictor.model)
    if fuse:
        fold(predictor.model)
    fixed = None if dynamic else size or usual_size(predictor)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, path.name) if int8 else path
        graph, run = write_export(predictor, target, fixed, dtype == 'bfloat16', nms, paste)
        if int8:
            run = quantize_file(predictor, target, path, scales, max_drop)

    def compare_with_reference() -> Parity:
        scenes = read_resized(predictor, paths) if paths else _drawn_scenes(fixed)
        return measure_parity(graph, reference, run, parity_batches(scenes, fixed))

    rounding = None
    if dtype == 'bfloat16':
        rounding = compare_with_reference()
        reference = predictor.model
        round_weights(reference)
    unit = 'detections' if predictor.detects else 'pixels'
    return Exported(path, compare_with_reference(), rounding, unit)


def _drawn_scenes(size: tuple[int, int] | None) -> Iterator[Array]:
    sides = DRAWN if size is None else ((max(size), min(size)),) * 3
    for i, each in enumerate(sides):
        yield draw_scene((5, i), *each).image
