"""Files find what a trained model finds, in photographs and in drawn scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS

from poolformer_dense.config.load import load_config
from poolformer_dense.exporting.exporter import parity_batches, read_resized, write_export
from poolformer_dense.exporting.parity import measure_parity
from poolformer_dense.predict.predictor import load_predictor
from tests.tiny_models import HEADS, tiny_config

pytestmark = pytest.mark.slow
NAMES = dict(
    retinanet='retinanet_poolformer_s12',
    mask_rcnn='mask_rcnn_poolformer_s12',
    cascade='beyond/cascade_mask_rcnn_poolformer_s12',
    fpn='demo/fpn_poolformer_s12',
)
SUFFIXES = ('onnx', 'xml', 'pt2')


def _overfit(cfg, path, steps):
    """Train on eight images until scores and boxes are those of a trained model."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as datasets:
        dataset = datasets.build(cfg.train_dataloader.dataset)
        samples = [dataset[i] for i in range(8)]
        model = MODELS.build(cfg.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = 5e-4 * min(1, (step + 1) / 15)
        chosen = rng.choice(len(samples), 2, replace=False)
        batch = model.data_preprocessor(pseudo_collate([samples[i] for i in chosen]), True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    meta = dict(dataset_meta=dict(classes=dataset.metainfo['classes']))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


def _resize(dataset, scale):
    for step in dataset.pipeline:
        if step['type'] == 'Resize':
            step['scale'] = scale


def _check(cfg, checkpoint, images, folder):
    predictor = load_predictor(cfg, str(checkpoint), 'cpu')
    scenes = list(read_resized(predictor, images))
    for suffix in SUFFIXES:
        if suffix == 'xml':
            pytest.importorskip('openvino')
        path = folder / f'model.{suffix}'
        graph, run = write_export(predictor, path, None, nms=predictor.detects)
        parity = measure_parity(graph, predictor.model, run, parity_batches(scenes, None))
        print(f'{suffix}: {parity.same} of {parity.total}, ties: {parity.ties}')
        assert parity.holds, (suffix, parity)
        assert parity.total > 5 * len(images)
        assert len(parity.ties) <= parity.total / 50, parity.ties


@pytest.mark.parametrize('head', NAMES)
def test_a_file_finds_in_photographs_what_its_model_does(root, tiny_coco, shapes, tmp_path, head):
    cfg = load_config(str(root / f'configs/{NAMES[head]}.py'))
    cfg.model.backbone.pop('init_cfg', None)
    data = cfg.train_dataloader.dataset
    if head == 'fpn':  # there are no label maps of the photographs
        data.data_root = str(shapes / 'ade')
    else:
        data.update(
            data_root=str(tiny_coco),
            ann_file='annotations/instances_val2017.json',
            data_prefix=dict(img='val2017/'),
        )
        _resize(data, (224, 160))
    if head in ('mask_rcnn', 'cascade'):
        settings = cfg.model.train_cfg
        settings.rpn_proposal.update(nms_pre=200, max_per_img=100)
        for each in settings.rcnn if head == 'cascade' else [settings.rcnn]:
            each.sampler.num = 48
    _resize(cfg.test_dataloader.dataset, (320, 240))
    _overfit(cfg, tmp_path / 'weights.pth', 120)
    images = sorted(Path(tiny_coco, 'val2017').glob('*.jpg'))
    assert len(images) == 50
    _check(cfg, tmp_path / 'weights.pth', images, tmp_path)


@pytest.mark.parametrize('head', HEADS)
def test_a_file_finds_in_drawn_scenes_what_its_model_does(root, shapes, tmp_path, head):
    cfg = tiny_config(root, head)
    folder = shapes / ('ade' if head == 'fpn' else 'coco')
    cfg.train_dataloader.dataset.data_root = str(folder)
    _overfit(cfg, tmp_path / 'weights.pth', 150)
    _check(cfg, tmp_path / 'weights.pth', sorted(folder.rglob('*.jpg')), tmp_path)
