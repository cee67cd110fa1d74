"""OpenVINO's files: the same results, inside the description; 8 bits, within a drop of mIoU."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest

from poolformer_dense.config.overrides import apply_overrides
from poolformer_dense.errors import UserError
from poolformer_dense.exporting.exporter import (
    calibration_images,
    evaluation_of,
    metric_of,
    parity_batches,
    quantize_file,
    write_export,
)
from poolformer_dense.exporting.parity import measure_parity
from poolformer_dense.measure.export_parity import export_compared
from poolformer_dense.measure.shapes import draw_scene
from poolformer_dense.predict.building import load_predictor
from poolformer_dense.runtimes.runtime import open_runtime, run_openvino
from tests.tiny_models import tiny_predictor

pytest.importorskip('openvino')
import openvino

from poolformer_dense.exporting.openvino_file import quantize, read_model


@pytest.fixture(scope='module')
def segmentor(root, shapes, tmp_path_factory):
    """A tiny segmentor of drawn shapes, its graph and its file."""
    folder = tmp_path_factory.mktemp('segmentor')
    predictor = tiny_predictor(root, 'fpn', folder / 'weights.pth')
    apply_overrides(predictor.cfg, {'data_root': str(shapes / 'ade')})
    predictor.cfg.work_dir = str(folder / 'run')
    graph, _ = write_export(predictor, folder / 'model.xml', None)
    return predictor, graph, folder / 'model.xml'


def test_a_file_computes_what_its_model_does(segmentor):
    predictor, graph, path = segmentor
    runtime = open_runtime(path)
    assert runtime.description['classes'] == predictor.classes
    assert runtime.description['in_graph']['mean'] == [123.675, 116.28, 103.53]
    assert runtime.size is None
    images = calibration_images(predictor, 'val', 2)
    parity = measure_parity(graph, predictor.model, runtime.run, parity_batches(images, None))
    assert parity.holds
    assert parity.errors['logits'] < 1e-4


def test_in_the_models_place_a_file_computes_no_labels_but_those_of_the_original(segmentor):
    predictor, _, path = segmentor
    exported = load_predictor(predictor.cfg, str(path))
    image = draw_scene((7, 0), 160, 120).image
    [own], [expected] = exported.predict(image), predictor.predict(image)
    assert own.labels.shape == image.shape[:2]
    assert (own.labels == expected.labels).mean() >= 0.9999
    assert set(exported.model.runtime.run(image.transpose(2, 0, 1)[None].copy())) == {'logits'}


@pytest.mark.slow
@pytest.mark.parametrize('head', ['retinanet', 'mask_rcnn', 'cascade'])
def test_a_detectors_file_finds_the_same(root, tmp_path, head):
    predictor = tiny_predictor(root, head, tmp_path / 'weights.pth')
    graph, run = write_export(predictor, tmp_path / 'model.xml', None, nms=True)
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 224) * rng.random((2, 3, 1, 1))
    images = (ramp + rng.integers(0, 55, (2, 3, 160, 224))).astype(np.uint8)
    parity = measure_parity(graph, predictor.model, run, [images])
    assert parity.agreement >= 0.98
    assert parity.total > 100
    images[1] = 0
    for name, value in run(images).items():
        np.testing.assert_allclose(value[0], run(images[:1])[name][0], atol=1e-3)


def test_calibration_images_are_spread_over_all_data(segmentor, monkeypatch):
    predictor, _, _ = segmentor
    own = predictor.cfg.train_dataloader.dataset
    asked = []
    monkeypatch.setattr(
        'poolformer_dense.exporting.exporter.read_resized',
        lambda _, paths, __: asked.append(paths) or [],
    )
    calibration_images(predictor, 'train', 1000)
    [everything] = asked
    wrapped = replace(predictor, cfg=copy.deepcopy(predictor.cfg))
    two = dict(type='ConcatDataset', datasets=[own, own])
    wrapped.cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=two)
    count = len(everything) + 1
    calibration_images(wrapped, 'train', count)
    assert len(asked[1]) == count
    assert (asked[1][0], asked[1][-1]) == (everything[0], everything[-1])


def test_the_old_file_stays_if_nothing_can_be_quantized(segmentor, tmp_path):
    pytest.importorskip('nncf')
    predictor, _, _ = segmentor
    path = tmp_path / 'model.xml'
    path.write_text('old')
    with pytest.raises(UserError, match='nowhere'):
        export_compared(predictor, path, dynamic=True, int8='nowhere')
    assert path.read_text() == 'old'


@pytest.mark.slow
def test_quantized_weights_take_less_than_half(segmentor, tmp_path):
    pytest.importorskip('nncf')
    predictor, _, path = segmentor
    target = tmp_path / 'int8.xml'
    images = calibration_images(predictor, 'train', 4)
    run = quantize_file(predictor, path, target, images)
    ratio = target.with_suffix('.bin').stat().st_size / path.with_suffix('.bin').stat().st_size
    assert ratio < 0.5
    runtime = open_runtime(target)
    assert runtime.description['classes'] == predictor.classes
    assert runtime.description['weights'] == '8-bit integers'
    [batch] = parity_batches(images[:1], None)
    logits, expected = run(batch)['logits'], open_runtime(path).run(batch)['logits']
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.3


def _back(node, stops):
    """The types of all operations before a node, up to and with those of some types."""
    found, waiting, seen = set(), [node], set()
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        found.add(node.get_type_name())
        if node.get_type_name() not in stops:
            waiting += [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return found


@pytest.mark.slow
@pytest.mark.parametrize('head', ['retinanet', 'mask_rcnn', 'cascade'])
def test_a_quantized_detector_of_any_size_runs_and_has_its_boxes_in_float32(root, tmp_path, head):
    pytest.importorskip('nncf')
    predictor = tiny_predictor(root, head, tmp_path / 'weights.pth')
    path = tmp_path / 'int8.xml'
    write_export(predictor, path, None, nms=True, paste=head != 'retinanet')
    images = [draw_scene((8, i), 96, 128).image for i in range(2)]
    run = quantize_file(predictor, path, path, images)
    [batch] = parity_batches(images[:1], None)
    found = run(batch)
    assert found['boxes'].shape[::2] == (len(batch), 4)
    assert (found['scores'] > 0).any()
    rounded = [n for n in read_model(path).get_ops() if n.get_type_name() == 'FakeQuantize']
    assert len(rounded) > 20
    for node in rounded:
        # From boxes there is a way back into the network by pixels of regions, and by indices.
        assert 'NonMaxSuppression' not in _back(node, {'ROIAlign', 'NonZero', 'ShapeOf'})


def test_the_drop_is_of_all_test_data_as_one_item(segmentor, tmp_path, monkeypatch):
    nncf = pytest.importorskip('nncf')
    predictor, _, path = segmentor
    asked = {}

    def control(model, data, validation, evaluate, **settings):
        asked.update(
            settings,
            metric=evaluate(openvino.Core().compile_model(model, 'CPU'), validation.get_data()),
        )
        return model

    monkeypatch.setattr(nncf, 'quantize_with_accuracy_control', control)
    target = tmp_path / 'int8.xml'
    quantize_file(predictor, path, target, calibration_images(predictor, 'train', 2), max_drop=0.5)
    assert asked['max_drop'] == pytest.approx(0.005)
    assert asked['drop_type'] == nncf.DropType.ABSOLUTE
    metric, by_item = asked['metric']
    assert 0 < metric < 1
    assert by_item == [metric]
    assert asked['advanced_accuracy_restorer_parameters'].num_ranking_workers == 1


@pytest.mark.slow
def test_layers_stay_in_float32_until_the_drop_is_allowed(segmentor):
    pytest.importorskip('nncf')
    _, _, path = segmentor
    images = [draw_scene((8, i), 64, 64).image.transpose(2, 0, 1)[None].copy() for i in range(2)]

    def model_of_one_size():  # which compiles faster
        model = read_model(path)
        model.reshape(images[0].shape)
        return model

    expected = run_openvino(model_of_one_size())(images[0])['logits']
    measured = []

    def accuracy(run):
        error = np.abs(run(images[0])['logits'] - expected).max() / np.abs(expected).max()
        measured.append(1 - error)
        return measured[-1]

    def in_8_bits(model):
        return sum(each.get_type_name() == 'FakeQuantize' for each in model.get_ops())

    whole = quantize(model_of_one_size(), images)
    drop = 1 - accuracy(run_openvino(whole))
    measured.clear()
    partly = quantize(model_of_one_size(), images, accuracy, drop / 2)
    # First in float32, twice, since NNCF looks at what is returned. Not for each image.
    assert [value > 1 - drop / 2 for value in measured[:3]] == [True, True, False]
    assert 0 < 1 - accuracy(run_openvino(partly)) <= drop / 2
    assert 0 < in_8_bits(partly) < in_8_bits(whole)


@pytest.mark.slow
def test_the_drop_is_that_of_the_test_datas_metric(segmentor, tmp_path):
    pytest.importorskip('nncf')
    predictor, _, path = segmentor
    target = tmp_path / 'int8.xml'
    images = calibration_images(predictor, 'train', 2)
    run = quantize_file(predictor, path, target, images, max_drop=0.5)
    evaluate = evaluation_of(predictor.cfg, path, open_runtime(path))
    assert evaluate(run) >= evaluate(open_runtime(path).run) - 0.005
    assert target.with_suffix('.bin').stat().st_size < path.with_suffix('.bin').stat().st_size


def test_the_metric_is_ap_of_masks_before_boxes():
    assert metric_of({'coco/bbox_mAP': 0.4, 'coco/segm_mAP': 0.3}) == 0.3
    assert metric_of({'aAcc': 90.0, 'mIoU': 50.0}) == 0.5
    with pytest.raises(UserError, match='no AP or mIoU among what was measured: aAcc'):
        metric_of({'aAcc': 90.0})


def test_missing_weights_are_named(segmentor, tmp_path):
    _, _, path = segmentor
    (tmp_path / 'model.xml').write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=re.escape('its weights, model.bin, are not beside it')):
        open_runtime(tmp_path / 'model.xml')
