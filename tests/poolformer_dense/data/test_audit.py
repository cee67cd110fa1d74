"""Every fault that is put into clean data is named, and clean data has none."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from poolformer_dense.config.datasets import named_sources
from poolformer_dense.config.load import load_config
from poolformer_dense.data.audit import Audit, audit
from poolformer_dense.data.faults import SEVERITIES
from poolformer_dense.errors import UserError
from poolformer_dense.measure.shapes import write_ade20k, write_coco

NUM_FAULTS = 1000


@pytest.fixture(scope='module')
def many_shapes(tmp_path_factory) -> Path:
    """Enough objects that each of 1,000 faults has one of its own."""
    folder = tmp_path_factory.mktemp('many')
    write_coco(folder / 'coco', num_train=320, num_val=1)
    write_ade20k(folder / 'ade', num_train=120, num_val=1)
    return folder


@pytest.fixture
def coco(shapes, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(shapes / 'coco', tmp_path / 'coco')


@pytest.fixture
def ade(shapes, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(shapes / 'ade', tmp_path / 'ade')


@pytest.fixture
def load(root):
    def load(config: str, data_root: Path, **overrides):
        path = root / f'configs/demo/{config}_poolformer_s12.py'
        return load_config(str(path), {'data_root': str(data_root), **overrides})

    return load


def _read(data_root: Path, split: str = 'train') -> dict:
    return json.loads((data_root / f'annotations/instances_{split}2017.json').read_text())


def _write(data_root: Path, content: dict, split: str = 'train') -> None:
    path = data_root / f'annotations/instances_{split}2017.json'
    path.write_text(json.dumps(content))


def _audit(cfg, splits=('train',), **options) -> list[Audit]:
    sources, unknown = named_sources(cfg, splits)
    results, unread = audit(sources, **options)
    assert unknown + unread == []
    return results


def _found(cfg, splits=('train',), **options) -> list:
    return [found for result in _audit(cfg, splits, **options) for found in result.faults]


def _size(content, annotation):
    image = content['images'][annotation['image_id'] - 1]
    return image['width'], image['height']


def _counts(polygons, size):
    return mask_utils.merge(mask_utils.frPyObjects(polygons, *size[::-1]))['counts'].decode()


# Each function spoils one annotation, given the content of its file.


def _setting(key, *values):
    return [lambda a, _, value=value: a.update({key: value}) for value in values]


def _changing(key, *functions):
    """The functions are given the value and the size of the image."""
    return [lambda a, c, new=new: a.update({key: new(a[key], _size(c, a))}) for new in functions]


def _replacing(*values):
    def put(annotation, content, value):
        content['annotations'][content['annotations'].index(annotation)] = value

    return [lambda a, c, value=value: put(a, c, value) for value in values]


NAN, INF = float('nan'), float('inf')
OBJECT_FAULTS = {
    'annotation entry': _replacing(None, 'object', 7),
    'annotation id': _setting('id', None, 'one', 1.5, [1]),
    'duplicate annotation id': [
        lambda a, content: content['annotations'].append(dict(a, area=a['area'] + 1))
    ],
    'unknown image id': _setting('image_id', 10**6, -1, None, [1], NAN),
    'unknown category id': _setting('category_id', 0, 99, None, '1', INF),
    'NaN or infinite': [
        *_setting('area', NAN, INF, -INF),
        *_changing('bbox', lambda b, _: [NAN, *b[1:]], lambda b, _: [*b[:3], INF]),
    ],
    'invalid box': [
        *_setting('bbox', None),
        *_changing('bbox', lambda b, _: b[:3], lambda b, _: [b], lambda b, _: [*b[:3], str(b[3])]),
        *_changing('bbox', lambda b, _: [*b[:3], -b[3]], lambda b, _: [*b[:2], -b[2], b[3]]),
    ],
    'box of no area': _changing('bbox', lambda b, _: [*b[:3], 0], lambda b, _: [*b[:2], 0, b[3]]),
    'box outside image': _changing(
        'bbox',
        lambda b, _: [-1.5, *b[1:]],
        lambda b, _: [b[0], -500, *b[2:]],
        lambda b, size: [*b[:2], size[0] - b[0] + 11, b[3]],
        lambda b, size: [*b[:3], size[1] - b[1] + 500],
    ),
    'invalid area': _setting('area', None, '12', [3], True),
    'area not positive': _setting('area', 0, -1.5),
    'iscrowd': _setting('iscrowd', '0', 2, None, -1, 'yes', [0]),
    'no mask': _setting('segmentation', None, []),
    'broken polygon': _changing(
        'segmentation',
        lambda m, _: [m[0][:-1]],
        lambda m, _: [m[0][:4]],
        lambda m, _: [['x', *m[0][1:]]],
        lambda m, _: [[NAN, *m[0][1:]]],
        lambda m, _: [[*m[0][:-1], INF]],
        lambda m, _: [[m[0][:1], *m[0][1:]]],
        lambda m, _: m[0],  # not a list of polygons
        lambda m, _: [*m, []],
    ),
    'polygon outside image': _changing(
        'segmentation', lambda m, _: [[-5.5, *m[0][1:]]], lambda m, _: [[*m[0][:-1], 1000]]
    ),
    'broken RLE': _changing(
        'segmentation',
        lambda m, size: dict(size=list(size), counts=_counts(m, size)),  # width and height swapped
        lambda m, size: dict(size=[size[1], size[0] + 1], counts=_counts(m, size)),
        lambda m, size: dict(size=list(size[::-1]), counts=_counts(m, size)[:3]),
        lambda m, size: dict(size=list(size[::-1]), counts=_counts(m, size) + '~'),
        lambda m, size: dict(size=list(size[::-1]), counts=''),
        lambda m, size: dict(size=list(size[::-1]), counts=[10, size[0] * size[1] - 9]),
        lambda m, size: dict(size=list(size[::-1]), counts=[-5, size[0] * size[1] + 5]),
        lambda m, size: dict(size=list(size[::-1]), counts=['10', size[0] * size[1] - 10]),
        lambda m, size: dict(size=list(size[::-1])),
        lambda m, size: dict(counts=_counts(m, size)),
    ),
}


def _spoil_objects(content: dict, count: int, rng) -> Counter:
    """Spoil annotations; return the kinds and the names by which they must be reported."""
    expected = Counter()
    annotations = list(content['annotations'])
    for n, index in enumerate(rng.permutation(len(annotations))[:count].tolist()):
        kind = list(OBJECT_FAULTS)[n % len(OBJECT_FAULTS)]
        variants = OBJECT_FAULTS[kind]
        variants[n // len(OBJECT_FAULTS) % len(variants)](annotations[index], content)
        entry = content['annotations'][index]
        own = entry.get('id') if isinstance(entry, dict) else None
        name = f'annotation {own}' if type(own) in (int, str) else f'annotation at index {index}'
        if isinstance(entry, dict) and type(entry['image_id']) in (int, str):
            name += f' (image {entry["image_id"]})'
        expected[kind, name] += 1
    return expected


def _cut(path: Path, rng) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * rng.uniform(0, 0.95))])


def _spoil_images(content: dict, data_root: Path, count: int, rng) -> Counter:
    expected = Counter()
    for n, index in enumerate(rng.permutation(len(content['images']))[:count].tolist()):
        entry = content['images'][index]
        path = data_root / 'train2017' / entry['file_name']
        kind = ['missing image', 'unreadable image', 'wrong image size', 'duplicate image id',
                'image entry'][n % 5]  # fmt: skip
        name = str(path)
        if kind == 'missing image':
            path.unlink()
        elif kind == 'unreadable image':
            _cut(path, rng) if rng.integers(2) else path.write_text('no image')
        elif kind == 'wrong image size':
            entry['width'] += int(rng.integers(1, 9))
        elif kind == 'duplicate image id':
            content['images'].append(dict(entry, coco_url='elsewhere'))
            name = f'image {entry["id"]}'
        else:
            entry['file_name'] = [None, 7][rng.integers(2)]
            name = f'image {entry["id"]}'
        expected[kind, name] += 1
    return expected


def _spoil_label_maps(data_root: Path, count: int, rng) -> Counter:
    expected = Counter()
    images = sorted((data_root / 'images/training').iterdir())
    for n, index in enumerate(rng.permutation(len(images))[:count].tolist()):
        image = images[index]
        path = data_root / 'annotations/training' / f'{image.stem}.png'
        label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        kind = ['missing label map', 'label map without image', 'unreadable label map',
                'label map channels', '16-bit label map', 'wrong label map size',
                'label outside classes', 'unreadable image'][n % 8]  # fmt: skip
        where = path
        if kind == 'missing label map':
            path.unlink()
        elif kind == 'label map without image':
            image.unlink()
        elif kind == 'unreadable label map':
            _cut(path, rng)
        elif kind == 'label map channels':
            cv2.imwrite(str(path), cv2.cvtColor(label_map, cv2.COLOR_GRAY2BGR))
        elif kind == '16-bit label map':
            cv2.imwrite(str(path), label_map.astype(np.uint16))
        elif kind == 'wrong label map size':
            cv2.imwrite(str(path), label_map[:, : -int(rng.integers(1, 9))])
        elif kind == 'label outside classes':
            label_map[5, 5] = rng.integers(5, 255)
            cv2.imwrite(str(path), label_map)
        else:
            _cut(image, rng)
            where = image
        expected[kind, str(where)] += 1
    return expected


def _names(faults) -> Counter:
    return Counter((found.kind, found.where) for found in faults)


def test_a_thousand_faults_of_all_kinds(many_shapes, load, tmp_path):
    shutil.copytree(many_shapes, tmp_path, dirs_exist_ok=True)
    coco, ade, fixed = (tmp_path / name for name in ('coco', 'ade', 'fixed'))
    rng = np.random.default_rng(0)
    content = _read(coco)
    expected = _spoil_objects(content, 800, rng)
    expected += _spoil_images(content, coco, 100, rng)
    _write(coco, content)
    cfg = load('mask_rcnn', coco)
    faults = _found(cfg)
    assert _names(faults) == expected

    expected_maps = _spoil_label_maps(ade, 100, rng)
    segmentation = load('fpn', ade)
    assert _names(_found(segmentation)) == expected_maps
    assert sum((expected + expected_maps).values()) == NUM_FAULTS
    assert len({kind for kind, _ in expected + expected_maps}) >= 12

    # What --fix writes has no fault left, and the original is as it was.
    before = (coco / 'annotations/instances_train2017.json').read_bytes()
    for spoilt, name in ((cfg, 'instances_train2017.json'), (segmentation, 'train.txt')):
        (result,) = _audit(spoilt, fix=fixed)
        assert result.fixed == fixed / name
        spoilt.train_dataloader.dataset.ann_file = str(result.fixed)
        assert not _found(spoilt)
    assert (coco / 'annotations/instances_train2017.json').read_bytes() == before
    kept = json.loads((fixed / 'instances_train2017.json').read_text())
    assert 300 < len(kept['annotations']) < 1100


@pytest.mark.parametrize('config', ['retinanet', 'mask_rcnn', 'fpn'])
def test_clean_data_has_no_faults(load, shapes, config):
    cfg = load(config, shapes / ('ade' if config == 'fpn' else 'coco'))
    assert _found(cfg, ('train', 'val', 'test')) == []


@pytest.mark.parametrize('config', ['retinanet', 'mask_rcnn'])
def test_photographs_with_crowds_have_no_faults(root, tiny_coco, config):
    path = root / f'configs/{config}_poolformer_s12.py'
    cfg = load_config(str(path), {'data_root': str(tiny_coco)})
    results = _audit(cfg, ('train', 'val', 'test'))
    assert [result.faults for result in results] == [[], []]
    assert [result.source.places for result in results] == [
        ['train_dataloader.dataset'],
        ['val_dataloader.dataset', 'test_dataloader.dataset'],
    ]


def test_legal_things_are_no_faults(coco, load):
    content = _read(coco)
    a, b, c, d = content['annotations'][:4]
    width, height = _size(content, a)
    a['bbox'] = [-0.4, -1, width + 0.9, height + 1.5]  # the border, rounded
    a['segmentation'] = [[-0.5, 0, width + 0.5, 0, width, height + 1], a['segmentation'][0]]
    width, height = _size(content, b)
    rle = mask_utils.merge(mask_utils.frPyObjects(b['segmentation'], height, width))
    b['segmentation'] = dict(size=rle['size'], counts=rle['counts'].decode())
    width, height = _size(content, c)
    c.update(iscrowd=1, segmentation=dict(size=[height, width], counts=[0, 5, height * width - 5]))
    d['bbox'][2:] = [0.3, 0.2]  # mmdet leaves it out for its size
    d['area'] = 0.06
    content['annotations'] = [o for o in content['annotations'] if o['image_id'] != 8]
    content['categories'].append(dict(id=44, name='star'))
    content['annotations'][9]['category_id'] = 44
    _write(coco, content)
    assert _found(load('mask_rcnn', coco)) == []


def test_severities(coco, load):
    """Broken masks matter to a run with masks only; a lost object is no reason to stop."""
    content = _read(coco)
    content['annotations'][0]['segmentation'] = [[1, 2, 3]]
    content['annotations'][1]['segmentation'] = []
    content['annotations'][2]['bbox'][3] = 0
    _write(coco, content)

    def severities(with_mask):
        cfg = load('retinanet', coco)
        cfg.train_dataloader.dataset.pipeline[1].with_mask = with_mask
        return {f.kind: f.severity for f in _found(cfg, quick=True)}

    assert severities(True) == {
        'broken polygon': 'error', 'no mask': 'error', 'box of no area': 'warning'
    }  # fmt: skip
    assert severities(False) == {'broken polygon': 'warning', 'box of no area': 'warning'}


def test_evaluation_asks_for_more_than_training(coco, load):
    content = _read(coco)
    content['annotations'][0]['id'] = 0
    del content['annotations'][1]['iscrowd']
    _write(coco, content)
    _write(
        coco,
        content | {'images': content['images'][:1], 'annotations': content['annotations'][:2]},
        'val',
    )
    cfg = load('retinanet', coco)
    cfg.val_dataloader.dataset.data_prefix.img = 'train2017/'
    assert _found(cfg) == []
    kinds = [found.kind for found in _found(cfg, ['val'])]
    assert kinds == ['annotation id 0', 'iscrowd']


def test_duplicate_and_broken_categories(coco, load):
    content = _read(coco)
    content['categories'] += [dict(id=1, name='star'), dict(id=9, name='disc'), dict(name='x'), 5]
    _write(coco, content)
    found = _names(_found(load('retinanet', coco), quick=True))
    assert found[('duplicate category', 'category 1')] == 1
    assert found[('duplicate category', 'category 9')] == 1
    assert found[('category entry', 'category at index 5')] == 1
    assert found[('category entry', 'category at index 6')] == 1


@pytest.mark.parametrize('text', ['', '{"images": [', '[]', '{"images": [], "annotations": {}}'])
def test_not_an_annotation_file(coco, load, text):
    (coco / 'annotations/instances_train2017.json').write_text(text)
    assert [found.kind for found in _found(load('retinanet', coco))] == ['annotation file']


def test_classes_that_differ_from_the_file_and_the_heads(coco, load):
    content = _read(coco)
    content['categories'][1]['name'] = 'rectangle'
    _write(coco, content)
    found = _found(load('retinanet', coco, **{'model.bbox_head.num_classes': 80}))
    assert [f.kind for f in found] == ['classes', 'classes']
    assert 'model.bbox_head.num_classes=80' in str(found[0])
    assert 'square' in str(found[1])


def test_wrapped_data_sets_are_verified(coco, load):
    cfg = load('retinanet', coco)
    inner = cfg.train_dataloader.dataset
    other = dict(
        inner, ann_file='annotations/instances_val2017.json', data_prefix=dict(img='val2017/')
    )
    content = _read(coco, 'val')
    content['annotations'][0]['bbox'] = [1, 2]
    _write(coco, content, 'val')
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=[inner, other]),
    )
    clean, faulty = _audit(cfg)
    assert clean.faults == []
    assert [found.kind for found in faulty.faults] == ['invalid box']
    assert faulty.source.places == ['train_dataloader.dataset.dataset.datasets.1']


def test_a_turned_photograph(coco, load):
    """OpenCV turns an image as its EXIF tag says, so its boxes must be of the turned one."""
    content = _read(coco)
    entry = content['images'][0]
    path = coco / 'train2017' / entry['file_name']
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    (found,) = _found(load('retinanet', coco))
    assert (found.kind, found.where) == ('wrong image size', str(path))
    assert 'EXIF orientation 6' in found.detail
    assert cv2.imread(str(path)).shape[:2] == (entry['width'], entry['height'])

    cfg = load('retinanet', coco)
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    assert _found(cfg) == []


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.webp', '.tiff'])
def test_other_image_formats_are_read(coco, load, suffix):
    content = _read(coco)
    folder = coco / 'train2017'
    for entry in content['images'][:2]:
        image = cv2.imread(str(folder / entry['file_name']))
        entry['file_name'] = Path(entry['file_name']).stem + suffix
        cv2.imwrite(str(folder / entry['file_name']), image)
    _cut(folder / content['images'][1]['file_name'], np.random.default_rng(3))
    _write(coco, content)
    (found,) = _found(load('retinanet', coco))
    assert (found.kind, found.where) == (
        'unreadable image', str(folder / content['images'][1]['file_name'])
    )  # fmt: skip


def test_an_image_beyond_pillows_limit_is_read_otherwise(coco, load, monkeypatch):
    monkeypatch.setattr('PIL.Image.MAX_IMAGE_PIXELS', 100)
    assert _found(load('retinanet', coco)) == []
    entry = _read(coco)['images'][3]
    _cut(coco / 'train2017' / entry['file_name'], np.random.default_rng(3))
    (found,) = _found(load('retinanet', coco))
    assert (found.kind, found.where.rpartition('/')[2]) == ('unreadable image', entry['file_name'])


def test_a_download_filled_up_with_zeros(coco, load):
    path = sorted((coco / 'train2017').iterdir())[5]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    (found,) = _found(load('retinanet', coco))
    assert (found.kind, found.where) == ('unreadable image', str(path))


def _shift_labels(data_root: Path, shift: int, split: str = '.') -> None:
    for path in (data_root / 'annotations' / split).rglob('*.png'):
        label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        label_map[:2] = label_map[3, 3]  # no pixel is unlabelled
        cv2.imwrite(str(path), (label_map.astype(int) + shift).astype(np.uint8))


@pytest.mark.parametrize('splits', [['training', 'validation'], ['training']])
def test_label_0_that_is_a_class_but_would_be_dropped(many_shapes, load, tmp_path, splits):
    """Whether the other split shows the last class, or none does."""
    ade = shutil.copytree(many_shapes / 'ade', tmp_path / 'ade')
    for split in splits:
        _shift_labels(ade, -1, split)
    (found,) = _found(load('fpn', ade), ('train', 'val'))
    assert (found.kind, found.severity) == ('reduce_zero_label', 'warning')
    assert "if 0 is the class 'background', set it to False" in found.detail


def test_a_rare_last_class_is_no_fault(many_shapes, load, tmp_path):
    """Two maps of 120 have it, so another split may well have none."""
    ade = shutil.copytree(many_shapes / 'ade', tmp_path / 'ade')
    paths = sorted((ade / 'annotations/training').iterdir())
    for n, path in enumerate(paths):
        label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        label_map[label_map == 4] = 3
        cv2.imwrite(str(path), label_map)
        if n < 60:
            for kind, suffix in (('images', '.jpg'), ('annotations', '.png')):
                source = ade / kind / 'training' / f'{path.stem}{suffix}'
                source.rename(ade / kind / 'validation' / f'{path.stem}{suffix}')
    for path in paths[-2:]:
        label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        label_map[9, 9] = 4
        cv2.imwrite(str(path), label_map)
    assert _found(load('fpn', ade), ('train', 'val')) == []


def _without_reducing(cfg):
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.reduce_zero_label = False
    return cfg


def test_labels_that_count_from_1_without_reduce_zero_label(ade, load):
    cfg = _without_reducing(load('fpn', ade))
    kinds = Counter(found.kind for found in _found(cfg))
    assert kinds['reduce_zero_label'] == 1
    assert 2 < kinds['label outside classes'] <= 8


def test_labels_that_count_from_0(ade, load):
    _shift_labels(ade, -1)
    assert _found(_without_reducing(load('fpn', ade)), ('train', 'val')) == []


def test_reduce_zero_label_must_be_one_in_pipeline_and_data_set(ade, load):
    cfg = load('fpn', ade)
    cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label = False
    found = next(f for f in _found(cfg, quick=True) if f.kind == 'reduce_zero_label differs')
    assert found.where == 'train_dataloader.dataset'


def test_palette_maps_are_legal(ade, load):
    """Pillow, which mmseg reads label maps with, keeps the indices; OpenCV does not."""
    for path in (ade / 'annotations/training').iterdir():
        label_map = Image.fromarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).convert('P')
        label_map.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
        label_map.save(path)
    cfg = load('fpn', ade)
    assert _found(cfg) == []
    cfg.train_dataloader.dataset.pipeline[1].imdecode_backend = 'cv2'
    assert {found.kind for found in _found(cfg)} == {'label map channels'}


def test_label_maps_of_a_metainfo_with_fewer_classes(ade, load):
    """ADE20KDataset renumbers the labels of all its 150 classes."""
    cfg = load('fpn', ade)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.type = 'ADE20KDataset'
        loader.dataset.metainfo = dict(classes=('wall', 'building', 'sky', 'floor'))
    assert _found(cfg) == []


def test_a_folder_without_images_of_the_suffix(ade, load):
    cfg = load('fpn', ade)
    cfg.train_dataloader.dataset.img_suffix = '.tif'
    assert 'no file here ends in .tif' in [f.detail for f in _found(cfg)]


def test_the_fix_keeps_what_can_be_kept(coco, load, tmp_path):
    content = _read(coco)
    content['annotations'] = content['annotations'][:12]
    o = content['annotations']
    width, _ = _size(content, o[0])
    o[0]['bbox'] = [-10, 5, 30, 20]
    o[1]['bbox'] = [width + 900, 5, 30, 20]
    o[2]['area'] = -1
    o[3]['iscrowd'] = '1'
    o[4]['id'] = o[3]['id']
    o[5]['segmentation'].append([1, 2])
    o[6]['segmentation'] = [[1, 2]]
    o.append(dict(o[7]))
    content['categories'].append(dict(id=77, name='disc'))
    o[8]['category_id'] = 77
    _write(coco, content)
    (result,) = _audit(load('mask_rcnn', coco), fix=tmp_path / 'fixed')
    kept = {a['id']: a for a in json.loads(result.fixed.read_text())['annotations']}
    assert kept[o[0]['id']]['bbox'] == [0, 5, 20, 20]
    assert kept[o[0]['id']]['area'] <= 400
    assert o[1]['id'] not in kept
    assert kept[o[2]['id']]['area'] == pytest.approx(o[2]['bbox'][2] * o[2]['bbox'][3])
    assert kept[o[3]['id']]['iscrowd'] == 1
    assert kept[max(kept)]['bbox'] == o[4]['bbox']
    assert len(kept[o[5]['id']]['segmentation']) == 1
    assert o[6]['id'] not in kept
    assert kept[o[8]['id']]['category_id'] == 1
    assert len(kept) == 10
    assert result.done['dropped', 'annotations', 'broken polygon'] == 1
    assert result.done['dropped', 'annotations', 'duplicate annotation id'] == 1

    # Without masks the object of the broken one stays.
    cfg = load('retinanet', coco)
    cfg.train_dataloader.dataset.pipeline[1].with_mask = False
    (result,) = _audit(cfg, fix=tmp_path / 'boxes')
    kept = {a['id']: a for a in json.loads(result.fixed.read_text())['annotations']}
    assert kept[o[6]['id']]['segmentation'] == []


def test_the_fix_never_replaces_a_file(coco, load, tmp_path):
    cfg = load('retinanet', coco)
    with pytest.raises(UserError, match=r'instances_train2017\.json is there already'):
        _audit(cfg, fix=coco / 'annotations')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='name a folder'):
        _audit(cfg, fix=tmp_path / 'file')
    _audit(cfg, fix=tmp_path / 'clean')
    assert not (tmp_path / 'clean').exists()  # nothing to clean


def test_the_docs_explain_every_kind(root):
    text = (root / 'docs/verify_data.md').read_text()
    for kind, severity in SEVERITIES.items():
        assert f'| {kind} | {severity} |' in text, kind
