"""Errors people really hit are one line, before any model is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backbones.checkpoints import CheckpointError
from poolformer_dense.config.load import load_config, use_mirror
from poolformer_dense.config.preflight import check_run
from poolformer_dense.errors import UserError


def _rewritten(shapes: Path, folder: Path, change) -> Path:
    """A changed copy of the validation annotations."""
    content = json.loads((shapes / 'coco/annotations/instances_val2017.json').read_text())
    change(content)
    path = folder / 'changed.json'
    path.write_text(json.dumps(content))
    return path


def test_good_data_passes(detection, segmentation):
    check_run(detection(), ['train', 'val', 'test'])
    check_run(segmentation(), ['train', 'val', 'test'])


@pytest.mark.parametrize('config', ['retinanet', 'mask_rcnn', 'fpn'])
def test_missing_data_names_the_path_and_how_to_get_it(root, tmp_path, config):
    path = root / f'configs/{config}_poolformer_s12.py'
    cfg = load_config(str(path), {'data_root': str(tmp_path / 'none')})
    with pytest.raises(UserError, match=r'prepare_data.py (coco|ade20k).*data_root=PATH') as caught:
        check_run(cfg, ['train'])
    assert str(tmp_path / 'none') in str(caught.value)
    assert '\n' not in str(caught.value)


def test_missing_demo_data_names_its_tool(root, tmp_path, monkeypatch):
    path = root / 'configs/demo/retinanet_poolformer_s12.py'
    cfg = load_config(str(path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'tools/make_shapes.py data/shapes draws it'):
        check_run(cfg, ['val'])
    cfg = load_config(str(path), {'data_root': 'mine'})
    with pytest.raises(UserError, match=r'no data at .*/mine/.*ann_file and data_prefix') as caught:
        check_run(cfg, ['val'])
    assert 'make_shapes' not in str(caught.value)


def test_only_the_splits_in_use_are_checked(detection):
    cfg = detection(**{'train_dataloader.dataset.ann_file': 'none.json'})
    check_run(cfg, ['test'])
    with pytest.raises(UserError, match=r'train_dataloader.dataset.ann_file: no data at .*none'):
        check_run(cfg, ['train'])


def test_wrapped_data_sets_are_checked(detection):
    cfg = detection()
    inner = cfg.train_dataloader.dataset
    inner.ann_file = 'none.json'
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    with pytest.raises(UserError, match=r'train_dataloader\.dataset\.dataset\.ann_file: no data'):
        check_run(cfg, ['train'])


def test_not_an_annotation_file(detection, tmp_path):
    path = tmp_path / 'notes.json'
    path.write_text('{"images": []}')
    cfg = detection(**{'val_dataloader.dataset.ann_file': str(path)})
    with pytest.raises(UserError, match=r'notes\.json is not a COCO annotation file'):
        check_run(cfg, ['val'])


def test_num_classes_of_a_detector(detection):
    cfg = detection(**{'model.bbox_head.num_classes': 80})
    with pytest.raises(UserError, match=r'model.bbox_head.num_classes=80, but .* has 3 classes'):
        check_run(cfg, ['train'])


def test_num_classes_of_a_mask_head(root, shapes):
    path = root / 'configs/demo/mask_rcnn_poolformer_s12.py'
    overrides = {'data_root': str(shapes / 'coco'), 'model.roi_head.mask_head.num_classes': 2}
    with pytest.raises(UserError, match=r'model.roi_head.mask_head.num_classes=2'):
        check_run(load_config(str(path), overrides), ['train'])


def test_num_classes_of_a_segmentor(segmentation):
    cfg = segmentation(**{'model.decode_head.num_classes': 150})
    with pytest.raises(UserError, match=r'model.decode_head.num_classes=150, but .* has 4 classes'):
        check_run(cfg, ['train'])


def test_not_a_checkpoint(detection, tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_text('not weights')
    cfg = detection()
    cfg.load_from = str(path)
    with pytest.raises(UserError, match=r'weights.pth was not loaded'):
        check_run(cfg, ['test'])
    cfg.load_from = 'none.pth'
    with pytest.raises(UserError, match=r'none\.pth does not exist'):
        check_run(cfg, ['test'])


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'model.backbone.arch': 's25'}, "unknown arch 's25'; choose from s12, s24"),
        ({'model.backbone.token_mixers': 'Poling'}, "unknown token mixer 'Poling'; choose from"),
        ({'model.backbone.frozen_stages': 7}, 'frozen_stages must be from -1'),
    ],
)
def test_a_wrong_argument_of_the_backbone(detection, overrides, message):
    with pytest.raises(UserError, match=rf'model\.backbone \(PoolFormer\): {message}'):
        check_run(detection(**overrides), ['train'])


def test_pretrained_weights_are_checked_before_training(detection, tmp_path):
    cfg = detection()
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'typo.pth'))
    check_run(cfg, ['test'])
    with pytest.raises(UserError, match=r'typo\.pth does not exist'):
        check_run(cfg, ['train'])


def test_weights_out_of_reach_are_named_before_training(detection, tmp_path, monkeypatch):
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path))
    cfg = detection()
    url = 'http://127.0.0.1:9/weights.pth'
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=url)
    with pytest.raises(UserError, match=f'{url} could not be downloaded'):
        check_run(cfg, ['train'])
    cfg.launcher = 'pytorch'  # each of several processes would download for itself
    check_run(cfg, ['train'])


def test_a_mirror_takes_the_place_of_the_network(detection, tmp_path):
    cfg = detection()
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='poolformer_s12')
    with pytest.raises(CheckpointError, match=r'poolformer_s12\.pth\.tar is not in the mirror'):
        use_mirror(cfg, str(tmp_path))
    torch.save({'norm.weight': torch.ones(1)}, tmp_path / 'poolformer_s12.pth.tar')
    use_mirror(cfg, str(tmp_path))
    assert cfg.model.backbone.init_cfg.checkpoint == str(tmp_path / 'poolformer_s12.pth.tar')
    check_run(cfg, ['train'])


def _spoilt(detection, shapes, tmp_path, change):
    path = _rewritten(shapes, tmp_path, change)
    file = {'val_dataloader.dataset.ann_file': str(path), 'val_evaluator.ann_file': str(path)}
    return detection(**file)


def test_annotation_errors_stop_a_run_in_one_line(detection, shapes, tmp_path):
    def change(content):
        content['annotations'][0]['bbox'][1] = float('nan')
        content['annotations'][1]['category_id'] = 99
        content['annotations'][2]['category_id'] = 98

    cfg = _spoilt(detection, shapes, tmp_path, change)
    with pytest.raises(
        UserError,
        match=r'changed.json \(val\) has errors: 3, first NaN or infinite: annotation 1 .*unknown '
        r'category id: annotation 2 .*run tools/verify_data.py .*retinanet_poolformer_s12.py',
    ) as caught:
        check_run(cfg, ['val'])
    assert '\n' not in str(caught.value)


def test_only_the_first_process_reads_the_annotations(detection, shapes, tmp_path, monkeypatch):
    def change(content):
        content['annotations'][0]['bbox'] = None

    monkeypatch.setenv('RANK', '1')
    check_run(_spoilt(detection, shapes, tmp_path, change), ['val'])


def test_objects_that_training_skips_are_a_line_of_the_log(detection, shapes, tmp_path, logged):
    def change(content):
        content['annotations'][0]['bbox'][2] = 0

    check_run(_spoilt(detection, shapes, tmp_path, change), ['val'])
    assert 'warnings: 1 x box of no area. For the table: tools/verify_data' in logged[-1]


def test_an_image_that_is_not_there_stops_a_run(detection, shapes, tmp_path):
    def change(content):
        content['images'][1]['file_name'] = 'gone.jpg'

    with pytest.raises(UserError, match=r'missing image: \S+/val2017/gone\.jpg: image 2'):
        check_run(_spoilt(detection, shapes, tmp_path, change), ['val'])


def test_labels_outside_the_classes_stop_a_run(segmentation):
    overrides = {'model.decode_head.num_classes': 3}
    for split in ('train', 'val'):
        overrides[f'{split}_dataloader.dataset.metainfo'] = dict(
            classes=('a', 'b', 'c'), palette=[(0, 0, 0)] * 3
        )
    with pytest.raises(UserError, match=r'label outside classes: \S+png: has \[4\]; 3 classes'):
        check_run(segmentation(**overrides), ['train', 'val'])


def test_tiny_coco_passes(root, tiny_coco):
    for config in ('retinanet', 'mask_rcnn'):
        path = root / f'configs/{config}_poolformer_s12.py'
        overrides = {'data_root': str(tiny_coco), 'model.backbone.init_cfg': None}
        check_run(load_config(str(path), overrides), ['train', 'val', 'test'])
