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
from mmcv.ops import batched_nms
from mmengine.infer import BaseInferencer

from poolformer_dense.config.load import load_config
from poolformer_dense.errors import UserError
from poolformer_dense.export.files import Options, export, parity_images, usual_size
from poolformer_dense.export.graphs import build_graph
from poolformer_dense.export.onnx_file import append_nms
from poolformer_dense.export.parity import compare, count_same
from poolformer_dense.export.program import load_program, round_weights
from poolformer_dense.predict.inference import build_inferencer, fold

HEADS = ('retinanet', 'mask_rcnn', 'fpn')
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
    model.neck.in_channels = [_DIMS[i] for i in indices]
    model.neck.out_channels = 16
    if head == 'retinanet':
        model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    elif head == 'mask_rcnn':
        model.rpn_head.update(in_channels=16, feat_channels=16)
        model.roi_head.bbox_roi_extractor.out_channels = 16
        model.roi_head.bbox_head.in_channels = 16
        model.roi_head.bbox_head.fc_out_channels = 16
        model.roi_head.mask_roi_extractor.out_channels = 16
        model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    else:
        model.decode_head.update(in_channels=[16] * 4, channels=16)
    return cfg


@pytest.fixture(scope='module', params=HEADS)
def inferencer(request, root, tmp_path_factory) -> BaseInferencer:
    """A tiny model of each head; weights so large that scores differ from place to place."""
    from mmengine.registry import MODELS

    cfg = _tiny_config(root, request.param)
    torch.manual_seed(3)
    weights = MODELS.build(cfg.model).state_dict()
    for name, value in weights.items():
        if name.endswith('.weight') and value.ndim == 4:
            last = any(part in name for part in ('retina_', 'rpn_cls', 'rpn_reg', 'conv_seg'))
            value.normal_(std=(0.3 if last else 1) * (value[0].numel()) ** -0.5)
        elif name.endswith('running_var'):
            value.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp('tiny') / 'weights.pth'
    torch.save(weights, path)
    return build_inferencer(cfg, str(path), 'cpu')


def _batches(sizes, batch=2):
    rng = np.random.default_rng(0)
    for height, width in sizes:
        # Structure as well as noise: features differ from place to place.
        ramp = np.linspace(0, 200, width) * rng.random((batch, 3, 1, 1))
        noise = rng.integers(0, 55, (batch, 3, height, width))
        yield (ramp + noise).astype(np.uint8)


def _eager(graph):
    def run(images):
        with torch.no_grad():
            return {k: v.numpy() for k, v in graph(torch.from_numpy(images)).items()}

    return run


def test_a_graph_computes_what_upstream_predicts(inferencer):
    graph = build_graph(inferencer.model)
    parity = compare(graph, inferencer.model, _eager(graph), _batches(SIZES))
    assert parity.holds
    assert parity.worst < 1e-5
    assert parity.total > 200  # there is something to compare
    assert parity.sizes == [(2, *size) for size in SIZES]


def test_the_folded_model_computes_the_same(inferencer):
    folded = copy.deepcopy(inferencer.model)
    fold(folded)
    graph = build_graph(folded)
    assert not any('layer_scale' in name for name, _ in graph.named_parameters())
    assert compare(graph, inferencer.model, _eager(graph), _batches(SIZES[:2])).holds


def test_another_models_results_do_not_pass(inferencer):
    other = copy.deepcopy(inferencer.model)
    with torch.no_grad():
        for parameter in other.neck.parameters():
            parameter.mul_(1.05)
    graph = build_graph(other)
    parity = compare(graph, inferencer.model, _eager(graph), _batches(SIZES[:1]))
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


def _assert_same_file(inferencer, options, batches):
    graph, run = export(inferencer, options)
    parity = compare(graph, inferencer.model, run, batches)
    assert parity.holds, parity
    assert parity.total > 50
    return graph, run


def test_onnx_of_one_size(inferencer, tmp_path):
    options = Options('onnx', tmp_path / 'model.onnx', (101, 67))
    graph, _ = _assert_same_file(inferencer, options, _batches([(101, 67)], batch=1))
    session = onnxruntime.InferenceSession(str(options.path))
    assert [each.name for each in session.get_outputs()] == list(graph.outputs)
    [image] = session.get_inputs()
    assert (image.name, image.type, image.shape) == ('image', 'tensor(uint8)', [1, 3, 101, 67])
    notes = session.get_modelmeta().custom_metadata_map
    assert 'RGB' in notes['input']
    assert 'disc' in notes['classes']
    assert '123.675' in notes['in_graph']


@pytest.mark.slow
@pytest.mark.parametrize('nms', [False, True])
def test_onnx_of_any_size(inferencer, tmp_path, nms):
    if nms and inferencer.cfg.default_scope == 'mmseg':
        with pytest.raises(UserError, match='--nms is for detectors'):
            export(inferencer, Options('onnx', tmp_path / 'm.onnx', None, nms=True))
        return
    options = Options('onnx', tmp_path / 'model.onnx', None, nms=nms)
    _, run = _assert_same_file(inferencer, options, _batches(SIZES))
    [image] = onnxruntime.InferenceSession(str(options.path)).get_inputs()
    assert image.shape == ['batch', 3, 'height', 'width']
    # A batch computes what its images do alone.
    [images] = _batches(SIZES[:1], batch=3)
    whole, alone = run(images), run(images[1:2])
    first = 'scores' if 'scores' in whole else 'labels'
    np.testing.assert_allclose(whole[first][1], alone[first][0], atol=1e-5)
    if nms:
        assert whole['boxes'].shape[1] <= 1000


@pytest.mark.slow
def test_programs_of_any_size(inferencer, tmp_path):
    options = Options('torch-export', tmp_path / 'model.pt2', None)
    _assert_same_file(inferencer, options, _batches(SIZES))
    _, notes = load_program(options.path)
    assert notes['classes'] == list(inferencer.model.dataset_meta['classes'])
    assert notes['in_graph']['mean'] == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.slow
@pytest.mark.parametrize('to', ['onnx', 'torch-export'])
def test_weights_in_bfloat16_make_the_file_smaller(inferencer, tmp_path, to):
    if inferencer.cfg.default_scope != 'mmseg':
        pytest.skip('one head is enough')
    suffix = {'onnx': 'onnx', 'torch-export': 'pt2'}[to]
    paths = {flag: tmp_path / f'{flag}.{suffix}' for flag in (False, True)}
    for flag, path in paths.items():
        graph, run = export(inferencer, Options(to, path, (64, 96), bfloat16=flag))
    rounded = copy.deepcopy(inferencer.model)
    round_weights(rounded)
    batches = list(_batches([(64, 96)], batch=1))
    assert compare(graph, rounded, run, batches).holds
    assert compare(graph, inferencer.model, run, batches).worst > 1e-4
    if to == 'onnx':
        stored = [onnx.load(path).graph.initializer for path in paths.values()]
        half, full = (
            sum(len(each.raw_data) for each in weights if len(each.dims) == 4)
            for weights in reversed(stored)
        )
        # torch's optimizer folds the casts of weights below a few kilobytes.
        assert half < 0.85 * full
    else:
        assert paths[True].stat().st_size < paths[False].stat().st_size


def _boxes_model(count):
    value = onnx.helper.make_tensor_value_info
    kinds = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    shapes = ['b', count, 4], ['b', count], ['b', count]
    names = 'boxes', 'scores', 'labels'
    inputs = [value(f'in_{n}', k, s) for n, k, s in zip(names, kinds, shapes, strict=True)]
    outputs = [value(n, k, s) for n, k, s in zip(names, kinds, shapes, strict=True)]
    nodes = [onnx.helper.make_node('Identity', [f'in_{n}'], [n]) for n in names]
    graph = onnx.helper.make_graph(nodes, 'boxes', inputs, outputs)
    opset = [onnx.helper.make_opsetid('', 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 60),
    classes=st.integers(1, 4),
    batch=st.integers(1, 3),
    most=st.integers(1, 30),
    iou=st.sampled_from([0.3, 0.5, 0.7]),
    seed=st.integers(0, 2**31),
)
def test_nms_in_the_graph_is_mmcvs(count, classes, batch, most, iou, seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (batch, count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (batch, count, 2))], -1)
    scores = rng.permuted(np.linspace(0, 1, batch * count)).reshape(batch, count)
    scores[rng.random((batch, count)) < 0.2] = 0  # empty rows
    labels = rng.integers(0, classes, (batch, count))
    config = dict(nms=dict(type='nms', iou_threshold=iou), max_per_img=most)
    model = append_nms(_boxes_model(count), 'labels', config)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(
        ['boxes', 'scores', 'labels'],
        dict(
            in_boxes=boxes.astype(np.float32),
            in_scores=scores.astype(np.float32),
            in_labels=labels,
        ),
    )
    for i in range(batch):
        there = scores[i] > 0
        given_boxes = torch.from_numpy(boxes[i][there].astype(np.float32))
        given_scores = torch.from_numpy(scores[i][there].astype(np.float32))
        given_labels = torch.from_numpy(labels[i][there])
        order = torch.empty(0, dtype=torch.long)
        if len(given_boxes):
            _, order = batched_nms(given_boxes, given_scores, given_labels, config['nms'])
        order, rows = order[:most], min(len(order), most)
        np.testing.assert_allclose(found[0][i, :rows], given_boxes[order])
        np.testing.assert_allclose(found[1][i, :rows], given_scores[order])
        np.testing.assert_array_equal(found[2][i, :rows], given_labels[order])
        assert found[0].shape[1] == most
        assert (found[1][i, rows:] == 0).all()
        assert (found[2][i, rows:] == -1).all()


def test_another_nms_is_refused():
    config = dict(nms=dict(type='soft_nms', iou_threshold=0.5), max_per_img=3)
    with pytest.raises(UserError, match='--nms: ONNX has no'):
        append_nms(_boxes_model(2), 'labels', config)


def test_what_has_no_graph_is_refused(inferencer):
    model = copy.deepcopy(inferencer.model)
    if hasattr(model, 'decode_head'):
        model.test_cfg.mode = 'slide'
    else:
        (model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head).use_sigmoid_cls = False
    with pytest.raises(UserError, match=r'mode=whole|anchors and sigmoid'):
        build_graph(model)


def test_images_to_compare_on(inferencer, tmp_path):
    import cv2

    drawn = list(parity_images(inferencer, [], None))
    assert len({images.shape for images in drawn}) == len(drawn) == 5
    np.testing.assert_array_equal(drawn[0][0], drawn[0][1, :, :, ::-1])
    path = tmp_path / 'red.png'
    cv2.imwrite(str(path), np.full((48, 64, 3), (0, 0, 255), np.uint8))
    [images] = parity_images(inferencer, [path], (40, 200))
    assert images.shape == (1, 3, 40, 200)
    assert images[0, :, 10, 10].tolist() == [255, 0, 0]  # RGB
    detects = inferencer.cfg.default_scope == 'mmdet'
    assert usual_size(inferencer) == ((96, 128) if detects else (128, 192))
    path.write_bytes(b'')
    with pytest.raises(UserError, match=r'red\.png'):
        list(parity_images(inferencer, [path], None))
