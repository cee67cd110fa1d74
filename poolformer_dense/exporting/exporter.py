"""From a model to a file, and the images that the file is compared on."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS

from backbones.version import __version__

from ..config.walk import datasets_of
from ..data.decoding import Unreadable, read_image
from ..errors import UserError
from ..predict.media import find_media
from ..predict.predictor import Predictor
from ..runner import build_runner
from ..runtimes.exported import evaluate_exported
from ..runtimes.outputs import Array
from ..runtimes.runtime import Run, Runtime, need, open_runtime
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
        path: The file to write: ``.onnx``, ``.xml`` for OpenVINO with a ``.bin`` beside it, or
            ``.pt2`` for a program of torch.export.
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
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        need(package, 'export')
    from .onnx_file import write_onnx

    if path.suffix == '.onnx':
        return graph, write_onnx(trace(graph, size), graph.outputs, path, metadata)
    need('openvino', 'openvino')
    from .openvino_file import convert_model, write_openvino

    with tempfile.TemporaryDirectory() as folder:
        write_onnx(trace(graph, size), graph.outputs, Path(folder, 'model.onnx'), metadata)
        write_openvino(convert_model(Path(folder, 'model.onnx'), metadata), path)
    return graph, open_runtime(path).run


def quantize_file(
    predictor: Predictor,
    source: Path,
    path: Path,
    images: Sequence[Array],
    max_drop: float | None = None,
) -> Run:
    """Write a file of OpenVINO as one that computes in 8-bit integers; return what runs it.

    Args:
        predictor: The model that was exported; its config has the data for ``max_drop``.
        source: The ``.xml`` file.
        path: The file to write, which may be the same.
        images: What activations are scaled by, (H, W, 3) uint8, BGR, as the test pipeline resizes
            them.
        max_drop: By how many points AP or mIoU on the config's test data may fall; layers stay in
            float32 until it does not fall more. None does not look at it.

    Raises:
        UserError: NNCF is missing, or the evaluation has no metric.
    """
    need('nncf', 'nncf')
    from .openvino_file import add_metadata, quantize, read_model, write_openvino

    runtime = open_runtime(source)
    batches = [batch[:1] for batch in parity_batches(images, runtime.size)]
    evaluate = None if max_drop is None else evaluation_of(predictor.cfg, source, runtime)
    drop = None if max_drop is None else max_drop / 100
    quantized = quantize(read_model(source), batches, evaluate, drop)
    write_openvino(add_metadata(quantized, dict(weights='8-bit integers')), path)
    return open_runtime(path).run


def evaluation_of(cfg: Config, path: Path, runtime: Runtime) -> Callable[[Run], float]:
    """Return what measures AP or mIoU, from 0 to 1, of something that runs.

    Args:
        cfg: The config, with the test data.
        path: An exported file, whose runs are measured.
        runtime: It.
    """
    cfg = copy.deepcopy(cfg)
    evaluate_exported(cfg, str(path))
    runner = build_runner(cfg)

    def evaluate(run: Run) -> float:
        runner.model.use(replace(runtime, run=run))
        metrics = runner.test()
        return metric_of(metrics) if metrics else 0.0  # without detections COCO's has none

    return evaluate


def metric_of(metrics: Mapping[str, float]) -> float:
    """Return AP or mIoU, from 0 to 1, out of what an evaluation prints.

    Raises:
        UserError: It has neither.
    """
    for name, whole in (('segm_mAP', 1), ('bbox_mAP', 1), ('mIoU', 100), ('mAP', 1)):
        for key, value in metrics.items():
            if key.split('/')[-1] == name:
                return float(value) / whole
    raise UserError(f'no AP or mIoU among what was measured: {", ".join(metrics) or "nothing"}')


def calibration_images(predictor: Predictor, source: str, count: int) -> list[Array]:
    """Return images that stand for what a model will see, as `read_resized` does.

    Args:
        predictor: The model.
        source: ``train`` or ``val`` for the config's own data, or a folder, an image, a pattern.
        count: How many, evenly from all.

    Raises:
        UserError: There is none, or one can't be read.
    """
    if source in ('train', 'val'):
        cfg, paths = predictor.cfg, []
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as datasets:
            for _, node in datasets_of(cfg, source):
                dataset = datasets.build(dict(node, pipeline=[]))
                paths += [Path(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
    else:
        paths = find_media([source])[0]
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return list(read_resized(predictor, [paths[i] for i in places], '--int8'))


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


def read_resized(
    predictor: Predictor, paths: Iterable[Path], option: str = '--parity'
) -> Iterator[Array]:
    """Yield images (H, W, 3), uint8, BGR, as the test pipeline resizes them.

    Args:
        predictor: The model.
        paths: The images.
        option: What named them.

    Raises:
        UserError: One can't be read.
    """
    for path in paths:
        try:
            image = read_image(path, predictor.decoder).pixels
        except Unreadable as error:
            raise UserError(f'{option} {path}: {error}') from error
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
