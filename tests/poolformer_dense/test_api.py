"""`poolformer_dense` from Python."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import pkgutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
from mmengine.registry import DefaultScope

import poolformer_dense
from poolformer_dense import Detections, Masks, Segmentation, UserError
from poolformer_dense.measure.shapes import draw_scene
from poolformer_dense.predict.network import Instances, Prepared


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'picture.png'
    assert cv2.imwrite(str(path), draw_scene((3,)).image)
    return path


def _equal(one, other):
    if isinstance(one, Segmentation):
        return np.array_equal(one.labels, other.labels)
    return np.array_equal(one.boxes, other.boxes) and np.array_equal(one.scores, other.scores)


def test_an_image_is_predicted_in_whatever_form_it_comes(predictor, picture, tmp_path):
    image = cv2.imread(str(picture))
    [expected] = predictor.predict(picture)
    assert expected.path == picture
    rgb = PIL.Image.open(picture)
    bgra = np.dstack([image, image[..., :1]])
    paths = [str(picture), str(tmp_path), f'{tmp_path}/*.png', [[picture]], [picture]]
    for given in (*paths, image, rgb, iter([image]), image[None], bgra):
        [found] = predictor.predict(given)
        assert _equal(expected, found)


def test_a_stream_without_end_is_predicted_as_it_comes(predictors):
    images = (draw_scene((i,)).image for i in itertools.count())
    results = predictors['fpn'].predict(images)
    assert [found.path for found in itertools.islice(results, 3)] == [None] * 3


def test_what_is_no_image_is_refused_in_one_line(predictors, tmp_path):
    detector = predictors['retinanet']
    wrong = tmp_path / 'wrong.jpg'
    wrong.write_bytes(b'no image')
    for given, message in (
        (tmp_path / 'gone.jpg', 'does not exist'),
        (np.zeros((8, 8, 3), np.float32), 'must be uint8'),
        (np.zeros((2, 8, 8, 5), np.uint8), 'must be uint8'),
        ([7], 'int is no image'),
        (wrong, 'on_unreadable'),
    ):
        with pytest.raises(UserError, match=message):
            list(detector.predict(given))
    with pytest.raises(UserError, match='at least 1'):
        detector.predict([], batch_size=0)
    with pytest.raises(UserError, match='label maps have no scores'):
        predictors['fpn'].predict([], score_thr=0.5)


def test_unreadable_files_are_left_out_if_asked(predictors, picture, tmp_path):
    wrong = tmp_path / 'wrong.jpg'
    wrong.write_bytes(b'no image')
    left_out = []
    found = list(
        predictors['retinanet'].predict(
            [wrong, picture, 'gone.jpg'], on_unreadable=lambda path, reason: left_out.append(path)
        )
    )
    assert [each.path for each in found] == [picture]
    assert {path.name for path in left_out} == {'wrong.jpg', 'gone.jpg'}


def test_detections_are_arrays_and_coco_results(predictors, picture):
    [found] = predictors['mask_rcnn'].predict(picture, score_thr=0.0)
    assert isinstance(found, Detections)
    count = len(found)
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == (
        (count, 4), (count,), (count,),
    )  # fmt: skip
    assert (found.boxes.dtype, found.labels.dtype) == (np.float32, np.int64)
    assert np.asarray(found.masks).shape == (count, *found.size)
    assert np.asarray(found.masks).dtype == bool
    entries = found.to_coco(image_id=9, category_ids=[11, 22, 33])
    assert [each['image_id'] for each in entries] == [9] * count
    for each, box, label, mask in zip(entries, found.boxes, found.labels, found.masks, strict=True):
        x, y, w, h = each['bbox']
        np.testing.assert_allclose((x, y, x + w, y + h), box, atol=2e-3)
        assert each['category_id'] == (11, 22, 33)[label]
        np.testing.assert_array_equal(pycocotools.mask.decode(each['segmentation']), mask)
    [few] = predictors['mask_rcnn'].predict(picture, score_thr=float(found.scores[1]))
    assert len(few) == np.sum(found.scores > found.scores[1]) < count
    assert len(few.masks) == len(few)


def test_a_label_map_is_an_array_and_coco_results(predictors, picture):
    [found] = predictors['fpn'].predict(picture)
    assert isinstance(found, Segmentation)
    assert found.labels.shape == found.size == found.image.shape[:2]
    assert found.labels.dtype == np.uint8
    covered = np.zeros(found.size, int)
    for each in found.to_coco():
        covered += pycocotools.mask.decode(each['segmentation']) * each['category_id']
    np.testing.assert_array_equal(covered - 1, found.labels)


def test_results_are_saved_shown_and_pickled(predictor, picture, tmp_path, monkeypatch):
    [found] = predictor.predict(picture)
    found.save(tmp_path / 'new/drawn.jpg')
    assert cv2.imread(str(tmp_path / 'new/drawn.jpg')).shape == found.image.shape
    assert not np.array_equal(found.draw(), found.image)
    found.save(tmp_path / 'new/found.json')
    with pytest.raises(UserError, match=r'take \.jpg or \.png'):
        found.save(tmp_path / 'found.nothing')
    shown = []
    monkeypatch.setattr(PIL.Image.Image, 'show', lambda self: shown.append(np.asarray(self)))
    found.show()
    assert shown[0].shape == found.image.shape
    again = pickle.loads(pickle.dumps(found))
    assert _equal(found, again)
    if getattr(found, 'masks', None) is None:  # the toolbox jitters their colours
        np.testing.assert_array_equal(shown[0][..., ::-1], found.draw())
        np.testing.assert_array_equal(again.draw(), found.draw())


def test_results_become_supervisions(predictor, picture):
    supervision = pytest.importorskip('supervision')
    [found] = predictor.predict(picture)
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    names = [found.classes[i] for i in theirs.class_id]
    assert list(theirs.data['class_name']) == names
    if isinstance(found, Detections):
        np.testing.assert_array_equal(theirs.xyxy, found.boxes)


def test_masks_are_the_same_dense_and_run_length_encoded():
    dense = np.random.default_rng(0).random((4, 7, 9)) > 0.5
    masks = Masks(dense, (7, 9))
    encoded = Masks(masks.encode(), (7, 9))
    for each in (masks, encoded):
        np.testing.assert_array_equal(np.asarray(each), dense)
        np.testing.assert_array_equal(np.asarray(each[1:3]), dense[1:3])
        np.testing.assert_array_equal(
            np.asarray(each[np.array([True, False, True, False])]), dense[::2]
        )
        np.testing.assert_array_equal(each[-1], dense[-1])
        assert np.asarray(each[np.zeros(4, bool)]).shape == (0, 7, 9)


def test_threads_share_models_of_both_toolboxes(predictors):
    images = [draw_scene((i,)).image for i in range(3)]
    jobs = [(model, image) for image in images for model in predictors.values()]

    def predict(job):
        [found] = job[0].predict(job[1])
        return found

    alone = [predict(job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(predict, jobs))
    assert all(map(_equal, alone, together))


def test_loading_and_predicting_leave_the_process_as_it_was(model_files):
    def scope():
        current = DefaultScope.get_current_instance()
        return current and current.scope_name

    before = scope(), list(DefaultScope._instance_dict)
    for files in model_files.values():
        model = poolformer_dense.load(*files, 'cpu')
        assert (scope(), list(DefaultScope._instance_dict)) == before
        [found] = model.predict(draw_scene((1,)).image)
        found.draw()
    assert (scope(), list(DefaultScope._instance_dict)) == before


def test_importing_the_package_imports_nothing_heavy():
    code = (
        'import sys, poolformer_dense\n'
        'path = poolformer_dense.config_path("retinanet_poolformer_s12")\n'
        'assert not {"torch", "mmengine", "numpy"} & sys.modules.keys(), path\n'
        'assert {"load", "config_path"} <= set(dir(poolformer_dense))\n'
        'try: poolformer_dense.laod\n'
        'except AttributeError as error: print(error)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout == "module 'poolformer_dense' has no attribute 'laod'\n", done.stderr


def test_everything_offered_can_be_imported():
    for name in poolformer_dense.__all__:
        assert getattr(poolformer_dense, name) is not None


def test_no_module_hides_what_is_offered():
    """A subpackage becomes an attribute when it is imported, over any function of its name."""
    modules = {module.name for module in pkgutil.iter_modules(poolformer_dense.__path__)}
    assert not modules & set(poolformer_dense.__all__)


@pytest.mark.slow
@pytest.mark.parametrize('masks', [False, True])
def test_its_own_time_is_small(predictors, masks):
    """With a network that answers at once: reading, batching and the results of an image."""
    size, count = (512, 512), 100
    image = np.zeros((*size, 3), np.uint8)
    rng = np.random.default_rng(0)
    found = Instances(
        rng.random((count, 4), np.float32) * 500,
        np.linspace(1, 0, count, dtype=np.float32),
        np.zeros(count, np.int64),
        Masks(rng.random((count, *size)) > 0.5, size) if masks else None,
    )

    class AtOnce:
        def prepare(self, image):
            return Prepared(image.shape, image)

        def forward(self, batch):
            return [found] * len(batch)

    model = dataclasses.replace(predictors['retinanet'], network=AtOnce())
    list(model.predict([image]))
    start = time.process_time()
    for _ in range(20):
        list(model.predict(image))
    assert (time.process_time() - start) / 20 < 0.005  # seconds of the processor
