"""From YOLO's text files to COCO: every row arrives in its place, or is told by file and line."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils

from poolformer_dense.data.coco_builder import CocoBuilder, write_splits
from poolformer_dense.data.coco_faults import coco_faults
from poolformer_dense.data.convert_yolo import convert_yolo, parse_row
from poolformer_dense.errors import UserError
from poolformer_dense.measure.shapes import draw_scene
from tests.drawn import write_yolo

WIDTH, HEIGHT = 80, 60
BOX = '0 0.5 0.5 0.25 0.5'


@pytest.fixture
def yolo(tmp_path):
    """Write a data set of the given label files, one blank image each, and convert it."""

    def write(yaml: str = 'names: [cat, dog]\ntrain: images\n', **labels: str | bytes | None):
        for folder in ('images', 'labels'):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name, text in labels.items():
            Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / f'images/{name}.png')
            if text is not None:
                content = text if isinstance(text, bytes) else text.encode()
                (tmp_path / f'labels/{name}.txt').write_bytes(content)
        (tmp_path / 'data.yaml').write_text(yaml)
        return convert_yolo(tmp_path / 'data.yaml')

    return write


def _boxes(builder: CocoBuilder) -> list:
    return [(entry['category_id'], *entry['bbox']) for entry in builder.annotations]


def test_boxes_become_pixels(yolo):
    builder = yolo(a='0 0.5 0.5 0.25 0.5\n1 0.25 0.75 0.5 0.5')['train']
    assert _boxes(builder) == [(1, 30.0, 15.0, 20.0, 30.0), (2, 0.0, 30.0, 40.0, 30.0)]
    assert [entry['area'] for entry in builder.annotations] == [600.0, 1200.0]
    assert builder.content()['categories'] == [dict(id=1, name='cat'), dict(id=2, name='dog')]
    assert builder.images == [dict(id=1, file_name='images/a.png', width=WIDTH, height=HEIGHT)]
    assert builder.problems == []


def test_polygons_become_masks_with_the_area_of_their_pixels(yolo):
    builder = yolo(a='1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n' + BOX)['train']
    mask, box = builder.annotations
    assert mask['segmentation'] == [[20.0, 15.0, 60.0, 15.0, 60.0, 45.0, 20.0, 45.0]]
    assert mask['bbox'] == [20.0, 15.0, 40.0, 30.0]
    rle = mask_utils.frPyObjects(mask['segmentation'], HEIGHT, WIDTH)
    assert mask['area'] == mask_utils.area(rle)[0]
    assert box['segmentation'] == []  # a row of a box beside it stays a box


ODD_TEXTS = {
    'from Windows': f'{BOX}\r\n{BOX[:-1]}1\r\n'.encode(),
    'byte-order mark': f'\ufeff{BOX}\n{BOX[:-1]}1'.encode(),
    'blank lines and blanks': f'\n  {BOX}  \n\n\t{BOX[:-1]}1\n\n'.encode(),
    'class as a decimal': f'0.0{BOX[1:]}\n{BOX[:-1]}1\n'.encode(),
    'twice': f'{BOX}\n{BOX[:-1]}1\n{BOX}\n'.encode(),
}


@pytest.mark.parametrize('text', ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_odd_texts_are_read(yolo, text):
    builder = yolo(a=text)['train']
    assert (len(builder.annotations), builder.problems) == (2, [])


# Each is the second row of a file.
WRONG_ROWS = {
    'class outside': ('2 0.5 0.5 0.1 0.1', 'class 2 is not among the 2 names'),
    'class of words': ('cat 0.5 0.5 0.1 0.1', 'not a row of numbers'),
    'class of a half': ('0.5 0.5 0.5 0.1 0.1', 'class is 0.5'),
    'negative class': ('-1 0.5 0.5 0.1 0.1', 'class is -1'),
    'commas': ('0,0.5,0.5,0.1,0.1', 'not a row of numbers'),
    'pixels': ('0 40 30 20 20', 'are these pixels'),
    'far outside': ('0 -0.2 0.5 0.1 0.1', 'not between 0 and 1'),
    'not a number': ('0 nan 0.5 0.1 0.1', 'nan is not between 0 and 1'),
    'confidence': ('0 0.5 0.5 0.1 0.1 0.9', 'has 5 numbers'),
    'odd polygon': ('0 0.1 0.1 0.5 0.1 0.5 0.5 0.1', 'has 7 numbers'),
    'no width': ('0 0.5 0.5 0 0.1', 'width and height are 0'),
    'negative width': ('0 0.5 0.5 0.1 -0.005', 'width and height'),
    'line': ('0 0.1 0.1 0.5 0.1 0.3 0.1', 'nothing is left'),
    'within a pixel': ('0 0.1 0.1 0.1001 0.1 0.1001 0.1001', 'covers no pixel'),
    'too few': ('0 0.5 0.5', 'has 2 numbers'),
}


@pytest.mark.parametrize(('row', 'told'), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_a_wrong_row_is_told_by_file_and_line(yolo, tmp_path, row, told):
    builder = yolo(a=f'{BOX}\n{row}\n{BOX[:-1]}1')['train']
    (problem,) = builder.problems
    assert problem.startswith(f'{tmp_path}/labels/a.txt, line 2: ')
    assert told in problem
    assert len(builder.annotations) == 2
    with pytest.raises(UserError, match='1 things can not be converted, so nothing is written'):
        write_splits({'train': builder}, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    (path,) = write_splits({'train': builder}, tmp_path / 'out', drop=True)
    assert len(json.loads(path.read_text())['annotations']) == 2


def test_rounding_beyond_the_border_is_clipped(yolo):
    builder = yolo(a='0 0.05 0.5 0.105 1.004')['train']
    assert _boxes(builder) == [(1, 0.0, 0.0, 8.2, 60.0)]
    assert not builder.notes  # less than a pixel
    builder = yolo(a='0 0.05 0.5 0.3 0.5')['train']
    assert _boxes(builder) == [(1, 0.0, 15.0, 16.0, 30.0)]
    assert sum(builder.notes.values()) == 1


def test_images_without_labels_are_negatives(yolo, tmp_path):
    builder = yolo(a=BOX, b='', c=None)['train']
    assert len(builder.images) == 3
    assert builder.summary() == '3 images (2 without objects), 1 objects (cat 1, dog 0)'
    assert 'images have no label file and become images without objects' in builder.notes
    (tmp_path / 'labels/a.txt').unlink()
    (tmp_path / 'labels/b.txt').unlink()
    with pytest.raises(UserError, match=r'none of 3 images has a label file; .*labels/a\.txt'):
        yolo()


def test_images_are_found_as_trainings_find_them(tmp_path):
    """Lists, folders in folders, several entries, odd names, upper case; each image once."""
    places = ['one/images/x y', 'two/images/deep/er', 'three/images', 'three/images/in list']
    for place in places:
        for kind in ('images', 'labels'):
            (tmp_path / place.replace('images', kind)).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / place / 'same name.JPG')
        (tmp_path / place.replace('images', 'labels') / 'same name.txt').write_text(BOX)
    (tmp_path / 'three/list.txt').write_bytes(
        b'\xef\xbb\xbf./images/in list/same name.JPG\r\n\r\nimages/same name.JPG\r\n'
    )
    (tmp_path / 'data.yml').write_text(
        'path: .\nnames: {1: dog, 0: cat}\nnc: 2\n'
        'train: [one/images, two/images, three/list.txt, one/images]\nval: ../three/images\n'
    )
    builders = convert_yolo(tmp_path / 'data.yml')
    names = [entry['file_name'] for entry in builders['train'].images]
    assert names == [f'{place}/same name.JPG' for place in (*places[:2], places[3], places[2])]
    assert len(builders['train'].annotations) == 4
    assert len(builders['val'].images) == 2
    assert list(builders['train'].categories.values()) == ['cat', 'dog']
    assert not builders['train'].problems


def test_labels_count_from_the_turned_image(yolo, tmp_path):
    """A photograph of 80x60 whose tag says that it was taken upright."""
    yolo(a=BOX)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / 'images/a.png').unlink()
    Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / 'images/a.jpg', exif=exif)
    builder = convert_yolo(tmp_path / 'data.yaml')['train']
    assert builder.images[0]['width'] == HEIGHT
    assert _boxes(builder) == [(1, 22.5, 20.0, 15.0, 40.0)]


WRONG_YAML = {
    'no names': ('train: images', 'no names'),
    'no split': ('names: [a]', 'none of train, val and test'),
    'no folder': ('names: [a]\ntrain: nowhere', 'train: there is no .*nowhere'),
    'no root': ('names: [a]\ntrain: images\npath: nowhere', 'there is no folder'),
    'count': ('names: [a]\nnc: 2\ntrain: images', 'nc is 2, but there are 1 names'),
    'truth values': ('names: [yes, no]\ntrain: images', 'put it in quotes'),
    'twice': ('names: [a, b, a]\ntrain: images', "'a' is there twice"),
    'keys': ('names: {a: 0}\ntrain: images', "'a' is not the number of a class"),
    'keypoints': ('names: [a]\nkpt_shape: [17, 3]\ntrain: images', 'keypoints'),
    'no YAML': ('names: [a', 'is not YAML: .*line 1'),
    'text': ('hello', 'has no entries'),
    'URL': ('names: [a]\ntrain: {a: b}', 'not the path'),
}


@pytest.mark.parametrize(('yaml', 'told'), WRONG_YAML.values(), ids=WRONG_YAML)
def test_a_wrong_yaml_file_is_one_line(yolo, yaml, told):
    with pytest.raises(UserError, match=told) as caught:
        yolo(yaml, a=BOX)
    assert '\n' not in str(caught.value)
    assert 'data.yaml' in str(caught.value)


def test_unreadable_images_are_told(yolo, tmp_path):
    yolo(a=BOX, b=BOX)
    (tmp_path / 'images/b.png').write_bytes(b'no image')
    builder = convert_yolo(tmp_path / 'data.yaml')['train']
    assert builder.problems[0].startswith(f'{tmp_path}/images/b.png: ')
    assert len(builder.images) == len(builder.annotations) == 1


def test_nothing_is_overwritten(yolo, tmp_path):
    builders = yolo(a=BOX)
    (path,) = write_splits(builders, tmp_path / 'out')
    with pytest.raises(UserError, match='is there already'):
        write_splits(builders, tmp_path / 'out')
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('polygons', [False, True])
def test_drawn_shapes_come_back(tmp_path, polygons):
    write_yolo(tmp_path, 3, 2, polygons)
    builders = convert_yolo(tmp_path / 'data.yaml')
    assert list(builders) == ['train', 'val']
    for i, builder in enumerate(builders.values()):
        assert coco_faults(builder.content(), masks=polygons) == []
        for n, image in enumerate(builder.images):
            scene = draw_scene((0, i, n))
            found = [a for a in builder.annotations if a['image_id'] == image['id']]
            assert [a['category_id'] - 1 for a in found] == scene.labels
            for entry, polygon in zip(found, scene.polygons, strict=True):
                low, high = polygon.min(0), polygon.max(0)
                assert entry['bbox'] == pytest.approx([*low, *(high - low)], abs=0.02)
                if polygons:
                    assert entry['segmentation'][0] == pytest.approx(polygon.ravel(), abs=0.02)


SHARES = st.floats(0, 1).map(lambda value: round(value, 6))


@given(
    boxes=st.lists(st.tuples(SHARES, SHARES, SHARES, SHARES), min_size=1, max_size=5),
    size=st.tuples(st.integers(8, 4000), st.integers(8, 4000)),
)
def test_any_box_is_exact_to_the_digits_of_its_row(boxes, size):
    builder = CocoBuilder(Path(), {1: 'a'})
    builder.add_image(Path('a.jpg'), size)
    for x1, y1, x2, y2 in boxes:
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, abs(x2 - x1), abs(y2 - y1)
        if min(w, h) < 1e-3:
            continue
        _, values = parse_row(f'0 {x:.9f} {y:.9f} {w:.9f} {h:.9f}')
        cx, cy, bw, bh = (np.array(values) * [*size, *size]).tolist()
        builder.add_object(1, (cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2))
        found = builder.annotations[-1]['bbox']
        expected = [min(x1, x2) * size[0], min(y1, y2) * size[1], w * size[0], h * size[1]]
        assert found == pytest.approx(expected, abs=0.02)
    assert coco_faults(builder.content(), masks=False) == []


NUMBERS = st.lists(st.floats(), max_size=9).map(lambda values: ' '.join(map(str, values)))


@given(st.text(max_size=40) | NUMBERS)
def test_any_row_is_parsed_or_refused(row):
    with contextlib.suppress(ValueError):
        kind, values = parse_row(row)
        assert kind >= 0
        assert all(math.isfinite(value) for value in values)
