"""Predictions of files: found, read, batched, written under names of their own."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from backbones.checkpoints import CheckpointError
from poolformer_dense.config.datasets import named_sources
from poolformer_dense.data.audit import audit
from poolformer_dense.data.decoding import Decoder, Unreadable, read_image
from poolformer_dense.errors import UserError
from poolformer_dense.measure.shapes import SEGMENTATION_CLASSES, draw_scene
from poolformer_dense.predict.building import check_device, load_predictor
from poolformer_dense.predict.media import (
    distinct_names,
    find_media,
    read_sources,
    read_video,
)
from poolformer_dense.predict.result_files import CocoWriter, infer_files
from poolformer_dense.predict.results import Detections
from tests.tiny_models import tiny_config, write_weights


@pytest.fixture
def detector(predictors):
    return predictors['retinanet']


def _write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def _write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 8, (96, 64))
    for i in range(frames):
        writer.write(cv2.resize(draw_scene((i,)).image, (96, 64)))
    writer.release()
    return path


@pytest.fixture
def media(tmp_path):
    """Six images of two sizes in two folders, one of a pixel, a broken one, a video."""
    folder = tmp_path / 'media'
    for i in range(6):
        _write(folder / 'ab'[i % 2] / f'{i // 2}.jpg', draw_scene((i,)).image)
    _write(folder / 'pixel.png', np.full((1, 1, 3), 90, np.uint8))
    (folder / 'broken.jpg').write_bytes((folder / 'a/0.jpg').read_bytes()[:900])
    _write_video(folder / 'clip.mp4', 5)
    (folder / 'notes.txt').write_text('not an image')
    return folder


def test_everything_readable_gets_results_and_the_broken_one_a_line(predictor, media, tmp_path):
    paths, nothing = find_media([str(media)])
    lines = []
    done, unreadable = infer_files(
        predictor, paths, tmp_path / 'out', batch_size=4, report=lines.append
    )
    assert (done, nothing) == (12, [])
    assert unreadable == [media / 'broken.jpg']
    [line] = lines
    assert line == f'skipped {media / "broken.jpg"}: truncated: the JPEG has no end marker'
    pictures = {p.relative_to(tmp_path / 'out/pictures') for p in (tmp_path / 'out').rglob('*.*')
                if 'pictures' in p.parts}  # fmt: skip
    names = ['a/0.jpg', 'a/1.jpg', 'a/2.jpg', 'b/0.jpg', 'b/1.jpg', 'b/2.jpg', 'pixel.png']
    assert sorted(map(str, pictures)) == sorted([*names, 'clip.mp4'])
    for name in names:
        picture = cv2.imread(str(tmp_path / 'out/pictures' / name))
        assert picture.shape == cv2.imread(str(media / name)).shape
    assert len(list(read_video(tmp_path / 'out/pictures/clip.mp4'))) == 5
    if not predictor.detects:
        _check_labels(media, names, tmp_path / 'out')
    else:
        _check_results(media, names, tmp_path / 'out', hasattr(predictor.model, 'roi_head'))


def _check_labels(media, names, out):
    assert json.loads((out / 'classes.json').read_text()) == list(SEGMENTATION_CLASSES)
    labels = sorted(str(path.relative_to(out / 'labels')) for path in out.rglob('labels/**/*.png'))
    frames = [f'clip/{i:06d}.png' for i in range(5)]
    assert labels == sorted([str(Path(name).with_suffix('.png')) for name in names] + frames)
    for name in names:
        found = cv2.imread(str(out / 'labels' / Path(name).with_suffix('.png')), -1)
        assert found.shape == cv2.imread(str(media / name)).shape[:2]
        assert found.max() < len(SEGMENTATION_CLASSES)


def _check_results(media, names, out, masks):
    coco = COCO(out / 'images.json')
    found = coco.loadRes(str(out / 'results.json'))
    images = list(coco.imgs.values())
    assert [image['id'] for image in images] == list(range(1, 13))
    files = [image['file_name'] for image in images]
    assert files == sorted([str(media / name) for name in names] + [str(media / 'clip.mp4')] * 5)
    assert [image['frame'] for image in images if 'frame' in image] == list(range(5))
    assert [each['name'] for each in coco.cats.values()] == ['disc', 'square', 'triangle']
    assert len(found.anns) > 10
    for result in found.anns.values():
        image = coco.imgs[result['image_id']]
        x, y, w, h = result['bbox']
        assert 0 <= x <= x + w <= image['width'] + 0.01
        assert 0 <= y <= y + h <= image['height'] + 0.01
        assert result['score'] > 0.3
        assert result['category_id'] in coco.cats
        if masks:
            assert coco.annToMask(result).shape == (image['height'], image['width'])


def test_results_do_not_depend_on_the_batch_and_keep_their_order(predictor):
    images = [draw_scene((i,)).image for i in range(6)] + [np.full((1, 1, 3), 9, np.uint8)]
    images[3] = images[3][:70]
    alone, together = (list(predictor.predict(images, batch_size=n)) for n in (1, 4))
    assert [found.size for found in alone] == [image.shape[:2] for image in images]
    for one, other, image in zip(alone, together, images, strict=True):
        np.testing.assert_array_equal(other.image, image)
        if not predictor.detects:
            np.testing.assert_array_equal(one.labels, other.labels)
        else:
            np.testing.assert_allclose(one.boxes, other.boxes, rtol=1e-4, atol=1e-2)
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-4)


def test_bfloat16_predicts_nearly_the_same(root, predictors, tmp_path):
    cfg = tiny_config(root, 'mask_rcnn', most=5)
    path = str(write_weights(cfg, tmp_path / 'mask_rcnn.pth'))
    half = load_predictor(cfg, path, 'cpu', dtype='bfloat16')
    image = draw_scene((0,)).image
    [exact] = predictors['mask_rcnn'].predict(image, score_thr=0)
    [close] = half.predict(image, score_thr=0)
    assert close.scores.dtype == np.float32
    assert close.scores[0] != exact.scores[0]
    np.testing.assert_allclose(close.scores[0], exact.scores[0], rtol=0.05)


@pytest.mark.parametrize('head', ['retinanet', 'fpn'])
def test_augmentation_predicts_the_mirrored_image_alike(predictors, head):
    """The scales and flips are the same set for both, so what is joined is too."""
    image = draw_scene((0,)).image
    [plain] = predictors[head].predict(image, tta=True)
    [mirrored] = predictors[head].predict(np.ascontiguousarray(image[:, ::-1]), tta=True)
    if head == 'fpn':
        assert (plain.labels == mirrored.labels[:, ::-1]).mean() > 0.99
        return
    assert len(plain) == len(mirrored) > 0
    left, right = plain.boxes[0, 0::2], mirrored.boxes[0, 0::2]
    np.testing.assert_allclose(left, image.shape[1] - right[::-1], atol=0.1)


def test_augmentation_is_not_for_masks(predictors):
    with pytest.raises(UserError, match='this model has masks'):
        predictors['mask_rcnn'].predict(draw_scene((0,)).image, tta=True)


def test_images_of_rare_sizes_do_not_pile_up(detector):
    images = [np.zeros((20 + i, 30, 3), np.uint8) for i in range(12)]
    read = 0

    def given_images():
        nonlocal read
        for image in images:
            read += 1
            yield image

    results = detector.predict(given_images(), batch_size=2)
    next(results)
    assert read == 8  # four batches wait at most
    assert len(list(results)) == 11


def test_what_is_found_before_an_interruption_is_written(detector, media, tmp_path):
    def interrupt(line):
        raise KeyboardInterrupt

    paths, _ = find_media([str(media)])
    with pytest.raises(KeyboardInterrupt):
        infer_files(detector, paths, tmp_path / 'out', report=interrupt)
    images = json.loads((tmp_path / 'out/images.json').read_text())['images']
    assert 0 < len(images) < 12


def test_only_detections_above_the_threshold_are_written(detector, media, tmp_path):
    [path], _ = find_media([str(media / 'a/0.jpg')])
    scores = {}
    for threshold in (0.0, 0.5):
        if scores:
            threshold = sum(sorted(scores[0.0])[1:3]) / 2
        infer_files(detector, [path], tmp_path, threshold, pictures=False)
        results = json.loads((tmp_path / 'results.json').read_text())
        scores[threshold] = [each['score'] for each in results]
    assert len(scores[0.0]) == 5
    assert sorted(scores[threshold]) == sorted(scores[0.0])[2:]
    assert not (tmp_path / 'pictures').exists()


def test_a_checkpoint_of_another_model_is_refused(root, tmp_path):
    path = write_weights(tiny_config(root, 'retinanet'), tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match='does not fit EncoderDecoder'):
        load_predictor(tiny_config(root, 'fpn'), str(path), 'cpu')


def test_code_in_a_checkpoint_is_not_run(root, tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'ran',)

    torch.save(dict(state_dict=dict(weight=Code())), tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError):
        load_predictor(tiny_config(root, 'retinanet'), str(tmp_path / 'weights.pth'), 'cpu')
    assert not (tmp_path / 'ran').exists()


def test_classes_come_from_the_checkpoint_and_must_fit(root, tmp_path):
    cfg = tiny_config(root, 'retinanet')
    path = write_weights(cfg, tmp_path / 'weights.pth')
    content = torch.load(path)
    content['meta'] = dict(dataset_meta=dict(classes=('a', 'b', 'c')))
    torch.save(content, path)
    predictor = load_predictor(cfg, str(path), 'cpu')
    assert predictor.classes == ['a', 'b', 'c']
    assert predictor.artist.palette[0] == (220, 20, 60)
    content['meta']['dataset_meta']['classes'] = ('a', 'b')
    torch.save(content, path)
    with pytest.raises(UserError, match='the checkpoint has 2 classes'):
        load_predictor(cfg, str(path), 'cpu')


def test_threads_share_a_predictor(detector):
    images = [draw_scene((i,)).image for i in range(4)]

    def drawn(image):
        [found] = detector.predict(image)
        return found.draw()

    alone = [drawn(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(drawn, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pipeline_that_loads_no_images_is_refused(root, tmp_path):
    cfg = tiny_config(root, 'retinanet')
    path = write_weights(cfg, tmp_path / 'weights.pth')
    del cfg.test_dataloader.dataset.pipeline[0]
    with pytest.raises(UserError, match='pipeline has no LoadImageFromFile'):
        load_predictor(cfg, str(path), 'cpu')


@pytest.mark.parametrize('device', ['nonsense', 'cuda:99'])
def test_a_device_that_is_not_there_is_one_line(device):
    with pytest.raises(UserError, match=f'--device {device}: torch can not use it') as error:
        check_device(device)
    assert '\n' not in str(error.value)


def test_inputs_are_found_once_in_order(media):
    everything, nothing = find_media([str(media), str(media / 'a/0.jpg'), f'{media}/**/*.jpg'])
    assert nothing == []
    assert len(everything) == len(set(everything)) == 9
    assert media / 'notes.txt' not in everything
    some, nothing = find_media([f'{media}/b/*.jpg', f'{media}/none*', str(media / 'gone.jpg')])
    assert [path.name for path in some] == ['0.jpg', '1.jpg', '2.jpg']
    assert [reason for _, reason in nothing] == [
        'no file matches this pattern',
        'it does not exist',
    ]
    without_b, _ = find_media([str(media)], leave_out=media / 'b')
    assert len(without_b) == 6
    with pytest.raises(UserError, match=r'gone\.jpg: it does not exist'):
        find_media([str(media / 'gone.jpg')])


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(['a', 'b', 'A.b']), max_size=2),
            st.sampled_from(['x', 'y', 'x.jpg', 'X']),
            st.sampled_from(['', '.jpg', '.png', '.JPG']),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_no_two_files_share_a_name(entries):
    paths = list({Path('/root', *folders, stem + suffix) for folders, stem, suffix in entries})
    names = distinct_names(paths)
    assert len(set(names)) == len(names)
    # What is written adds one suffix, or keeps the name's own.
    assert len({f'{name}.png' for name in names}) == len(names)


def test_what_opencv_would_fill_with_gray_is_unreadable(media):
    with pytest.raises(Unreadable, match='truncated'):
        read_image(media / 'broken.jpg')
    (media / 'empty.mp4').write_bytes(b'')
    with pytest.raises(Unreadable, match='the file is empty'):
        next(read_video(media / 'empty.mp4'))
    (media / 'text.mp4').write_text('not a video')
    with pytest.raises(Unreadable, match='no frame'):
        next(read_video(media / 'text.mp4'))


@pytest.fixture
def odd(tmp_path):
    """Files that a folder of images may hold: five that are read, and five that are not."""
    folder = tmp_path / 'odd'
    image, other = (draw_scene((i,)).image for i in range(2))
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    _write(folder / 'LOUD.PNG', image)
    _write(folder / 'bits12.png', gray.astype(np.uint16) * 16)
    frames = [Image.fromarray(each[..., ::-1].copy()) for each in (image, other)]
    frames[0].save(folder / 'two.gif', save_all=True, append_images=frames[1:])
    frames[0].save(folder / 'still.avif')
    frames[0].convert('CMYK').save(folder / 'cmyk.jpg')
    content = (folder / 'LOUD.PNG').read_bytes()
    (folder / 'cut.png').write_bytes(content[: len(content) // 2])
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'page.jpg').write_text('<html>404</html>')
    (folder / 'photo.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(90))
    _write(folder / 'floats.tif', gray.astype(np.float32) / 255)
    return folder


def test_verification_and_prediction_agree_on_odd_files(root, detector, odd, tmp_path):
    paths, _ = find_media([str(odd)])
    lines = []
    done, unreadable = infer_files(
        detector, paths, tmp_path / 'out', pictures=False, report=lines.append
    )
    assert done == 5
    images = [
        dict(id=i, file_name=path.name, width=128, height=96) for i, path in enumerate(paths, 1)
    ]
    categories = [dict(id=i, name=name) for i, name in enumerate(detector.classes, 1)]
    content = dict(images=images, annotations=[], categories=categories)
    (odd / 'instances.json').write_text(json.dumps(content))
    cfg = tiny_config(root, 'retinanet')
    cfg.test_dataloader.dataset.update(
        data_root=str(odd), ann_file='instances.json', data_prefix=dict(img='')
    )
    sources, _ = named_sources(cfg, ('test',))
    [found], _ = audit(sources)
    said = {'skipped': [], 'note on': []}
    for fault in found.faults:
        detail = fault.detail.partition(': ')[2]
        said['skipped' if fault.kind == 'unreadable image' else 'note on'].append(
            f'{fault.where}: {detail}'
        )
    for word, faults in said.items():
        assert sorted(f'{word} {fault}' for fault in faults) == sorted(
            line for line in lines if line.startswith(word)
        )
    assert len(said['skipped']) == len(unreadable) == 5
    assert len(said['note on']) == 2


def test_a_folder_hides_no_image(odd, tmp_path):
    (odd / 'no_suffix').write_bytes((odd / 'LOUD.PNG').read_bytes())
    (odd / 'README').write_text('BM: a text')
    (odd / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
    paths, nothing = find_media([str(odd)])
    assert {path.name for path in paths} == {
        *('LOUD.PNG', 'bits12.png', 'two.gif', 'still.avif', 'cmyk.jpg', 'no_suffix'),
        *('cut.png', 'empty.jpg', 'page.jpg', 'photo.heic', 'floats.tif'),
    }
    assert nothing == [(str(odd / 'gone.png'), 'it is a link to nothing')]
    os.mkfifo(odd / 'pipe')
    with pytest.raises(UserError, match='neither a file nor a folder'):
        find_media([str(odd / 'pipe')])


def test_images_are_decoded_as_the_pipeline_says(root, tmp_path):
    cfg = tiny_config(root, 'fpn')
    cfg.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    cfg.model.backbone.in_channels = 1
    cfg.model.data_preprocessor.update(mean=[100.0], std=[50.0])
    path = str(write_weights(cfg, tmp_path / 'weights.pth'))
    predictor = load_predictor(cfg, path, 'cpu')
    picture = _write(tmp_path / 'a.png', draw_scene((1,)).image)
    assert infer_files(predictor, [picture], tmp_path / 'out') == (1, [])
    assert cv2.imread(str(tmp_path / 'out/pictures/a.png')).shape == (96, 128, 3)


def test_a_video_that_ends_early_is_said(detector, tmp_path):
    path = tmp_path / 'clip.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 8, (96, 64))
    for i in range(12):
        writer.write(cv2.resize(draw_scene((i,)).image, (96, 64)))
    writer.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    lines = []
    done, _ = infer_files(detector, [path], tmp_path, pictures=False, report=lines.append)
    assert 0 < done < 12
    assert lines == [
        f'note on {path}: only {done} of the 12 frames that it announces can be decoded'
    ]


def test_reading_ahead_keeps_order_and_few_images(media):
    asked, refused = [], []

    def paths():
        for name in ('a/0.jpg', 'broken.jpg', 'a/1.jpg', 'b/0.jpg', 'b/1.jpg', 'pixel.png'):
            asked.append(media / name)
            yield media / name

    frames = read_sources(paths(), Decoder(), lambda *fault: refused.append(fault), ahead=2)
    first = next(frames)
    assert first.path == media / 'a/0.jpg'
    np.testing.assert_array_equal(first.image, read_image(media / 'a/0.jpg').pixels)
    assert len(asked) == 3
    assert [frame.path for frame in frames] == [asked[0], *asked[2:]][1:]
    assert refused == [(media / 'broken.jpg', 'truncated: the JPEG has no end marker')]


def test_a_writer_numbers_images_by_name(tmp_path):
    writer = CocoWriter(tmp_path, ['thing'])
    for name in ('b.jpg', 'a.jpg'):
        found = Detections(
            image=np.zeros((8, 9, 3), np.uint8),
            classes=['thing'],
            path=Path(name),
            artist=None,
            boxes=np.array([[1, 2, 4, 7]], np.float32),
            scores=np.array([0.75], np.float32),
            labels=np.array([0]),
        )
        writer.add(Path(name), found)
    writer.close()
    images = json.loads((tmp_path / 'images.json').read_text())['images']
    assert images == [
        dict(id=1, file_name='a.jpg', width=9, height=8),
        dict(id=2, file_name='b.jpg', width=9, height=8),
    ]
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results[0] == dict(image_id=1, category_id=1, bbox=[1, 2, 3, 5], score=0.75)
    assert [each['image_id'] for each in results] == [1, 2]
