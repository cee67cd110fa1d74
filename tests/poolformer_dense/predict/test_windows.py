"""TIFFs that are read by rows: the pixels that OpenCV reads whole."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from poolformer_dense.data.decoding import COLOR, Decoder, Unreadable
from poolformer_dense.errors import UserError
from poolformer_dense.predict.label_file import write_label_rows
from poolformer_dense.predict.result_files import infer_files
from poolformer_dense.predict.tiles import Tiling
from poolformer_dense.predict.windows import TiffRows, open_rows
from tests.tiny_models import tiny_config, write_weights

tifffile = pytest.importorskip('tifffile')


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (150, 210, 3), np.uint8)


KINDS = {
    'contiguous': {},
    'one strip': dict(rowsperstrip=150),
    'deflate strips': dict(compression='zlib', rowsperstrip=7),
    'deflate tiles': dict(compression='zlib', tile=(32, 48)),
    'tiles': dict(tile=(64, 16)),
    'big': dict(bigtiff=True, rowsperstrip=11),
}


@pytest.mark.parametrize('gray', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_rows_are_those_of_opencv(tmp_path, image, kind, gray):
    path = tmp_path / 'a.tif'
    content, photometric = (image[..., 0], 'minisblack') if gray else (image, 'rgb')
    tifffile.imwrite(path, content, photometric=photometric, **KINDS[kind])
    rows = open_rows(path, COLOR, 100)
    whole = cv2.imread(str(path))
    assert rows.shape == whole.shape == image.shape
    assert np.array_equal(np.asarray(rows), whole)
    for first, last in ((0, 1), (3, 40), (31, 33), (149, 150), (60, 60)):
        assert np.array_equal(rows[first:last], whole[first:last])


@pytest.mark.parametrize(
    ('arguments', 'dtype', 'shape'),
    [
        (dict(photometric='rgb', extrasamples=['unassalpha']), np.uint8, (150, 210, 4)),
        (dict(photometric='rgb'), np.uint16, (150, 210, 3)),
        (dict(photometric='rgb', planarconfig='separate'), np.uint8, (3, 150, 210)),
        (dict(photometric='rgb', extratags=[(274, 3, 1, 6, True)]), np.uint8, (150, 210, 3)),
        (dict(photometric='miniswhite'), np.uint8, (150, 210)),
    ],
)
def test_other_kinds_are_decoded_whole(tmp_path, arguments, dtype, shape):
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, np.zeros(shape, dtype), **arguments)
    assert open_rows(path, COLOR, 100) is None


def test_small_files_other_suffixes_and_decoders_are_decoded_whole(tmp_path, image):
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, image, photometric='rgb')
    assert open_rows(path, COLOR, 210) is None
    assert open_rows(path, Decoder(color_type='grayscale'), 100) is None
    (tmp_path / 'b.tif').write_text('no TIFF')
    assert open_rows(tmp_path / 'b.tif', COLOR, 100) is None
    assert open_rows(path.rename(tmp_path / 'a.png'), COLOR, 100) is None


def test_a_truncated_file_is_said_at_once(tmp_path, image):
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, image, photometric='rgb')
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Unreadable, match='truncated'):
        open_rows(path, COLOR, 100)


def test_damage_further_on_is_one_line(tmp_path, image):
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, image, photometric='rgb', compression='zlib', rowsperstrip=10)
    rows = TiffRows(path)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[7]
    with path.open('r+b') as file:
        file.seek(place)
        file.write(b'damage' * 4)
    assert rows[:70].shape == (70, 210, 3)
    with pytest.raises(UserError, match=r'a\.tif: rows 70 to 80 are damaged'):
        rows[70:80]


def test_further_pages_are_noted(tmp_path, image):
    path = tmp_path / 'a.tif'
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(image, photometric='rgb')
        file.write(image[::2, ::2], photometric='rgb', subfiletype=1)
    assert open_rows(path, COLOR, 100).remark == 'only the first of its 2 frames or pages is read'


@pytest.mark.parametrize('head', ['mask_rcnn', 'fpn'])
def test_files_are_predicted_by_rows_as_whole(predictors, tmp_path, image, head):
    tifffile.imwrite(tmp_path / 'a.tif', image, photometric='rgb', rowsperstrip=8)
    cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
    tiling, told, found = Tiling(64, 0.25), [], {}
    for suffix in ('tif', 'png'):
        out = tmp_path / suffix
        paths = [tmp_path / f'a.{suffix}']
        assert infer_files(
            predictors[head], paths, out, batch_size=3, report=told.append, tiling=tiling
        ) == (1, [])
        if head == 'fpn':
            found[suffix] = cv2.imread(str(out / 'labels/a.png'), cv2.IMREAD_UNCHANGED).tolist()
        else:
            found[suffix] = json.loads((out / 'results.json').read_text())
        assert (out / 'pictures').exists() == (suffix == 'png')
    assert found['tif'] == found['png']
    assert len(found['tif']) > 0
    assert told == [f'note on {tmp_path}/a.tif: it is read by rows, so no picture is drawn']


@pytest.mark.parametrize('classes', [4, 300])
def test_labels_are_written_by_rows(tmp_path, classes):
    labels = np.random.default_rng(0).integers(0, classes, (33, 17))
    path = tmp_path / 'new/labels.png'
    write_label_rows(path, np.split(labels, [10, 11, 30]), labels.shape, classes)
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert read.dtype == (np.uint8 if classes == 4 else np.uint16)
    assert np.array_equal(read, labels)


_PEAK = """
import re, sys
from pathlib import Path
import poolformer_dense
from poolformer_dense.predict.result_files import infer_files
from poolformer_dense.predict.tiles import Tiling
config, weights, image, out = sys.argv[1:]
model = poolformer_dense.load(config, weights, 'cpu')
done = infer_files(model, [Path(image)], Path(out), batch_size=1, tiling=Tiling(2048, 0.1))
assert done == (1, [])
print(re.search(r'VmHWM:\\s*(\\d+) kB', Path('/proc/self/status').read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize('head', ['mask_rcnn', 'fpn'])
def test_a_large_tiff_takes_less_than_4_gib(root, tmp_path, head):
    side = 20_000
    rng = np.random.default_rng(0)
    part = rng.integers(0, 256, (32, 32, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    path = tmp_path / 'large.tif'
    tifffile.imwrite(
        path, (part for _ in range((side // 512 + 1) ** 2)), shape=(side, side, 3), dtype=np.uint8,
        photometric='rgb', tile=(512, 512), compression='zlib', compressionargs=dict(level=1),
    )  # fmt: skip
    cfg = tiny_config(root, head)
    weights = write_weights(cfg, tmp_path / 'weights.pth')
    cfg.dump(tmp_path / 'config.py')
    done = subprocess.run(
        [sys.executable, '-c', _PEAK, tmp_path / 'config.py', weights, path, tmp_path / 'out'],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 4 * 2**20
    result = tmp_path / 'out' / ('labels/large.png' if head == 'fpn' else 'results.json')
    assert result.stat().st_size > 10_000
