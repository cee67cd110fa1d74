"""From Pascal VOC's XML files to COCO: every object arrives, or is told by file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poolformer_dense.data.coco_builder import CocoBuilder
from poolformer_dense.data.coco_faults import coco_faults
from poolformer_dense.data.convert_voc import convert_voc
from poolformer_dense.data.voc_xml import read_voc
from poolformer_dense.errors import UserError
from poolformer_dense.measure.shapes import draw_scene
from tests.drawn import voc_box, voc_xml, write_voc

SIZE = (80, 60)
CAT = ('cat', (11, 21, 30, 40))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two images of a cat each: 'a.jpg' and 'b.PNG'."""
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (tmp_path / name).mkdir(parents=True)
    for name in ('a.jpg', 'b.PNG'):
        Image.new('RGB', SIZE).save(tmp_path / 'JPEGImages' / name)
        text = voc_xml(name, SIZE, [CAT])
        (tmp_path / f'Annotations/{name[0]}.xml').write_text(text)
    return tmp_path


def _change(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
    assert count
    path.write_text(text)


def test_first_and_last_pixel_become_edges(folder):
    """11 to 30 are twenty pixels, the first of which begins at 10."""
    (builder,) = convert_voc(folder).values()
    assert [entry['bbox'] for entry in builder.annotations] == [[10.0, 20.0, 20.0, 20.0]] * 2
    assert [entry['file_name'] for entry in builder.images] == [
        'JPEGImages/a.jpg', 'JPEGImages/b.PNG',
    ]  # fmt: skip
    assert builder.problems == []
    assert not builder.notes
    assert coco_faults(builder.content(), masks=False) == []


def test_lists_are_splits(folder):
    (folder / 'ImageSets/Main/train.txt').write_bytes(b'\xef\xbb\xbfa\r\n\r\na\r\n')
    (folder / 'ImageSets/Main/val.txt').write_text('b')
    _change(folder / 'Annotations/b.xml', 'cat', 'ape')
    builders = convert_voc(folder)
    names = {split: [e['file_name'] for e in b.images] for split, b in builders.items()}
    assert names == {'train': ['JPEGImages/a.jpg'], 'val': ['JPEGImages/b.PNG']}
    # the same classes in both files
    assert all(list(b.categories.values()) == ['ape', 'cat'] for b in builders.values())


def test_difficult_objects_are_ignored_like_crowds(folder):
    _change(folder / 'Annotations/a.xml', 'difficult>0', 'difficult>1')
    (builder,) = convert_voc(folder).values()
    assert [entry['iscrowd'] for entry in builder.annotations] == [1, 0]
    assert sum(builder.notes.values()) == 1


def test_chosen_classes_leave_the_others_out_and_say_so(folder):
    _change(folder / 'Annotations/a.xml', '>cat<', '> dog <')
    (builder,) = convert_voc(folder, classes=['dog']).values()
    assert builder.summary() == '2 images (1 without objects), 1 objects (dog 1)'
    assert builder.notes == {"objects named 'cat', which is none of --classes, are left out": 1}
    with pytest.raises(UserError, match="no object has the name 'bird'; there are cat, dog"):
        convert_voc(folder, classes=['bird'])


def test_names_that_differ_in_case_only_are_refused(folder):
    _change(folder / 'Annotations/a.xml', '>cat<', '>Cat<')
    for classes in ([], ['cat']):
        with pytest.raises(UserError, match=r'\(1 objects\) and .* differ in case or blanks only'):
            convert_voc(folder, classes=classes)


WRONG = {
    'not XML': ('<name>', '<label>', r'a\.xml: is not XML: mismatched tag: line 5'),
    'no name': ('<name>.*?</name>', '', r'a\.xml, line 4: the object has no name'),
    'no corner': ('<ymax>.*?</ymax>', '', r'a\.xml, line 4: has no ymax'),
    'words': ('<ymax>', '<ymax>x', r"a\.xml, line 4: ymax is 'x40', not a number"),
    'swapped': ('<xmin>11', '<xmin>71', r'a\.xml, line 4: the box goes from 71, 21 to 30, 40'),
    'beyond': ('<xmin>11</xmin>(.*?)30', r'<xmin>90</xmin>\g<1>95', r'line 4: nothing is left'),
    'difficult': ('difficult>0', 'difficult>no', r"a\.xml, line 4: difficult is 'no'"),
    'size': ('<width>80', '<width>81', r'a\.xml: the size is 81x60, but a.jpg has 80x60 pixels'),
}


@pytest.mark.parametrize(('what', 'by', 'told'), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_by_file_and_line(folder, what, by, told):
    _change(folder / 'Annotations/a.xml', what, by)
    (builder,) = convert_voc(folder).values()
    (problem,) = builder.problems
    assert re.search(told, problem)
    assert len(builder.annotations) == 1


def test_missing_and_doubled_files_are_told(folder):
    (folder / 'ImageSets/Main/train.txt').write_text('a\nb\nc')
    Image.new('RGB', SIZE).save(folder / 'JPEGImages/a.png')
    (folder / 'JPEGImages/b.PNG').write_bytes(b'')
    problems = convert_voc(folder)['train'].problems
    assert [re.search('a.jpg, a.png|b.PNG|c.xml: no such file', p)[0] for p in problems] == [
        'a.jpg, a.png', 'c.xml: no such file', 'b.PNG',
    ]  # fmt: skip
    (folder / 'ImageSets/Main/train.txt').write_text('a -1\n')
    with pytest.raises(UserError, match=r'train.txt, line 1: .*is this the list of one class'):
        convert_voc(folder)


@pytest.mark.parametrize(('stated', 'count'), [(SIZE[::-1], 0), (SIZE, 1), ((0, 0), 0)])
def test_boxes_of_the_unturned_photograph_are_told(folder, stated, count):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', SIZE).save(folder / 'JPEGImages/a.jpg', exif=exif)
    (folder / 'Annotations/a.xml').write_text(voc_xml('a.jpg', stated, [CAT]))
    problems = convert_voc(folder)['all'].problems
    assert len(problems) == count
    assert all('take the orientation out of the file' in problem for problem in problems)


def test_a_box_reaches_the_border(folder):
    text = voc_xml('a.jpg', SIZE, [('cat', (0, 1, 80, 60)), ('cat', (5, 5, 5, 9))])
    (folder / 'Annotations/a.xml').write_text(text)
    builder = convert_voc(folder)['all']
    assert builder.annotations[0]['bbox'] == [0.0, 0.0, 80.0, 60.0]
    assert builder.notes == {'boxes are one pixel wide or high': 1}


def test_folders_are_named(folder):
    with pytest.raises(UserError, match=r'no folder .*Images; --images'):
        convert_voc(folder, images='Images')


def test_drawn_shapes_come_back(tmp_path):
    write_voc(tmp_path, 3, 2)
    for i, builder in enumerate(convert_voc(tmp_path).values()):
        assert coco_faults(builder.content(), masks=False) == []
        for n, image in enumerate(builder.images):
            scene = draw_scene((0, i, n))
            found = [a for a in builder.annotations if a['image_id'] == image['id']]
            assert [a['category_id'] - 1 for a in found] == scene.labels
            for j, entry in enumerate(found):
                x1, y1, x2, y2 = voc_box(scene, j)
                assert entry['bbox'] == [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]


NAMES = st.text(st.characters(codec='utf-8', exclude_categories=['Cc', 'Cs']), min_size=1)
PIXEL = st.integers(1, 500)


@given(st.lists(st.tuples(NAMES, st.tuples(PIXEL, PIXEL, PIXEL, PIXEL)), max_size=5))
def test_any_object_is_read_as_written(tmp_path_factory, objects):
    path = tmp_path_factory.getbasetemp() / 'any.xml'
    path.write_text(voc_xml('any.jpg', (500, 500), objects), encoding='utf-8')
    annotation = read_voc(path)
    assert annotation.stated_size() == (500, 500)
    assert [(o.name, o.box()) for o in annotation.objects] == objects
    lines = path.read_text(encoding='utf-8').split('\n')
    assert all('<object>' in lines[o.line - 1] for o in annotation.objects)
    builder = CocoBuilder(Path(), {1: 'a'})
    builder.add_image(Path('any.jpg'), (500, 500))
    for _, (x1, y1, x2, y2) in objects:
        if x1 <= x2 and y1 <= y2:
            builder.add_object(1, (x1 - 1, y1 - 1, x2, y2))
    assert coco_faults(builder.content(), masks=False) == []
