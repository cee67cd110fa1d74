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
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import nn
from torch.export import Dim
from torch.nn.functional import adaptive_avg_pool2d

from poolformer_dense.errors import UserError
from poolformer_dense.exporting.exporter import parity_batches, usual_size, write_export
from poolformer_dense.exporting.graphs import build_graph
from poolformer_dense.exporting.nms import nms_by_group, suppress
from poolformer_dense.exporting.onnx_file import to_onnx
from poolformer_dense.exporting.parity import find_pairs, measure_parity
from poolformer_dense.exporting.pooling import pool, pool_regions
from poolformer_dense.exporting.program import round_weights
from poolformer_dense.predict.building import fold, load_predictor
from poolformer_dense.runtimes.outputs import Objects, paste_mask
from poolformer_dense.runtimes.runtime import open_program
from tests.tiny_models import HEADS, tiny_config, tiny_predictor, write_weights

# Odd, smaller than a stride, one level of one pixel, large.
SIZES = [(96, 128), (101, 67), (33, 257), (224, 160), (333, 417)]


@pytest.fixture(scope='module')
def predictors(root, tmp_path_factory):
    """A tiny model of each head."""
    path = tmp_path_factory.mktemp('tiny') / 'weights.pth'
    return {head: tiny_predictor(root, head, path) for head in HEADS}


@pytest.fixture(params=HEADS)
def predictor(request, predictors):
    return predictors[request.param]


def _batches(sizes, batch=2):
    rng = np.random.default_rng(0)
    for height, width in sizes:
        # Structure as well as noise: features differ from place to place.
        ramp = np.linspace(0, 200, width) * rng.random((batch, 3, 1, 1))
        noise = rng.integers(0, 55, (batch, 3, height, width))
        yield (ramp + noise).astype(np.uint8)


def _graph(predictor, model=None, **options):
    """The graph of a predictor's model or of another one, and a function that runs it."""
    preprocessing = predictor.cfg.model.data_preprocessor
    graph = build_graph(model or predictor.model, preprocessing, **options)

    def run(images):
        with torch.no_grad():
            return {k: v.numpy() for k, v in graph(torch.from_numpy(images)).items()}

    return graph, run


@pytest.mark.parametrize('portable', [False, True])
def test_a_graph_computes_what_upstream_predicts(predictor, portable):
    graph, run = _graph(predictor, portable=portable)
    parity = measure_parity(graph, predictor.model, run, _batches(SIZES))
    assert parity.holds
    assert parity.worst < 1e-5
    assert parity.total > 200  # there is something to compare
    assert parity.sizes == [(2, *size) for size in SIZES]


def test_pixels_at_the_threshold_are_undecided_in_masks_that_the_file_pastes(predictors):
    predictor = predictors['mask_rcnn']
    model = copy.deepcopy(predictor.model)
    logits = model.roi_head.mask_head.conv_logits
    nn.init.zeros_(logits.weight)
    nn.init.zeros_(logits.bias)  # probabilities of 0.5
    graph, run = _graph(predictor, model, paste=True)
    assert measure_parity(graph, model, run, _batches(SIZES[:1])).holds
    nn.init.constant_(logits.bias, 1.0)
    graph, run = _graph(predictor, model, paste=True)
    nn.init.constant_(logits.bias, -1.0)
    assert not measure_parity(graph, model, run, _batches(SIZES[:1])).holds


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


def test_a_file_with_other_mixers_takes_images_of_any_size(root, tmp_path):
    arch = dict(
        norm='ChannelLayerNorm',
        token_mixers=(
            'SeparableConv',
            dict(type='RandomMixing', resolution=(28, 28), interpolate=True),
            dict(type='Attention', head_dim=16),
            dict(type='SpatialMLP', resolution=(7, 7), interpolate=True),
        ),
        position_embeddings=(None, None, (14, 14), None),
    )
    cfg = tiny_config(root, 'fpn')
    cfg.model.backbone.arch.update(arch)
    predictor = load_predictor(cfg, str(write_weights(cfg, tmp_path / 'weights.pth')), 'cpu')
    graph, run = write_export(predictor, tmp_path / 'model.onnx', None)
    sizes = [(32, 32), (224, 224), (40, 300)]  # one pixel, the resolution, another
    assert measure_parity(graph, predictor.model, run, _batches(sizes, batch=1)).holds


class _Pool(nn.Module):
    def forward(self, image):
        return {str(size): adaptive_avg_pool2d(image, size) for size in (1, 6, (3, 2))}


def test_adaptive_pooling_in_onnx_is_torchs_at_any_size():
    sizes = {0: Dim('batch'), 2: Dim('height'), 3: Dim('width')}
    example = (torch.rand(2, 3, 9, 10),)
    program = torch.export.export(_Pool(), example, dynamic_shapes=dict(image=sizes))
    model = to_onnx(program, dict(image={0: 'batch', 2: 'height', 3: 'width'}))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for shape in [(1, 3, 1, 1), (3, 3, 2, 3), (1, 3, 13, 7), (2, 3, 40, 41)]:
        image = torch.rand(shape)
        found = session.run(None, dict(image=image.numpy()))
        for own, expected in zip(found, _Pool()(image).values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(own), expected)


def test_detections_are_counted_one_to_one():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 10.001], [20, 20, 30, 30]])
    scores, labels = np.ones(3, np.float32), np.array([0, 0, 1])
    masks = np.zeros((3, 40, 40), bool)
    masks[:2, :10, :10] = masks[2, 20:30, 20:30] = True
    everything = Objects(boxes, scores, labels, masks)
    assert len(find_pairs(everything, everything)) == 3
    one = Objects(boxes[:1], scores[:1], labels[:1])
    assert len(find_pairs(everything, one)) == len(find_pairs(one, everything)) == 1
    assert len(find_pairs(everything, Objects(boxes, scores, np.array([1, 1, 0])))) == 0
    assert len(find_pairs(everything, Objects(boxes + 0.1, scores, labels))) == 0
    assert len(find_pairs(everything, Objects(boxes[:0], scores[:0], labels[:0]))) == 0
    cut = masks.copy()
    cut[2, 20:22] = False
    assert len(find_pairs(everything, Objects(boxes, scores, labels, cut))) == 2


def test_masks_are_pasted_as_upstream_pastes_them():
    rng = np.random.default_rng(0)
    boxes = np.float32(
        [[3.3, 4.7, 40.1, 33.9], [-5, 10, 20, 80], [59, 30, 63.9, 31], [0, 0, 64, 48]]
    )
    masks = rng.random((4, 28, 28), np.float32)
    masks[:, 8:20, 8:20] = 1
    head = FCNMaskHead(num_classes=1, class_agnostic=True)
    meta = dict(ori_shape=(48, 64), scale_factor=(1.0, 1.0))
    found = [InstanceData(bboxes=torch.from_numpy(boxes), labels=torch.zeros(4, dtype=torch.int64))]
    logits = torch.from_numpy(masks).logit(1e-6)[:, None]
    [expected] = head.predict_by_feat((logits,), found, [meta], Config(dict(mask_thr_binary=0.5)))
    for mask, box, whole in zip(masks, boxes, expected.masks.numpy(), strict=True):
        pasted = paste_mask(mask, box, (48, 64))
        assert (pasted != whole).sum() <= 1  # at the threshold up to rounding
        assert pasted.any()


def _export_and_compare(predictor, path, size, batches, nms=False, paste=False):
    graph, run = write_export(predictor, path, size, nms=nms, paste=paste)
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


def _check_batch(graph, run, images):
    """A batch computes what its images do alone; return it."""
    whole = run(images)
    for i in range(len(images)):
        alone = run(images[i : i + 1])
        for name in set(graph.outputs) & {'scores', 'logits', 'masks'}:
            np.testing.assert_allclose(whole[name][i], alone[name][0], atol=1e-4)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['onnx', 'pt2'])
def test_files_of_any_size(predictor, tmp_path, suffix):
    path = tmp_path / f'model.{suffix}'
    graph, run = _export_and_compare(predictor, path, None, _batches(SIZES))
    [images] = _batches(SIZES[:1], batch=3)
    _check_batch(graph, run, images)
    if suffix == 'pt2':
        notes = open_program(path).description
        assert notes['classes'] == predictor.classes
        assert notes['in_graph']['mean'] == [123.675, 116.28, 103.53]
        return
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path))
    assert [each.name for each in session.get_outputs()] == list(graph.outputs)
    assert session.get_inputs()[0].shape == ['batch', 3, 'height', 'width']


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['onnx', 'pt2'])
def test_files_with_nms_or_pasted_masks(predictors, tmp_path, suffix):
    path = tmp_path / f'model.{suffix}'
    for head, options in [('retinanet', dict(nms=True)), ('mask_rcnn', dict(paste=True))]:
        _, run = _export_and_compare(predictors[head], path, None, _batches(SIZES), **options)
        [images] = _batches(SIZES[:1])
        found = run(images)
        assert found['boxes'].shape == (2, 100, 4)
        assert 'masks' not in found or found['masks'].shape == (2, 100, *SIZES[0])


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['onnx', 'xml', 'pt2'])
@pytest.mark.parametrize('head', ['retinanet', 'mask_rcnn', 'cascade'])
def test_a_batch_may_mix_images_with_and_without_objects(root, tmp_path, head, suffix):
    if suffix == 'xml':
        pytest.importorskip('openvino')
    predictor = tiny_predictor(root, head, tmp_path / 'weights.pth')
    [images] = _batches(SIZES[:1], batch=3)
    images[1] = 0
    settings = predictor.model.test_cfg.get('rcnn', predictor.model.test_cfg)
    settings.score_thr = 0.0
    _, run = _graph(predictor)
    best = np.sort(run(images)['scores'].max(1))
    settings.score_thr = float(best[np.diff(best).argmax() :][:2].mean())
    graph, run = write_export(predictor, tmp_path / f'model.{suffix}', None, nms=True)
    whole = _check_batch(graph, run, images)
    empty = ~(whole['scores'] > 0).any(1)
    assert 0 < empty.sum() < len(images)
    assert (whole['labels'][empty] == -1).all()
    assert not any(whole[name][empty].any() for name in {'boxes', 'masks'} & whole.keys())


def test_nothing_is_found_without_a_score_above_the_threshold(predictors):
    model = copy.deepcopy(predictors['mask_rcnn'].model)
    model.test_cfg.rcnn.score_thr = 1.0
    for portable in (False, True):
        graph = build_graph(
            model, predictors['mask_rcnn'].cfg.model.data_preprocessor, portable=portable
        )
        [images] = _batches(SIZES[:1])
        with torch.no_grad():
            found = graph(torch.from_numpy(images))
        assert not found['scores'].any()
        assert not found['masks'].any()
        assert (found['labels'] == -1).all()


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


@settings(max_examples=30)
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
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    expected = module(*tensors)
    for value, wanted in zip(suppress(*tensors, *module.settings), expected.values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)
    found = session.run(list(expected), inputs)
    for value, wanted in zip(found, expected.values(), strict=True):
        np.testing.assert_array_equal(value, wanted.numpy())
    rows = (found[1] > 0).sum()
    assert 0 < rows <= (scores > 0).sum() or not scores.any()
    assert (found[2][found[1] == 0] == -1).all()


def test_regions_are_pooled_alike():
    maps = [torch.randn(2, 8, 40 >> i, 50 >> i) for i in range(3)]
    corner = torch.rand(60, 2) * 150
    boxes = torch.cat([corner, corner + torch.rand(60, 2) * 100], 1)
    boxes[0] = 0
    images, levels = torch.randint(0, 2, (60,)), torch.randint(0, 3, (60,))
    for samples in (0, 2):
        arguments = (maps, boxes, images, levels, [4, 8, 16], 7, samples)
        torch.testing.assert_close(pool(*arguments), pool_regions(*arguments))


@pytest.mark.parametrize(
    ('head', 'place', 'change', 'message'),
    [
        ('retinanet', 'test_cfg.nms', dict(type='soft_nms'), r'test_cfg\.nms: exports have no'),
        ('retinanet', 'test_cfg.nms', dict(max_num=5), r'test_cfg\.nms: exports have no'),
        ('retinanet', 'test_cfg', dict(max_per_img=-1), r'test_cfg\.max_per_img: .* limit'),
        ('retinanet', 'test_cfg', dict(min_bbox_size=2), 'min_bbox_size'),
        ('retinanet', 'bbox_head', dict(type='ATSSHead', norm_cfg=None), 'RetinaNet with ATSSHead'),
        ('fpn', 'data_preprocessor', dict(test_cfg=dict(size_divisor=32)), 'pad images in the te'),
        ('mask_rcnn', 'test_cfg.rpn', dict(nms_pre=-1), r'test_cfg\.rpn\.nms_pre: .* limit'),
        ('mask_rcnn', 'test_cfg.rcnn.nms', dict(type='soft_nms'), r'rcnn\.nms: exports have no'),
        ('cascade', 'test_cfg.rpn.nms', dict(class_agnostic=True), r'rpn\.nms: exports have no'),
        (
            'cascade',
            'roi_head',
            dict(type='HybridTaskCascadeRoIHead'),
            'no export for the roi_head',
        ),
        ('mask_rcnn', 'roi_head.mask_head', dict(type='CoarseMaskHead'), 'the mask_head Coarse'),
        (
            'mask_rcnn',
            'roi_head.bbox_roi_extractor.roi_layer',
            dict(aligned=False),
            'this roi_layer',
        ),
    ],
)
def test_unknown_parts_are_refused(root, head, place, change, message):
    cfg = tiny_config(root, head)
    node = cfg.model
    for key in place.split('.'):
        node = node[key]
    node.update(change)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as models:
        model = models.build(cfg.model)
    with pytest.raises(UserError, match=message):
        build_graph(model, cfg.model.data_preprocessor, nms=head == 'retinanet')


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
