"""From a model to a file, and the images that the file is compared on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from backbones.version import __version__

from ..data.decoding import Unreadable, read_image
from ..errors import UserError
from ..predict.predictor import Predictor
from ..runtimes.outputs import Array
from ..runtimes.runtime import Run
from .base import Graph
from .graphs import LabelGraph, build_graph, describe_nms
from .program import store_in_bfloat16, trace, write_program


def write_export(
    predictor: Predictor,
    path: Path,
    size: tuple[int, int] | None,
    bfloat16: bool = False,
    nms: bool = False,
    paste: bool = False,
) -> tuple[Graph, Run]:
    """Write an export; return its graph, and a function that runs the file.

    Args:
        predictor: The model, on the CPU.
        path: The file to write: ``.onnx``, or ``.pt2`` for a program of torch.export.
        size: Height and width of the image; None leaves them and the batch open.
        bfloat16: Store weights in bfloat16.
        nms: Apply NMS to the boxes of a detector of one stage.
        paste: Masks at the size of the image.

    Raises:
        UserError: The model can't be exported so.
    """
    if nms and not predictor.detects:
        raise UserError('--nms is for detectors')
    portable = path.suffix == '.pt2'
    preprocessing = predictor.cfg.model.data_preprocessor
    graph = build_graph(predictor.model, preprocessing, nms, paste, portable)
    if paste and 'masks' not in graph.outputs:
        raise UserError('--paste is for detectors with masks')
    if bfloat16:
        store_in_bfloat16(graph)
    metadata = describe(predictor, graph)
    metadata['weights'] = 'bfloat16, cast to float32' if bfloat16 else 'float32'
    if portable:
        return graph, write_program(trace(graph, size), path, metadata)
    try:
        from .onnx_file import write_onnx
    except ImportError as error:
        raise UserError(
            f'--to onnx needs {error.name}: pip install -r requirements/export.txt'
        ) from error
    return graph, write_onnx(trace(graph, size), graph.outputs, path, metadata)


def describe(predictor: Predictor, graph: Graph) -> dict[str, Any]:
    """Return what a deployer must know; it is written into the file."""
    preprocessing = predictor.cfg.model.data_preprocessor
    pipeline = predictor.cfg.test_dataloader.dataset.pipeline
    described = dict(
        producer=f'poolformer-dense {__version__}',
        input='image: uint8, (batch, 3, height, width), RGB, 0 to 255, resized by the caller',
        resize=json.loads(json.dumps([step for step in pipeline if 'Resize' in step['type']])),
        in_graph=dict(
            mean=preprocessing.get('mean'),
            std=preprocessing.get('std'),
            channels='RGB' if graph.trained_on_rgb else 'BGR',
            pad_to_multiple_of=graph.divisor,
        ),
        classes=predictor.classes,
    )
    if isinstance(graph, LabelGraph):
        return described | dict(
            outputs=(
                'labels: (batch, height, width), an index into classes; '
                'logits: (batch, classes, height / 4, width / 4)'
            ),
            align_corners=graph.model.decode_head.align_corners,
        )
    nms = describe_nms(graph)
    rows = 'max_per_img rows' if nms['applied'] else 'at most nms_pre rows by level'
    outputs = (
        'boxes: (batch, rows, 4), x1 y1 x2 y2 in pixels of the image; '
        'scores: (batch, rows), 0 in empty rows; '
        f'labels: (batch, rows), an index into classes; {rows}'
    )
    if 'masks' in graph.outputs:
        described['mask_threshold'] = predictor.model.test_cfg.rcnn.mask_thr_binary
        outputs += '; masks: ' + (
            '(batch, rows, height, width), 1 in the object'
            if graph.paste
            else '(batch, rows, 28, 28), probabilities on a grid over the box'
        )
    return described | dict(outputs=outputs, nms=nms)


def usual_size(predictor: Predictor) -> tuple[int, int]:
    """Return height and width that the test pipeline gives to a picture of 640 x 480 pixels."""
    height, width = predictor.prepare(np.zeros((480, 640, 3), np.uint8))['inputs'].shape[1:]
    return height, width


def read_resized(predictor: Predictor, paths: Iterable[Path]) -> Iterator[Array]:
    """Yield images (H, W, 3), uint8, BGR, as the test pipeline resizes them.

    Raises:
        UserError: One can't be read.
    """
    for path in paths:
        try:
            image = read_image(path, predictor.decoder).pixels
        except Unreadable as error:
            raise UserError(f'--parity {path}: {error}') from error
        yield predictor.prepare(image)['inputs'].numpy().transpose(1, 2, 0)


def parity_batches(images: Iterable[Array], size: tuple[int, int] | None) -> Iterator[Array]:
    """Yield the batches that an export is compared on, (B, 3, H, W), uint8, RGB.

    Args:
        images: (H, W, 3), uint8, BGR.
        size: What images are cut or filled up to on the right and at the bottom, alone in their
            batch; None leaves them, each with its mirror image.
    """
    for image in images:
        rgb = image[..., ::-1].transpose(2, 0, 1)
        if size is None:
            yield np.ascontiguousarray(np.stack([rgb, rgb[..., ::-1]]))
            continue
        filled = np.zeros((1, 3, *size), np.uint8)
        rgb = rgb[:, : size[0], : size[1]]
        filled[0, :, : rgb.shape[1], : rgb.shape[2]] = rgb
        yield filled
