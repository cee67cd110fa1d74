"""The consumers of exported files run with their runtime alone, and find what the model finds."""

from __future__ import annotations

import ast
import subprocess
import sys

import cv2
import numpy as np
import pytest

from poolformer_dense.exporting.exporter import write_export
from poolformer_dense.measure.shapes import draw_scene
from tests.tiny_models import tiny_predictor

CONSUMERS = {
    'run_onnx.py': ('onnx', 'onnxruntime'),
    'run_openvino.py': ('xml', 'openvino'),
    'run_torch_export.py': ('pt2', 'torch'),
}


@pytest.mark.parametrize('name', CONSUMERS)
def test_a_consumer_imports_its_runtime_alone(root, name):
    tree = ast.parse((root / 'docs/consumers' / name).read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    assert imported == {'json', 'sys', 'cv2', 'numpy', CONSUMERS[name][1]}


def _run(root, tmp_path, head, name, paste=False):
    """Export a tiny model and run its consumer; return its printed lines and the model's result."""
    suffix, package = CONSUMERS[name]
    pytest.importorskip(package)
    predictor = tiny_predictor(root, head, tmp_path / 'weights.pth')
    image = draw_scene((7, 1), 300, 180).image
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    path = tmp_path / f'model.{suffix}'
    write_export(predictor, path, None, nms=head == 'retinanet', paste=paste)
    done = subprocess.run(
        [sys.executable, root / 'docs/consumers' / name, f'model.{suffix}', 'image.png', 'out.png'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert cv2.imread(str(tmp_path / 'out.png')).shape == image.shape
    [result] = predictor.predict(image)
    return done.stdout.splitlines(), result


def test_a_segmentors_consumer(root, tmp_path):
    lines, result = _run(root, tmp_path, 'fpn', 'run_onnx.py')
    shares = {line.rsplit(' ', 1)[0]: float(line.rsplit(' ', 1)[1]) for line in lines}
    assert len(shares) > 1
    for label, name in enumerate(result.classes):
        assert shares.get(name, 0) == pytest.approx((result.labels == label).mean(), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize('head', ['retinanet', 'mask_rcnn'])
@pytest.mark.parametrize('name', CONSUMERS)
def test_a_detectors_consumer(root, tmp_path, head, name):
    lines, result = _run(root, tmp_path, head, name)
    assert abs(len(lines) - len(result)) <= 1
    assert len(result) > 3
    for line in lines:
        box = [float(each) for each in line[line.index('[') + 1 : -1].split(', ')]
        assert abs(result.boxes - box).max(1).min() < 0.2


@pytest.mark.slow
def test_masks_that_the_file_has_pasted_are_drawn_where_the_consumer_pastes_them(root, tmp_path):
    pictures = []
    for paste in (False, True):
        _run(root, tmp_path, 'mask_rcnn', 'run_onnx.py', paste)
        pictures.append(cv2.imread(str(tmp_path / 'out.png')).astype(int))
    plain, pasted = pictures
    green = (plain != cv2.imread(str(tmp_path / 'image.png'))).any(2)
    assert green.mean() > 0.02
    assert (np.abs(plain - pasted).max(2) > 0).mean() < 0.2 * green.mean()
