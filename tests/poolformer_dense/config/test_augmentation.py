"""Test-time augmentation: what the config of a test becomes, and what it predicts."""

from __future__ import annotations

import pytest
import torch
from mmengine.hooks import EMAHook

from poolformer_dense.config.augmentation import enable_tta, tta_pipeline
from poolformer_dense.config.walk import type_name
from poolformer_dense.errors import UserError
from poolformer_dense.runner.loops import parts_by_size
from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import tiny


@pytest.fixture
def demo(root, shapes, tmp_path):
    def load(name, **overrides):
        here = {'test_dataloader.num_workers': 0, 'test_dataloader.persistent_workers': False}
        quiet = {'log_level': 'WARNING', 'default_hooks.report': None}
        return tiny.demo_config(root, name, shapes, tmp_path, here | quiet | overrides)

    return load


def _only_the_image_itself(cfg):
    """Leave one way to augment, which changes nothing."""
    [step] = [step for step in cfg.tta_pipeline if type_name(step) == 'TestTimeAug']
    _, flips, *rest = step.transforms
    same = dict(type='Resize', scale=cfg.test_dataloader.dataset.pipeline[1].scale, keep_ratio=True)
    step.transforms = [[same], [flips[0]], *rest]


@pytest.mark.parametrize('name', ['retinanet', 'fpn'])
def test_one_way_to_augment_that_changes_nothing_gives_the_plain_numbers(demo, name):
    few = {'model.test_cfg.score_thr': 0.0, 'model.test_cfg.max_per_img': 9}
    found = []
    for augmented in (False, True):
        cfg = demo(name, **(few if name == 'retinanet' else {}))
        if augmented:
            _only_the_image_itself(cfg)
            enable_tta(cfg)
        torch.manual_seed(0)
        found.append(build_runner(cfg).test())
    plain, joined = found
    assert joined == pytest.approx(plain, abs=0.2)  # rounding decides where labels tie


@pytest.mark.parametrize('name', ['retinanet', 'fpn'])
def test_scales_and_flips_are_those_of_the_config(demo, name):
    cfg = demo(name)
    cfg.test_dataloader.batch_size = 3
    cfg.custom_hooks = [dict(type='EMAHook')]
    runner = build_runner(cfg)
    cfg.load_from = f'{runner.work_dir}/weights.pth'
    torch.save(runner.model.state_dict(), cfg.load_from)
    enable_tta(cfg)
    tested = build_runner(cfg)
    assert any(isinstance(hook, EMAHook) for hook in tested.hooks)
    seen = []
    tested.model.module.backbone.register_forward_hook(lambda m, i, o: seen.append(i[0].shape))
    tested.test()
    weights = tested.model.module.state_dict()
    assert all(torch.equal(w, weights[k]) for k, w in runner.model.state_dict().items())
    assert len(seen) % 6 == 0  # three scales, each twice
    assert len({shape[2:] for shape in seen[:6]}) == 3


def test_without_tta_pipeline_the_image_is_mirrored(demo):
    cfg = demo('fpn')
    for key in ('tta_pipeline', 'tta_model'):
        cfg.pop(key)
    steps = tta_pipeline(cfg, cfg.test_dataloader.dataset.pipeline)
    assert [type_name(step) for step in steps[:-1]] == [
        'LoadImageFromFile', 'Resize', 'ResizeToMultiple',
    ]  # fmt: skip
    kinds = [[type_name(step) for step in option] for option in steps[-1]['transforms']]
    assert kinds == [['RandomFlip'] * 2, ['LoadAnnotations'], ['PackSegInputs']]
    enable_tta(cfg)
    assert build_runner(cfg).test()


@pytest.mark.parametrize(
    ('name', 'change', 'said'),
    [
        ('mask_rcnn', {}, r'this model has masks \(model\.roi_head\.mask_head\)'),
        ('fpn', {'tta_pipeline': [dict(type='LoadImageFromFile')]}, 'it has no TestTimeAug step'),
    ],
)
def test_what_can_not_be_augmented_is_one_line(demo, name, change, said):
    cfg = demo(name)
    cfg.update(change)
    with pytest.raises(UserError, match=said):
        enable_tta(cfg)


def test_augmented_batches_are_split_where_sizes_change():
    sizes = [(8, 6), (8, 6), (6, 8)]
    views = [[torch.zeros(3, h * s, w * s) for h, w in sizes] for s in (1, 2)]
    batch = dict(inputs=views, data_samples=[['a', 'b', 'c'], ['A', 'B', 'C']])
    parts = parts_by_size(batch)
    assert [part['data_samples'] for part in parts] == [
        [['a', 'b'], ['A', 'B']],
        [['c'], ['C']],
    ]
    assert [[len(view) for view in part['inputs']] for part in parts] == [[2, 2], [1, 1]]
