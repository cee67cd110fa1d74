"""From a model to a file, and from the file to what a comparison needs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.infer import BaseInferencer

from backbones.version import __version__

from ..errors import UserError
from ..measure.shapes import draw_scene
from ..predict.media import Unreadable, read_image
from .graphs import Graph, LabelGraph, build_graph
from .parity import Run
from .program import SMALLEST, load_program, save_program, store_in_bfloat16, trace

SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}
# Long and short sides of the drawn images that a dynamic export is compared on.
_DRAWN = ((128, 96), (101, 67), (224, 160), (517, 333), (1088, 800))


@dataclass
class Options:
    """What an export is to be.

    Attributes:
        to: ``onnx`` or ``torch-export``.
        path: The file to write.
        size: Height and width of the image; None leaves them and the batch open.
        bfloat16: Store weights in bfloat16.
        nms: Apply NMS in the graph (ONNX).
    """

    to: str
    path: Path
    size: tuple[int, int] | None
    bfloat16: bool = False
    nms: bool = False


def export(inferencer: BaseInferencer, options: Options) -> tuple[Graph, Run]:
    """Write an export; return its graph, and a function that runs the file.

    Args:
        inferencer: From `poolformer_dense.predict.inference.build_inferencer`, on the CPU.
        options: What to write.

    Raises:
        UserError: The model or the options can't be exported.
    """
    graph = build_graph(inferencer.model)
    if options.nms and (options.to != 'onnx' or isinstance(graph, LabelGraph)):
        raise UserError(
            '--nms is for detectors in ONNX: torch has no such operator of its own. Apply '
            'mmcv.ops.batched_nms or torchvision.ops.batched_nms to what the program returns'
        )
    if options.bfloat16:
        store_in_bfloat16(graph)
    program = trace(graph, options.size or (160, 192), dynamic=options.size is None)
    metadata = describe(inferencer, graph, options)
    if options.to == 'torch-export':
        save_program(program, options.path, metadata)
        module, _ = load_program(options.path)
        return graph, lambda images: _run_module(module, images)
    try:
        from .onnx_file import append_nms, convert, keep_outputs, save_onnx
    except ImportError as error:
        raise UserError(
            f'--to onnx needs {error.name}: pip install -r requirements/export.txt'
        ) from error
    sample = torch.zeros(1, 3, *(options.size or (SMALLEST, SMALLEST)), dtype=torch.uint8)
    with torch.no_grad():
        names = list(graph(sample))
    model = convert(program, names)
    if options.nms:
        model = append_nms(model, graph.outputs[2], graph.settings)
    checked = copy.deepcopy(model)
    keep_outputs(model, graph.outputs)
    save_onnx(model, options.path, metadata)
    sessions = [_session(options.path), _session(checked.SerializeToString())]
    return graph, lambda images: _run_sessions(sessions, images)


def _session(model: Path | bytes):
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            'checking an ONNX file needs onnxruntime: pip install -r requirements/export.txt'
        ) from error
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        settings,
        providers=['CPUExecutionProvider'],
    )


def _run_sessions(sessions: Sequence[Any], images: np.ndarray) -> dict[str, np.ndarray]:
    """The file's outputs, and the raw ones of the same graph, from which the file was cut."""
    written, whole = sessions
    results = [each.name for each in written.get_outputs()]
    raw = [each.name for each in whole.get_outputs() if each.name not in results]
    found = dict(zip(results, written.run(results, dict(image=images)), strict=True))
    return found | dict(zip(raw, whole.run(raw, dict(image=images)), strict=True))


def _run_module(module: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {k: v.numpy() for k, v in module(torch.from_numpy(images)).items()}


def describe(inferencer: BaseInferencer, graph: Graph, options: Options) -> dict[str, Any]:
    """Return what a deployer must know; it is written into the file."""
    preprocessor = graph.preprocessor
    pipeline = inferencer.cfg.test_dataloader.dataset.pipeline
    resize = [dict(step) for step in pipeline if 'Resize' in step['type']]
    normalises = preprocessor._enable_normalize
    described = dict(
        producer=f'poolformer-dense {__version__}',
        input='image: uint8, (batch, 3, height, width), RGB, 0 to 255, resized by the caller',
        resize=json.loads(json.dumps(resize)),
        in_graph=dict(
            mean=preprocessor.mean.flatten().tolist() if normalises else None,
            std=preprocessor.std.flatten().tolist() if normalises else None,
            channels='RGB' if preprocessor._channel_conversion else 'BGR',
            pad_to_multiple_of=getattr(preprocessor, 'pad_size_divisor', 1),
        ),
        classes=list(inferencer.model.dataset_meta['classes']),
        weights='bfloat16, cast to float32' if options.bfloat16 else 'float32',
    )
    if isinstance(graph, LabelGraph):
        return described | dict(outputs='labels: (batch, height, width), an index into classes')
    settings = graph.settings
    rows = 'max_per_img rows' if options.nms else 'at most nms_pre rows by level'
    return described | dict(
        outputs=(
            'boxes: (batch, rows, 4), x1 y1 x2 y2 in pixels of the image; '
            f'scores: (batch, rows), 0 in empty rows; {graph.outputs[2]}: (batch, rows); {rows}'
        ),
        nms=dict(
            applied=options.nms,
            among=f'equal {graph.outputs[2]}',
            iou_threshold=settings['nms']['iou_threshold'],
            max_per_img=settings['max_per_img'],
            score_thr=settings.get('score_thr', 0),
        ),
    )


def usual_size(inferencer: BaseInferencer) -> tuple[int, int]:
    """Return height and width that the test pipeline gives to a picture of 640 x 480 pixels."""
    height, width = inferencer.pipeline(np.zeros((480, 640, 3), np.uint8))['inputs'].shape[1:]
    return height, width


def parity_images(
    inferencer: BaseInferencer, paths: Sequence[Path], size: tuple[int, int] | None
) -> Iterator[np.ndarray]:
    """Yield the batches that an export is compared on, (B, 3, H, W), uint8, RGB.

    Args:
        inferencer: Its test pipeline resizes the files.
        paths: Images; none for drawn ones, five of different sizes if the export takes any size.
        size: What images are cut or filled up to on the right and at the bottom, alone in their
            batch; None leaves them, each with its mirror image.

    Raises:
        UserError: An image can't be read.
    """
    if paths:
        pictures = (_resized(inferencer, path) for path in paths)
    else:
        sides = _DRAWN if size is None else ((max(size), min(size)),) * 3
        pictures = (draw_scene((5, i), *each).image for i, each in enumerate(sides))
    for picture in pictures:
        rgb = picture[..., ::-1].transpose(2, 0, 1)
        if size is None:
            yield np.ascontiguousarray(np.stack([rgb, rgb[..., ::-1]]))
            continue
        filled = np.zeros((1, 3, *size), np.uint8)
        rgb = rgb[:, : size[0], : size[1]]
        filled[0, :, : rgb.shape[1], : rgb.shape[2]] = rgb
        yield filled


def _resized(inferencer: BaseInferencer, path: Path) -> np.ndarray:
    try:
        image = read_image(path)
    except Unreadable as error:
        raise UserError(f'--parity {path}: {error}') from error
    return inferencer.pipeline(image)['inputs'].numpy().transpose(1, 2, 0)
