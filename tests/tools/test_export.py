"""tools/export.py as a user runs it, on the demo's full-size models."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.registry import MODELS

from poolformer_dense.config.load import load_config
from poolformer_dense.exporting.graphs import build_graph
from poolformer_dense.exporting.onnx_file import write_onnx
from poolformer_dense.exporting.program import trace
from poolformer_dense.measure.shapes import draw_scene


@pytest.fixture(scope='module')
def config(root):
    return root / 'configs/demo/fpn_poolformer_s12.py'


@pytest.fixture(scope='module')
def checkpoint(config, tmp_path_factory):
    """Weights of the demo's segmentor, whose head is sure of something everywhere."""
    torch.manual_seed(0)
    weights = MODELS.build(load_config(str(config)).model).state_dict()
    # Much larger, and scores of 1 that tie would be in no order.
    head = weights['decode_head.conv_seg.weight']
    head.normal_(std=0.3 * head[0].numel() ** -0.5)
    path = tmp_path_factory.mktemp('checkpoints') / 'fpn.pth'
    torch.save(weights, path)
    return path


# Detectors of this size need trained weights: with drawn ones scores tie by the hundred, and
# rounding decides what NMS keeps. tests/poolformer_dense/exporting compares tiny ones.
@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        ['--to', 'onnx', '--dynamic', '--fuse', '--dtype', 'bfloat16'],
        ['--to', 'torch-export'],
    ],
)
def test_a_file_agrees_with_its_model(call, config, checkpoint, tmp_path, options):
    done = call('export.py', config, checkpoint, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    errors = re.findall(r'largest raw error, of the largest magnitude: (\S+)', done.stdout)
    assert float(errors[-1]) <= 1e-4
    *_, (same, total) = re.findall(r': (\d+) of (\d+) agree', done.stdout)
    assert int(total) > 0
    assert int(same) >= int(total) * 0.9999
    suffix = '.onnx' if 'onnx' in options else '.pt2'
    assert (tmp_path / f'work_dirs/demo/{config.stem}/{config.stem}{suffix}').is_file()


def test_a_file_of_one_size_agrees_on_given_images(run, config, checkpoint, tmp_path):
    cv2.imwrite(str(tmp_path / 'scene.png'), draw_scene((4,)).image)
    done = run(
        'export.py', config, checkpoint, '--to', 'onnx', '--size', 64, 96,
        '--out', 'model.onnx', '--parity', 'scene.png', cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert '6144 of 6144 agree' in done.stdout
    [image] = onnxruntime.InferenceSession(str(tmp_path / 'model.onnx')).get_inputs()
    assert image.shape == [1, 3, 64, 96]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--to', 'onnx', '--size', 8, 8], '--size: at least 32 32'),
        (['--to', 'onnx', '--out', 'x.pt2'], '--to onnx writes a .onnx file'),
        (['--to', 'torch-export', '--nms'], '--nms is for detectors'),
        (['--to', 'onnx', '--int8', 'val'], '--int8 is for --to openvino'),
        (['--to', 'openvino', '--max-drop', 1], '--max-drop is for --int8'),
        (['--to', 'onnx', '--paste'], '--paste is for detectors with masks'),
        (['--to', 'onnx', '--parity', 'gone.jpg'], 'gone.jpg: it does not exist'),
        (['--to', 'torch-export', '--size', 32, 32, '--parity', 'bad.jpg'], '--parity bad.jpg: '),
    ],
)
def test_errors_are_one_line(call, config, checkpoint, tmp_path, options, message):
    (tmp_path / 'bad.jpg').write_bytes(b'')
    done = call('export.py', config, checkpoint, *options)
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert message in line


CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
ZOO = sorted(
    path
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts and 'demo' not in path.parts
)


@pytest.mark.slow
@pytest.mark.parametrize('config', ZOO, ids=lambda path: path.stem)
def test_every_config_of_the_zoo_is_exported(tmp_path, config):
    """To ONNX of any size, which is valid, has every shape inferred, and runs on an image."""
    cfg = load_config(str(config))
    cfg.model.backbone.pop('init_cfg', None)
    model = MODELS.build(cfg.model).eval()
    nms = hasattr(model, 'bbox_head') and not hasattr(model, 'rpn_head')
    graph = build_graph(model, cfg.model.data_preprocessor, nms=nms)
    path = tmp_path / 'model.onnx'
    run = write_onnx(trace(graph, None), graph.outputs, path, {})
    onnx.checker.check_model(str(path), full_check=True)  # with shape inference
    kinds = {(node.domain, node.op_type) for node in onnx.load(path).graph.node}
    assert {domain for domain, _ in kinds} <= {'', 'ai.onnx'}
    found = run(np.zeros((1, 3, 64, 96), np.uint8))
    assert set(graph.outputs) <= found.keys()
