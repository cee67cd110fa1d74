"""The configs are the published recipes, and every one builds."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, PARAM_SCHEDULERS

from backbones.presets import PRESETS
from backbones.weights import RELEASED
from poolformer_dense.measure.results_page import load_metafile, read_docstring

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
ARCHS = [
    *(f'poolformer_{size}' for size in ('s12', 's24', 's36', 'm36', 'm48')),
    *(f'poolformerv2_{size}' for size in ('s12', 's24', 's36')),
    *(f'{family}_{size}' for family in ('convformer', 'caformer') for size in ('s18', 's36')),
]
BEYOND_ARCHS = ['poolformer_s12', 'poolformer_s24', 'poolformer_s36', 'caformer_s18']
LEAVES = [
    *(f'{head}_{arch}' for head in ('retinanet', 'mask_rcnn', 'fpn') for arch in ARCHS),
    *(f'beyond/cascade_mask_rcnn_{arch}' for arch in BEYOND_ARCHS),
    *(f'beyond/mask_rcnn_{arch}_lsj_3x' for arch in BEYOND_ARCHS),
    *(f'beyond/upernet_{arch}' for arch in BEYOND_ARCHS),
    *(f'beyond/fpn_{arch}_plain' for arch in ARCHS if arch.startswith('poolformer_')),
]
DEMOS = [f'demo/{head}_poolformer_s12' for head in ('retinanet', 'mask_rcnn', 'fpn')]
SMALL = [
    *(
        f'small/retinanet_{name}_bccd'
        for name in ('poolformer_s12', 'identity_s12', 'depthwise_s12', 'r18')
    ),
    *(f'small/fpn_{name}_camvid' for name in ('poolformer_s12', 'identity_s12', 'r18')),
]
# The numbers of arXiv 2111.11418, Tables 3 and 4, without the unused norm of RetinaNet.
PARAMETERS = {
    'retinanet_poolformer_s12': 21_653_044,
    'retinanet_poolformer_s24': 31_126_836,
    'retinanet_poolformer_s36': 40_600_628,
    'mask_rcnn_poolformer_s12': 31_570_608,
    'mask_rcnn_poolformer_s24': 41_044_400,
    'mask_rcnn_poolformer_s36': 50_518_192,
    'fpn_poolformer_s12': 15_669_846,
    'fpn_poolformer_s24': 25_143_638,
    'fpn_poolformer_s36': 34_617_430,
    'fpn_poolformer_m36': 59_778_006,
    'fpn_poolformer_m48': 77_078_934,
}


@pytest.fixture(scope='module')
def metadata(root) -> dict[str, dict]:
    """What the metafile says of each leaf config's model."""
    models = load_metafile(root)['Models']
    return {m['Config'].removeprefix('configs/').removesuffix('.py'): m['Metadata'] for m in models}


leaves = pytest.mark.parametrize('name', LEAVES)
all_leaves = pytest.mark.parametrize('name', [*LEAVES, *DEMOS, *SMALL])


def test_the_configs_are_these():
    found = {
        str(path.relative_to(CONFIGS).with_suffix(''))
        for path in CONFIGS.rglob('*.py')
        if not {'_base_', 'ablations'} & set(path.parts)  # ablations have tests of their own
    }
    assert found == {*LEAVES, *DEMOS, *SMALL}


@all_leaves
def test_file_is_short_and_lists_its_bases(name):
    path = CONFIGS / f'{name}.py'
    assert len(path.read_text().splitlines()) <= 45
    assert all('_base_/' in base for base in _bases(path)), 'a leaf does not build on another leaf'
    assert _depth(path) <= 3


@leaves
def test_docstring_names_the_config_and_says_what_was_run(name):
    said = read_docstring(CONFIGS / f'{name}.py')
    tool = 'dist_test' if name.endswith('_plain') else 'dist_train'
    assert said['command'].startswith(f'tools/{tool}.sh configs/{name}.py ')
    batch = 4 if '/fpn' in f'/{name}' else 2
    assert said['hardware'] == f'8 GPUs x {batch} images'


@all_leaves
def test_everything_builds(load, meta_model, name):
    model, cfg = meta_model(name), load(name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = DATASETS.build(loader.dataset | dict(lazy_init=True))  # reads no file
        classes = dataset.metainfo['classes']
        assert {len(classes)} == set(_values(cfg.model, 'num_classes'))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    for schedule in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(schedule | dict(optimizer=optimizer, convert_to_iter_based=False))
    last = cfg.param_scheduler[-1]
    assert last.end == cfg.train_cfg['max_epochs' if last.by_epoch else 'max_iters']


@leaves
def test_backbone_is_the_named_one_with_its_released_weights(load, meta_model, name):
    cfg, backbone = load(name), meta_model(name).backbone
    arch = next(arch for arch in ARCHS if f'_{arch}' in name)
    assert f'{type(backbone).__name__}_{cfg.model.backbone.arch}'.lower() == arch
    assert backbone.arch == PRESETS[arch]
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=arch)
    assert RELEASED[arch].arch == arch
    assert RELEASED[arch].resolution == 224
    # drop path is 0 and nothing is frozen in the released detectors and segmentors
    assert not {'drop_path_rate', 'frozen_stages'} & cfg.model.backbone.keys()
    dims = [backbone.arch.dims[i] for i in backbone.out_indices]
    reader = cfg.model.neck if 'neck' in cfg.model else cfg.model.decode_head
    assert list(reader.in_channels) == dims


@leaves
def test_parameter_counts(meta_model, metadata, name):
    parameters = sum(p.numel() for p in meta_model(name).parameters())
    assert parameters == metadata[name]['Parameters']
    assert parameters == PARAMETERS.get(name, parameters)


@pytest.mark.parametrize('name', [n for n in LEAVES if 'rcnn' in n or 'retinanet' in n])
def test_coco_recipe(load, name):
    cfg = load(name)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.batch_sampler.type == 'AspectRatioBatchSampler'
    train, test = _pipeline(cfg, 'train'), _pipeline(cfg, 'test')
    assert test['Resize']['scale'] == (1333, 800)
    assert test['Resize']['keep_ratio'] is True
    assert train['RandomFlip']['prob'] == 0.5
    assert train['LoadAnnotations'].get('with_mask', False) is ('rcnn' in name)
    assert cfg.val_evaluator.metric == (['bbox', 'segm'] if 'rcnn' in name else 'bbox')
    if not name.endswith('_lsj_3x'):
        assert train['Resize'] == test['Resize']
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]
    assert preprocessor.bgr_to_rgb is True
    assert preprocessor.pad_size_divisor == 32


def test_retinanet_pyramid(load):
    cfg = load('retinanet_poolformer_s12')
    assert cfg.model.backbone.out_indices == (1, 2, 3)
    neck = cfg.model.neck
    assert (neck.in_channels, neck.start_level, neck.num_outs) == ([128, 320, 512], 0, 5)
    assert neck.add_extra_convs == 'on_input'


def test_large_scale_jitter_is_upstreams(load):
    text = "_base_ = 'mmdet::common/lsj-100e_coco-instance.py'"
    upstream = Config.fromstring(text, file_format='.py')
    ours = load('beyond/mask_rcnn_poolformer_s12_lsj_3x').train_dataloader.dataset.pipeline
    assert ours == upstream.train_dataloader.dataset.dataset.pipeline


@pytest.mark.parametrize('name', [n for n in LEAVES if 'fpn_' in n or 'upernet' in n])
def test_ade20k_recipe(load, name):
    cfg = load(name)
    batch = 2 if 'upernet' in name else 4
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == 8 * batch
    train, test = _pipeline(cfg, 'train'), _pipeline(cfg, 'test')
    assert test == _pipeline(cfg, 'val')
    assert train['RandomResize']['scale'] == (2048, 512)
    assert train['RandomResize']['ratio_range'] == (0.5, 2.0)
    assert train['RandomCrop'] == dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75)
    # the data set drops label 0, and says so to the pipeline
    assert cfg.train_dataloader.dataset.type == 'ADE20KDataset'
    assert train['LoadAnnotations'] == test['LoadAnnotations'] == dict(type='LoadAnnotations')
    assert 'PhotoMetricDistortion' in train
    assert test['Resize'] == dict(type='Resize', scale=(2048, 512), keep_ratio=True)
    # the published protocol unless the name says plain
    multiple = test.get('ResizeToMultiple', {}).get('size_divisor')
    assert multiple == (None if name.endswith('_plain') else 32)
    head = cfg.model.decode_head
    assert (head.dropout_ratio, head.num_classes) == (0.1, 150)
    assert head.norm_cfg.type == 'SyncBN'


def test_semantic_fpn(load):
    cfg = load('fpn_poolformer_s12')
    assert cfg.model.decode_head.channels == 128
    assert cfg.model.neck.out_channels == 256


@pytest.mark.parametrize('arch', [arch for arch in ARCHS if arch.startswith('poolformer_')])
def test_plain_protocol_differs_in_nothing_else(load, arch):
    plain, default = load(f'beyond/fpn_{arch}_plain'), load(f'fpn_{arch}')
    for cfg in (plain, default):
        for dataset in (cfg.val_dataloader.dataset, cfg.test_dataloader.dataset):
            dataset.pipeline = [s for s in dataset.pipeline if s.type != 'ResizeToMultiple']
        cfg.pop('test_pipeline')
        cfg.pop('work_dir')
    assert plain.to_dict() == default.to_dict()


def _bases(path: Path) -> list[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            bases = ast.literal_eval(node.value)
            return [bases] if isinstance(bases, str) else bases
    return []


def _depth(path: Path) -> int:
    """How many files deep a config is, one of upstream's included."""
    bases = _bases(path)
    below = [1 if '::' in base else _depth(path.parent / base) for base in bases]
    return 1 + max(below, default=0)


def _pipeline(cfg: Config, split: str) -> dict[str, dict]:
    steps = cfg[f'{split}_dataloader'].dataset.pipeline
    return {step['type']: step for step in steps}


def _values(node, key: str) -> list:
    """All values of a key in nested dicts and lists."""
    if isinstance(node, dict):
        found = [node[key]] if key in node else []
        return found + [value for child in node.values() for value in _values(child, key)]
    if isinstance(node, (list, tuple)):
        return [value for child in node for value in _values(child, key)]
    return []
