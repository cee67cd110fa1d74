"""Exported files predict what their models predict, in pixels of the original images."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from poolformer_dense.config.overrides import apply_overrides
from poolformer_dense.errors import UserError
from poolformer_dense.exporting.exporter import write_export
from poolformer_dense.measure.shapes import draw_scene
from poolformer_dense.predict.building import load_predictor
from poolformer_dense.runner import build_runner
from poolformer_dense.runtimes.exported import ExportedModel, evaluate_exported
from poolformer_dense.runtimes.runtime import open_runtime
from tests.tiny_models import tiny_config, tiny_predictor


@pytest.fixture(scope='module')
def segmentor(root, tmp_path_factory):
    """A tiny segmentor and its ONNX file."""
    folder = tmp_path_factory.mktemp('segmentor')
    predictor = tiny_predictor(root, 'fpn', folder / 'weights.pth')
    write_export(predictor, folder / 'model.onnx', None)
    return predictor, folder / 'model.onnx'


@pytest.fixture(scope='module')
def images():
    """Drawn scenes that the test pipelines make larger, and one that they make smaller."""
    return [draw_scene((7, i), *size).image for i, size in enumerate([(128, 96), (300, 180)])]


def _assert_alike(found, expected):
    """The same objects: boxes, scores, labels and masks; a tie may be found in another order."""
    assert abs(len(found) - len(expected)) <= 1
    assert len(expected) > 5
    same = 0
    for i, box in enumerate(expected.boxes):
        near = np.abs(found.boxes - box).max(1) < 0.05
        near &= (found.labels == expected.labels[i]) & (
            np.abs(found.scores - expected.scores[i]) < 1e-3
        )
        if expected.masks is not None and near.any():
            one, other = np.asarray(expected.masks[i]), np.asarray(found.masks[int(near.argmax())])
            near &= (one == other).mean() > 0.99
        same += bool(near.any())
    assert same >= 0.98 * len(expected)


def test_a_segmentors_file_labels_the_original_images_pixels(segmentor, images, monkeypatch):
    monkeypatch.setattr('poolformer_dense.runtimes.exported._CHANNELS_IN_CACHE', 3)  # of 4 classes
    predictor, path = segmentor
    exported = load_predictor(predictor.cfg, str(path))
    assert (exported.classes, exported.detects) == (predictor.classes, False)
    for own, expected in zip(exported.predict(images), predictor.predict(images), strict=True):
        assert own.labels.shape == expected.labels.shape == own.image.shape[:2]
        assert (own.labels == expected.labels).mean() >= 0.9999
        assert len(np.unique(own.labels)) > 1


def test_a_file_of_one_size_takes_any_image(segmentor, images, tmp_path):
    predictor, _ = segmentor
    write_export(predictor, tmp_path / 'model.onnx', (128, 192))
    exported = load_predictor(predictor.cfg, str(tmp_path / 'model.onnx'))
    for own in exported.predict(images):
        assert own.labels.shape == own.image.shape[:2]
    assert exported.model.runtime.size == (128, 192)


def test_boxes_of_a_file_of_one_size_end_where_the_image_does(root, images, tmp_path):
    predictor = tiny_predictor(root, 'retinanet', tmp_path / 'weights.pth')
    write_export(predictor, tmp_path / 'model.onnx', (416, 416))
    exported = load_predictor(predictor.cfg, str(tmp_path / 'model.onnx'))
    for own in exported.predict(images):
        height, width = own.image.shape[:2]
        assert len(own) > 5
        assert (own.boxes >= 0).all()
        assert (own.boxes.max(0)[2:] <= [width + 1e-3, height + 1e-3]).all()


def test_a_config_whose_preprocessor_stands_at_the_top_evaluates_a_file(
    root, segmentor, shapes, tmp_path
):
    _, path = segmentor
    cfg = tiny_config(root, 'fpn')
    apply_overrides(cfg, {'data_root': str(shapes / 'ade')})
    cfg.data_preprocessor = dict(cfg.model.data_preprocessor)  # as mmseg's own configs have it
    cfg.work_dir = str(tmp_path)
    evaluate_exported(cfg, str(path))
    assert 0 <= build_runner(cfg).test()['mIoU'] <= 100


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['onnx', 'pt2'])
@pytest.mark.parametrize('head', ['retinanet', 'mask_rcnn', 'cascade'])
def test_a_detectors_file_finds_the_same_objects(root, images, tmp_path, head, suffix):
    predictor = tiny_predictor(root, head, tmp_path / 'weights.pth')
    path = tmp_path / f'model.{suffix}'
    write_export(predictor, path, None)
    exported = load_predictor(predictor.cfg, str(path))
    pairs = zip(exported.predict(images, 0.05), predictor.predict(images, 0.05), strict=True)
    for own, expected in pairs:
        _assert_alike(own, expected)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(fuse=True), 'it is run as it is'),
        (dict(dtype='bfloat16'), 'it is run as it is'),
        (dict(device='cuda'), 'on the CPU'),
    ],
)
def test_what_a_file_can_not_do_is_refused(segmentor, options, message):
    predictor, path = segmentor
    with pytest.raises(UserError, match=message):
        load_predictor(predictor.cfg, str(path), **options)


def test_a_config_that_does_not_fit_is_refused(root, segmentor):
    _, path = segmentor
    with pytest.raises(UserError, match='is a segmentor; the config is of mmdet'):
        load_predictor(tiny_config(root, 'retinanet'), str(path))
    cfg = tiny_config(root, 'fpn')
    cfg.test_dataloader.dataset.metainfo = dict(classes=('a', 'b'), palette=[(0, 0, 0)] * 2)
    with pytest.raises(UserError, match=r'has 4 classes, test_dataloader\.dataset has 2; number 0'):
        evaluate_exported(cfg, str(path))


def test_files_that_are_none_are_refused(tmp_path):
    for name in ('gone.onnx', 'gone.xml', 'gone.pt2'):
        with pytest.raises(UserError, match=f'{name} does not exist'):
            ExportedModel(str(tmp_path / name))
        path = tmp_path / name
        path.write_bytes(b'nothing')
        # Without its package the line says so.
        missing = path.suffix == '.xml' and find_spec('openvino') is None
        with pytest.raises(UserError, match='openvino' if missing else name):
            open_runtime(path)


def test_a_file_of_another_tool_is_refused(tmp_path):
    image, out = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3])
        for name in ('image', 'out')
    )
    node = onnx.helper.make_node('Identity', ['image'], ['out'])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], 'graph', [image], [out]))
    onnx.helper.set_model_props(model, dict(classes='["disc"]'))
    model.ir_version = 10
    onnx.save(model, tmp_path / 'model.onnx')
    with pytest.raises(UserError, match=r'model\.onnx .* not from tools/export\.py'):
        open_runtime(tmp_path / 'model.onnx')
