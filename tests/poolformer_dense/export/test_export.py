"""Exports compute what the model does: graphs, NMS, files of both kinds, at many sizes."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch import nn

from poolformer_dense.config.load import load_config
from poolformer_dense.errors import UserError
from poolformer_dense.export.exporter import parity_batches, usual_size, write_export
from poolformer_dense.export.graphs import build_graph
from poolformer_dense.export.nms import nms_by_group
from poolformer_dense.export.onnx_file import to_onnx
from poolformer_dense.export.parity import count_same, measure_parity
from poolformer_dense.export.program import load_program, round_weights
from poolformer_dense.predict.predictor import fold, load_predictor

# Odd, smaller than a stride, one level of one pixel, large.
SIZES = [(96, 128), (101, 67), (33, 257), (224, 160), (333, 417)]
_DIMS = (16, 24, 32, 48)


def _tiny_config(root, head):
    """The demo's config with a network of a few thousand weights."""
    cfg = load_config(str(root / f'configs/demo/{head}_poolformer_s12.py'))
    model = cfg.model
    indices = tuple(model.backbone.out_indices)
    arch = dict(depths=(1, 1, 1, 1), dims=_DIMS, layer_scale_init=1.0)
    model.backbone = dict(type='MetaFormer', arch=arch, out_indices=indices)
    model.neck.update(in_channels=[_DIMS[i] for i in indices], out_channels=16)
    if head == 'retinanet':
        model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    elif head == 'mask_rcnn':
        model.rpn_head.update(in_channels=16, feat_channels=16)
        model.roi_head.bbox_roi_extractor.out_channels = 16
        model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
        model.roi_head.mask_roi_extractor.out_channels = 16
        model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    else:
        model.decode_head.update(in_channels=[16] * 4, channels=16)
    return cfg


@pytest.fixture(scope='module')
def predictors(root, tmp_path_factory):
    """A tiny model of each head; weights so large that scores differ from place to place."""
    path = tmp_path_factory.mktemp('tiny') / 'weights.pth'
    found = {}
    for head in ('retinanet', 'mask_rcnn', 'fpn'):
        cfg = _tiny_config(root, head)
        torch.manual_seed(3)
        weights = MODELS.build(cfg.model).state_dict()
        for name, value in weights.items():
            if name.endswith('.weight') and value.ndim == 4:
                last = any(part in name for part in ('retina_', 'rpn_cls', 'rpn_reg', 'conv_seg'))
                value.normal_(std=(0.3 if last else 1) * (value[0].numel()) ** -0.5)
            elif name.endswith('running_var'):
                value.uniform_(0.5, 2)
        torch.save(weights, path)
        found[head] = load_predictor(cfg, str(path), 'cpu')
    return found


@pytest.fixture(params=['retinanet', 'mask_rcnn', 'fpn'])
def predictor(request, predictors):
    return predictors[request.param]


def _batches(sizes, batch=2):
    rng = np.random.default_rng(0)
    for height, width in sizes:
        # Structure as well as noise: features differ from place to place.
        ramp = np.linspace(0, 200, width) * rng.random((batch, 3, 1, 1))
        noise = rng.integers(0, 55, (batch, 3, height, width))
        yield (ramp + noise).astype(np.uint8)


def _graph(predictor, model=None):
    """The graph of a predictor's model or of another one, and a function that runs it."""
    graph = build_graph(model or predictor.model, predictor.cfg.model.data_preprocessor)

    def run(images):
        with torch.no_grad():
            return {k: v.numpy() for k, v in graph(torch.from_numpy(images)).items()}

    return graph, run


def test_a_graph_computes_what_upstream_predicts(predictor):
    graph, run = _graph(predictor)
    parity = measure_parity(graph, predictor.model, run, _batches(SIZES))
    assert parity.holds
    assert parity.worst < 1e-5
    assert parity.total > 200  # there is something to compare
    assert parity.sizes == [(2, *size) for size in SIZES]


def test_the_folded_model_computes_the_same(predictor):
    folded = copy.deepcopy(predictor.model)
    fold(folded)
    graph, run = _graph(predictor, folded)
    assert not any('layer_scale' in name for name, _ in graph.named_parameters())
    assert measure_parity(graph, predictor.model, run, _batches(SIZES[:2])).holds


def test_another_models_results_do_not_pass(predictor):
    other = copy.deepcopy(predictor.model)
    with torch.no_grad():
        for parameter in other.neck.parameters():
            parameter.mul_(1.05)
    graph, run = _graph(predictor, other)
    parity = measure_parity(graph, predictor.model, run, _batches(SIZES[:1]))
    assert not parity.holds
    assert parity.worst > 1e-3


def test_detections_are_counted_one_to_one():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10.001], [20, 20, 30, 30]])
    scores, labels = torch.ones(3), torch.tensor([0, 0, 1])
    everything = (boxes, scores, labels)
    assert count_same(everything, everything) == 3
    one = (boxes[:1], scores[:1], labels[:1])
    assert count_same(everything, one) == count_same(one, everything) == 1
    assert count_same(everything, (boxes, scores, torch.tensor([1, 1, 0]))) == 0
    assert count_same(everything, (boxes + 0.1, scores, labels)) == 0
    assert count_same(everything, (boxes[:0], scores[:0], labels[:0])) == 0


def _export_and_compare(predictor, path, size, batches, nms=False):
    graph, run = write_export(predictor, path, size, nms=nms)
    parity = measure_parity(graph, predictor.model, run, batches)
    assert parity.holds, parity
    assert parity.total > 50
    return graph, run


def test_onnx_of_one_size(predictors, tmp_path):
    predictor, path = predictors['retinanet'], tmp_path / 'model.onnx'
    batches = _batches([(101, 67)], batch=1)
    _, run = _export_and_compare(predictor, path, (101, 67), batches, nms=True)
    assert run(next(_batches([(101, 67)], batch=1)))['boxes'].shape == (1, 100, 4)
    session = onnxruntime.InferenceSession(str(path))
    assert [each.name for each in session.get_outputs()] == ['boxes', 'scores', 'labels']
    [image] = session.get_inputs()
    assert (image.name, image.type, image.shape) == ('image', 'tensor(uint8)', [1, 3, 101, 67])
    notes = session.get_modelmeta().custom_metadata_map
    assert 'RGB' in notes['input']
    assert 'disc' in notes['classes']
    assert '123.675' in notes['in_graph']
    assert '"applied": true' in notes['nms']


@pytest.mark.slow
@pytest.mark.parametrize('nms', [False, True])
def test_onnx_of_any_size(predictor, tmp_path, nms):
    path = tmp_path / 'model.onnx'
    if nms and not predictor.detects:
        with pytest.raises(UserError, match='--nms is for detectors'):
            write_export(predictor, path, None, nms=True)
        return
    graph, run = _export_and_compare(predictor, path, None, _batches(SIZES), nms)
    session = onnxruntime.InferenceSession(str(path))
    assert [each.name for each in session.get_outputs()] == list(graph.outputs)
    assert session.get_inputs()[0].shape == ['batch', 3, 'height', 'width']
    # A batch computes what its images do alone.
    [images] = _batches(SIZES[:1], batch=3)
    whole, alone = run(images), run(images[1:2])
    first = 'scores' if 'scores' in whole else 'labels'
    np.testing.assert_allclose(whole[first][1], alone[first][0], atol=1e-5)


@pytest.mark.slow
def test_programs_of_any_size(predictor, tmp_path):
    path = tmp_path / 'model.pt2'
    _export_and_compare(predictor, path, None, _batches(SIZES))
    _, notes = load_program(path)
    assert notes['classes'] == predictor.classes
    assert notes['in_graph']['mean'] == [123.675, 116.28, 103.53]


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['onnx', 'pt2'])
def test_weights_in_bfloat16_make_the_file_smaller(predictors, tmp_path, suffix):
    predictor = predictors['fpn']
    paths = {flag: tmp_path / f'{flag}.{suffix}' for flag in (False, True)}
    for flag, path in paths.items():
        graph, run = write_export(predictor, path, (64, 96), bfloat16=flag)
    rounded = copy.deepcopy(predictor.model)
    round_weights(rounded)
    batches = list(_batches([(64, 96)], batch=1))
    assert measure_parity(graph, rounded, run, batches).holds
    assert measure_parity(graph, predictor.model, run, batches).worst > 1e-4
    if suffix == 'onnx':
        stored = [onnx.load(path).graph.initializer for path in paths.values()]
        half, full = (
            sum(len(each.raw_data) for each in weights if len(each.dims) == 4)
            for weights in reversed(stored)
        )
        # torch's optimizer folds the casts of weights below a few kilobytes.
        assert half < 0.85 * full
    else:
        assert paths[True].stat().st_size < paths[False].stat().st_size


class _Suppress(nn.Module):
    def __init__(self, iou_threshold, rows):
        super().__init__()
        self.settings = (iou_threshold, rows)

    def forward(self, boxes, scores, labels):
        kept = nms_by_group(boxes, scores, labels, *self.settings)
        return dict(zip(('kept_boxes', 'kept_scores', 'kept_labels'), kept, strict=True))


@pytest.fixture(scope='module', params=[(0.3, 30), (0.7, 5)])
def suppressions(request):
    """NMS by mmcv and in ONNX."""
    names = {name: {0: 'batch', 1: 'count'} for name in ('boxes', 'scores', 'labels')}
    sizes = {0: torch.export.Dim('batch'), 1: torch.export.Dim('count')}
    example = torch.rand(2, 9, 4), torch.rand(2, 9), torch.ones(2, 9, dtype=torch.int64)
    module = _Suppress(*request.param)
    program = torch.export.export(module, example, dynamic_shapes=dict.fromkeys(names, sizes))
    model = to_onnx(program, names)
    onnx.checker.check_model(model, full_check=True)
    return module, onnxruntime.InferenceSession(model.SerializeToString())


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(2, 60),
    classes=st.integers(1, 4),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_nms_in_the_graph_is_mmcvs(suppressions, count, classes, batch, seed):
    module, session = suppressions
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (batch, count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (batch, count, 2))], -1)
    scores = rng.permuted(np.linspace(0, 1, batch * count)).reshape(batch, count)
    scores[rng.random((batch, count)) < 0.2] = 0  # empty rows
    labels = rng.integers(0, classes, (batch, count))
    inputs = dict(boxes=boxes.astype('f'), scores=scores.astype('f'), labels=labels)
    expected = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    found = session.run(list(expected), inputs)
    for value, wanted in zip(found, expected.values(), strict=True):
        np.testing.assert_array_equal(value, wanted.numpy())
    rows = (found[1] > 0).sum()
    assert 0 < rows <= (scores > 0).sum() or not scores.any()
    assert (found[2][found[1] == 0] == -1).all()


def test_another_nms_is_refused(predictors):
    predictor = predictors['retinanet']
    model = copy.deepcopy(predictor.model)
    model.test_cfg.nms.type = 'soft_nms'
    with pytest.raises(UserError, match='--nms: ONNX has no'):
        build_graph(model, predictor.cfg.model.data_preprocessor, nms=True)


def test_what_has_no_graph_is_refused(predictor):
    model = copy.deepcopy(predictor.model)
    if not predictor.detects:
        model.test_cfg.mode = 'slide'
    else:
        (model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head).use_sigmoid_cls = False
    with pytest.raises(UserError, match=r'mode=whole|anchors and sigmoid'):
        build_graph(model, predictor.cfg.model.data_preprocessor)


def test_images_to_compare_on(predictor):
    red = np.full((48, 64, 3), (0, 0, 255), np.uint8)
    red[:, :32] = 0
    [images] = parity_batches([red], None)
    assert images.shape == (2, 3, 48, 64)
    np.testing.assert_array_equal(images[0], images[1, :, :, ::-1])
    [images] = parity_batches([red], (40, 200))
    assert images.shape == (1, 3, 40, 200)
    assert images[0, :, 10, 40].tolist() == [255, 0, 0]  # RGB
    assert usual_size(predictor) == ((96, 128) if predictor.detects else (128, 192))
