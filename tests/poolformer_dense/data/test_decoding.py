"""Odd image files: training, prediction and verification agree on each, and say why."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image, TiffImagePlugin

from poolformer_dense.data.decoding import (
    Decoder,
    Inspected,
    Unreadable,
    inspect_image,
    quiet_decoders,
    read_image,
)
from poolformer_dense.measure.shapes import draw_scene

BGR = draw_scene((1,)).image
HEIGHT, WIDTH = BGR.shape[:2]
SIZE = (WIDTH, HEIGHT)
RGB = Image.fromarray(np.ascontiguousarray(BGR[..., ::-1]))
OTHER = Image.fromarray(np.ascontiguousarray(draw_scene((2,)).image[..., ::-1]))
GRAY = cv2.cvtColor(BGR, cv2.COLOR_BGR2GRAY)


def _pillow(kind: str, image: Image.Image = RGB, **options) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def _opencv(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def _animated(kind: str, **options) -> bytes:
    return _pillow(kind, save_all=True, append_images=[OTHER.copy()], **options)


def _turned(kind: str, orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _pillow(kind, exif=exif)


def _broken_exif() -> bytes:
    data = _turned('JPEG')
    start = data.index(b'Exif') + 6
    return data[:start] + b'II*\0\xff\xff\xff\x7f' + data[start + 8 :]


def _with_text(size: int) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text('notes', 'x' * size, zip=True)
    return _pillow('PNG', pnginfo=info)


def _pyramid() -> bytes:
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer) as file:
        RGB.copy().save(file, 'TIFF')
        file.newFrame()
        RGB.resize((64, 48)).save(file, 'TIFF', tiffinfo={254: 1})
    return buffer.getvalue()


PNG, JPEG, GIF = _pillow('PNG'), _pillow('JPEG'), _pillow('GIF')
FLOATS = GRAY.astype(np.float32) / 255

# Name, content, and the size the training sees.
READ = {
    'UPPER.JPG': (JPEG, SIZE),
    'progressive.jpg': (_pillow('JPEG', progressive=True), SIZE),
    'gray.jpg': (_pillow('JPEG', RGB.convert('L')), SIZE),
    'cmyk.jpg': (_pillow('JPEG', RGB.convert('CMYK')), SIZE),
    'previews.jpg': (_animated('MPO'), SIZE),
    'trailing.jpg': (JPEG + bytes(50), SIZE),
    'broken_exif.jpg': (_broken_exif(), SIZE),
    'bit.png': (_pillow('PNG', RGB.convert('1')), SIZE),
    'bit.tif': (_pillow('TIFF', RGB.convert('1'), compression='group4'), SIZE),
    'palette.png': (_pillow('PNG', RGB.quantize(16), transparency=3), SIZE),
    'alpha.png': (_pillow('PNG', RGB.convert('RGBA')), SIZE),
    'text.png': (_with_text(3_000_000), SIZE),
    'gray16.png': (_opencv('.png', GRAY.astype(np.uint16) * 257), SIZE),
    'color16.tif': (_opencv('.tif', BGR.astype(np.uint16) * 257), SIZE),
    'still.gif': (GIF, SIZE),
    'still.avif': (_pillow('AVIF'), SIZE),
    'still.webp': (_pillow('WEBP'), SIZE),
    'pyramid.tif': (_pyramid(), SIZE),
    'png.jpg': (PNG, SIZE),
    'jpeg.png': (JPEG, SIZE),
    'turned.jpg': (_turned('JPEG'), SIZE[::-1]),
    'turned.png': (_turned('PNG'), SIZE[::-1]),
    'turned.tif': (_turned('TIFF'), SIZE[::-1]),
    'upside_down.jpg': (_turned('JPEG', 3), SIZE),
}  # fmt: skip
# Name, content, and what is said of a file that is read.
ODD = {
    'two.gif': (_animated('GIF'), 'only the first of its 2 frames'),
    'two.png': (_animated('PNG'), 'only the first of its 2 frames'),
    'two.webp': (_animated('WEBP'), 'only the first of its 2 frames'),
    'two.avif': (_animated('AVIF'), 'only the first of its 2 frames'),
    'two.tif': (_animated('TIFF'), 'only the first of its 2 frames'),
    'two.jpg': (_animated('GIF'), 'only the first of its 2 frames'),
    'cut_two.png': (_animated('PNG')[:-90], 'the others are damaged'),
    'bits12.png': (_opencv('.png', GRAY.astype(np.uint16) * 16), 'its largest value is 3,'),
    'bits12.tif': (_opencv('.tif', BGR.astype(np.uint16) * 16), 'its largest value is 3,'),
    'floats.tif': (_opencv('.tif', BGR.astype(np.float32) / 255), 'floating-point samples'),
    'turned.webp': (_turned('WEBP'), 'EXIF orientation 6 is ignored'),
}
# Name, content, and why it can't be read.
REFUSED = {
    'empty.jpg': (b'', 'the file is empty'),
    'zeros.jpg': (bytes(900), 'nothing but zeros'),
    'page.jpg': (b'<!DOCTYPE html><html>404</html>', 'a web page'),
    'pointer.png': (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
    'photo.heic': (b'\0\0\0\x18ftypheic' + bytes(90), 'HEIF'),
    'text.jpg': (b'hello', 'knows this kind of file'),
    'cut.jpg': (JPEG[: len(JPEG) // 2], 'truncated: the JPEG has no end marker'),
    'padded.jpg': (JPEG[: len(JPEG) // 2] + bytes(999), 'truncated: the JPEG has no end marker'),
    'cut.png': (PNG[: len(PNG) // 2], 'truncated'),
    'start.png': (PNG[:20], 'truncated'),
    'cut.gif': (GIF[: len(GIF) // 2], 'truncated'),
    'cut.bmp': (_pillow('BMP')[:-500], 'truncated'),
    'cut.tif': (_pillow('TIFF')[:-500], 'truncated'),
    'cut.webp': (_pillow('WEBP')[:-500], 'truncated'),
    'cut.avif': (_pillow('AVIF')[:-500], 'truncated'),
    'cut_two.gif': (_animated('GIF')[:-90], 'truncated'),
    'flipped.png': (PNG[:2000] + b'\0\0\0\0' + PNG[2004:], 'broken'),
    'floats.tif': (_opencv('.tif', FLOATS), 'TIFF of 1 channel of 32-bit floats'),
    'doubles.tif': (_opencv('.tif', FLOATS.astype(np.float64)), '1 channel of 64-bit floats'),
    'truevision.tga': (_pillow('TGA'), 'TGA of mode RGB'),
    'gray.pfm': (_opencv('.pfm', FLOATS), 'PPM of mode F'),
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path):
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def _loaded(path: Path) -> np.ndarray:
    return LoadImageFromFile().transform(dict(img_path=str(path)))['img']


@pytest.mark.parametrize('name', READ)
def test_a_file_is_read_as_in_a_training(file, name):
    content, size = READ[name]
    path = file(name, content)
    found = read_image(path)
    assert found.remark == ''
    np.testing.assert_array_equal(found.pixels, _loaded(path))
    assert found.pixels.shape == (*size[::-1], 3)
    assert inspect_image(str(path))[::2] == (size, '')


@pytest.mark.parametrize('name', ODD)
def test_a_file_of_which_not_all_is_read_gets_a_remark(file, name):
    content, remark = ODD[name]
    path = file(name, content)
    found = read_image(path)
    assert remark in found.remark
    np.testing.assert_array_equal(found.pixels, _loaded(path))
    assert inspect_image(str(path)) == Inspected(SIZE, found.turned, found.remark)


@pytest.mark.parametrize('name', REFUSED)
def test_a_file_that_is_not_read_gets_the_true_reason(file, name):
    content, reason = REFUSED[name]
    path = file(name, content)
    with quiet_decoders(), pytest.raises(Unreadable) as refusal:
        read_image(path)
    assert reason in str(refusal.value)
    assert '\n' not in str(refusal.value)
    with quiet_decoders():
        assert inspect_image(str(path)) == Inspected(None, str(refusal.value))


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
    assert inspect_image(str(tmp_path)).note == 'Is a directory'
    assert inspect_image(str(tmp_path / 'gone.png')).note == 'No such file or directory'


def test_an_image_of_196_megapixels_is_read(file):
    path = file('large.png', _opencv('.png', np.zeros((14000, 14000), np.uint8)))
    with quiet_decoders():
        assert inspect_image(str(path)) == Inspected((14000, 14000))
        assert read_image(path).pixels.shape == (14000, 14000, 3)


def test_more_pixels_than_opencv_allows_are_named(file):
    buffer = io.BytesIO()
    Image.new('1', (40_000, 30_000)).save(buffer, 'PNG')
    with quiet_decoders(), pytest.raises(Unreadable, match='CV_IO_MAX_IMAGE_PIXELS'):
        read_image(file('huge.png', buffer.getvalue()))


@pytest.mark.parametrize(
    'arguments',
    [
        dict(color_type='grayscale'),
        dict(color_type='unchanged'),
        dict(color_type='color_ignore_orientation'),
        dict(imdecode_backend='pillow'),
    ],
)
@pytest.mark.parametrize('name', ['turned.jpg', 'turned.png', 'gray16.png', 'alpha.png'])
def test_other_ways_of_loading_are_followed(file, arguments, name):
    path = file(name, READ[name][0])
    decoder = Decoder.of(arguments | dict(type='LoadImageFromFile', backend_args=None))
    loaded = LoadImageFromFile(**arguments).transform(dict(img_path=str(path)))['img']
    np.testing.assert_array_equal(read_image(path, decoder).pixels, loaded)
    assert inspect_image(str(path), decoder).size == loaded.shape[1::-1]


def test_decoders_are_quiet_and_then_as_before(file, capfd):
    path = file('cut.webp', REFUSED['cut.webp'][0])
    level = cv2.getLogLevel()
    with quiet_decoders():
        inspect_image(str(path))
    assert capfd.readouterr() == ('', '')
    assert cv2.getLogLevel() == level
