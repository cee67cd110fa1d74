"""Pascal VOC's files: every fault is found, by its kind and place, and only the grave ones stop."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import pytest
from mmdet.datasets import VOCDataset
from mmengine.config import Config
from PIL import Image

from poolformer_dense.config.datasets import named_sources
from poolformer_dense.config.load import load_config
from poolformer_dense.config.preflight import check_run
from poolformer_dense.data.audit import audit, format_audits
from poolformer_dense.data.faults import ERROR, WARNING, is_error
from poolformer_dense.errors import UserError
from poolformer_dense.measure.shapes import CLASSES
from tests.drawn import write_voc


@pytest.fixture(scope='session')
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('drawn') / 'voc'
    write_voc(folder, num_train=6, num_val=3)
    return folder


@pytest.fixture
def voc(drawn, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(drawn, tmp_path / 'voc')


@pytest.fixture(scope='session')
def detector(root) -> Config:
    """The demo's detector on VOC's files."""
    cfg = load_config(str(root / 'configs/demo/retinanet_poolformer_s12.py'))
    objects = dict(type='LoadAnnotations', with_bbox=True)
    for split, at in (('train', 1), ('val', 2), ('test', 2)):
        pipeline = copy.deepcopy(cfg[f'{split}_dataloader'].dataset.pipeline)
        pipeline[at] = objects
        cfg[f'{split}_dataloader'].dataset = dict(
            type='VOCDataset',
            ann_file=f'ImageSets/Main/{split.replace("test", "val")}.txt',
            metainfo=dict(classes=CLASSES),
            data_prefix=dict(sub_data_root=''),
            test_mode=split != 'train',
            pipeline=pipeline,
        )
        cfg[f'{split}_evaluator'] = dict(type='VOCMetric')
    return cfg


@pytest.fixture
def load(detector):
    def load(data: Path, **overrides) -> Config:
        cfg = copy.deepcopy(detector)
        for split in ('train', 'val', 'test'):
            cfg[f'{split}_dataloader'].dataset.data_root = str(data)
        cfg.merge_from_dict(overrides)
        return cfg

    return load


def _found(cfg, splits=('train', 'val'), **options) -> list:
    sources, unknown = named_sources(cfg, splits)
    results, unread = audit(sources, **options)
    assert unknown + unread == []
    return [found for result in results for found in result.faults]


def _change(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
    assert count
    path.write_text(text)


BOX = '<bndbox>.*?</bndbox>'


def _box(x1: float, y1: float, x2: float, y2: float) -> str:
    corners = f'<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>'
    return f'<bndbox>{corners}</bndbox>'


def test_sound_files_have_no_fault(load, voc):
    cfg = load(voc)
    assert _found(cfg) == []
    check_run(cfg, ['train', 'val', 'test'])


# Each spoils the first training image: what, by what, the kind of fault, and what it tells.
SPOILED = {
    'not XML': ('<name>', '<label>', 'annotation file', 'not XML'),
    'difficult': ('difficult>0', 'difficult>Unspecified', 'annotation entry', 'Unspecified'),
    'no name': ('<name>.*?</name>', '', 'annotation entry', 'has no name'),
    'size in decimals': ('<width>', '<width>1.5', 'image entry', "width is '1.5"),
    'size of nothing': ('<height>.*?</height>', '', 'image entry', "height is ''"),
    'size of 0': ('<width>.*?</width>', '<width>0</width>', 'image entry', "width is '0'"),
    'corner missing': ('<ymax>.*?</ymax>', '', 'invalid box', 'no ymax'),
    'box missing': (BOX, '', 'invalid box', 'no xmin'),
    'no number': ('<xmin>', '<xmin>x', 'invalid box', 'not a number'),
    'not finite': (BOX, _box(1, 1, float('nan'), 9), 'invalid box', "'nan'"),
    'swapped': (BOX, _box(40, 9, 4, 30), 'invalid box', '40, 9, 4, 30'),
    'empty': (BOX, _box(9, 9, 9, 30), 'empty box', 'FilterAnnotations'),
    'beyond': (BOX, _box(300, 9, 340, 30), 'empty box', 'clipped'),
    'across': (BOX, _box(9, 9, 340, 30), 'box outside image', '340'),
}


@pytest.mark.parametrize(('what', 'by', 'kind', 'detail'), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_annotation_is_found(load, voc, what, by, kind, detail):
    path = voc / 'Annotations/train_0.xml'
    _change(path, what, by)
    (found,) = [f for f in _found(load(voc)) if f.kind == kind]
    assert found.where.startswith(str(path))
    assert detail in found.detail
    assert is_error(found) == (kind != 'box outside image')


def test_a_fault_has_its_line(load, voc):
    path = voc / 'Annotations/val_1.xml'
    _change(path, 'difficult>0', 'difficult>no')
    (found,) = _found(load(voc), ['val'])
    lines = path.read_text().splitlines()
    line = next(i for i, text in enumerate(lines, start=1) if 'difficult>no' in text)
    # that of the object
    assert f'{path}, line {line - 2} ' in found.where


def test_empty_boxes_stop_only_a_training_that_takes_them(load, voc):
    for split in ('train', 'val'):
        _change(voc / f'Annotations/{split}_0.xml', BOX, _box(9, 9, 9, 30))
    kinds = {f.where.split('/')[-1][:5]: f.kind for f in _found(load(voc))}
    assert kinds == {'train': 'empty box', 'val_0': 'box of no area'}
    pipeline = [*load(voc).train_dataloader.dataset.pipeline, dict(type='FilterAnnotations')]
    filtered = load(voc, **{'train_dataloader.dataset.pipeline': pipeline})
    assert {f.severity for f in _found(filtered)} == {WARNING}
    _change(voc / 'Annotations/train_0.xml', 'difficult>0', 'difficult>1')
    assert {f.severity for f in _found(load(voc))} == {WARNING}


def test_names_that_the_config_does_not_have(load, voc):
    for path in (voc / 'Annotations').iterdir():
        path.write_text(path.read_text().replace('>disc<', '>Disc <').replace('square', 'quad'))
    found = _found(load(voc), ['train'])
    by_kind = {f.kind: f for f in found}
    assert by_kind['misspelt class'].where == "'Disc '"
    assert "the class of the config is 'disc'" in by_kind['misspelt class'].detail
    assert by_kind['misspelt class'].severity == ERROR
    assert by_kind['object left out'].where == "'quad'"
    lacking = [f.detail for f in found if f.kind == 'class without object']
    assert lacking == ["'disc' has none", "'square' has none"]
    # as many as the data set leaves out
    count = sum(path.read_text().count('>quad<') for path in (voc / 'Annotations').glob('train_*'))
    assert by_kind['object left out'].detail.startswith(f'{count} objects')


def test_no_object_of_the_classes_is_an_error(load, voc):
    for path in (voc / 'Annotations').iterdir():
        for name in CLASSES:
            path.write_text(path.read_text().replace(f'>{name}<', '>thing<'))
    with pytest.raises(UserError, match=r'no object: .*classes: no object of .*train\.txt'):
        check_run(load(voc), ['train'])


def test_missing_and_broken_files(load, voc):
    (voc / 'Annotations/train_0.xml').unlink()
    (voc / 'JPEGImages/train_1.jpg').rename(voc / 'JPEGImages/train_1.JPG')
    (voc / 'JPEGImages/train_2.jpg').write_bytes(b'no image')
    Image.new('RGB', (11, 7)).save(voc / 'JPEGImages/train_3.jpg')
    found = {f.kind: str(f) for f in _found(load(voc), ['train'])}
    assert 'train_0.xml: no such file' in found['missing annotation']
    assert 'there is train_1.JPG' in found['missing image']
    assert 'convert_data.py' in found['missing image']
    assert 'train_2.jpg' in found['unreadable image']
    assert 'has 11x7 pixels, its annotation says' in found['wrong image size']
    quick = {f.kind for f in _found(load(voc), ['train'], quick=True)}
    assert quick == {'missing annotation', 'missing image'}


LISTS = {
    'listed twice': ('train_0\ntrain_1\ntrain_0\n', 'image listed twice', 'also line 1'),
    'of one class': ('train_0 -1\n', 'missing annotation', "if the image is 'train_0'"),
    'blank line': ('train_0\n\n', 'annotation file', 'blank'),
    'byte-order mark': ('\ufefftrain_0\n', 'annotation file', 'byte-order mark'),
    'empty': ('', 'annotation file', 'lists no image'),
}


@pytest.mark.parametrize(('text', 'kind', 'detail'), LISTS.values(), ids=LISTS)
def test_a_spoiled_list_is_found(load, voc, text, kind, detail):
    (voc / 'ImageSets/Main/val.txt').write_text(text)
    assert detail in next(f.detail for f in _found(load(voc), ['val']) if f.kind == kind)


def test_a_list_from_windows_is_sound(load, voc):
    (voc / 'ImageSets/Main/val.txt').write_bytes(b'train_0\r\ntrain_1\r\n')
    assert [f for f in _found(load(voc), ['val']) if is_error(f)] == []


def test_the_repaired_list_has_no_error(load, voc, tmp_path):
    _change(voc / 'Annotations/train_0.xml', 'difficult>0', 'difficult>no')
    (voc / 'JPEGImages/train_1.jpg').write_bytes(b'')
    cfg = load(voc)
    sources, _ = named_sources(cfg, ['train'])
    results, _ = audit(sources, fix=tmp_path / 'fixed')
    assert results[0].fixed.read_text().split() == ['train_2', 'train_3', 'train_4', 'train_5']
    assert 'use it with --cfg-options train_dataloader' in format_audits(results, [])
    fixed = load(voc, **{'train_dataloader.dataset.ann_file': str(results[0].fixed)})
    assert [f for f in _found(fixed, ['train']) if is_error(f)] == []


def test_the_objects_counted_are_those_that_mmdet_reads(load, voc):
    cfg = load(voc)
    sources, _ = named_sources(cfg, ['train'])
    results, _ = audit(sources, quick=True)
    dataset = VOCDataset(
        data_root=str(voc), ann_file='ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root=''), metainfo=dict(classes=CLASSES), pipeline=[],
    )  # fmt: skip
    count = sum(len(dataset.get_data_info(i)['instances']) for i in range(len(dataset)))
    assert results[0].contents == f'6 images, {count} objects'


@pytest.mark.parametrize('kind', ['WIDERFaceDataset', 'LVISV1Dataset', 'CrowdHumanDataset'])
def test_an_unknown_type_is_not_verified(load, voc, shapes, kind):
    """Never "no faults"."""
    cfg = load(voc)
    own = dict(
        type=kind, data_root=str(shapes / 'coco'), ann_file='annotations/instances_train2017.json'
    )
    cfg.train_dataloader.dataset = own
    sources, unknown = named_sources(cfg, ['train'])
    results, unread = audit(sources)
    text = format_audits(results, unknown + unread)
    assert f'not verified, the type is not known here: train_dataloader.dataset ({kind})' in text
    assert 'no faults' not in text
