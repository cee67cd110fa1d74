"""TilePredictor: what they find, joined, is what the whole image shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolformer_dense.errors import UserError
from poolformer_dense.measure.shapes import draw_scene
from poolformer_dense.predict.masks import Masks, encode_mask, encode_placed
from poolformer_dense.predict.network import Instances, Prepared
from poolformer_dense.predict.tiles import Tiling
from poolformer_dense.predict.tiling import TilePredictor

CLASSES = 3


class Painted:
    """A network that does not look at the surroundings: it finds what is painted.

    Of each pixel the first channel is the class, the second the number of its object, 0 for none;
    the third is for labels.
    """

    def __init__(self, masks: bool = True) -> None:
        self.masks = masks
        self.largest = 0

    def prepare(self, image: np.ndarray) -> Prepared:
        return Prepared(image.shape, image)

    def forward(self, batch: list[Prepared]) -> list[Any]:
        self.largest = max(self.largest, len(batch))
        return [self._find(each.data) for each in batch]

    def _find(self, image: np.ndarray) -> Instances:
        numbers = [n for n in np.unique(image[..., 1]) if n]
        masks = np.array([image[..., 1] == n for n in numbers]).reshape(-1, *image.shape[:2])
        boxes = []
        for mask in masks:
            y, x = np.nonzero(mask)
            boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
        order = np.argsort([-n for n in numbers]).astype(int)
        labels = [image[..., 0][mask][0] for mask in masks]
        return Instances(
            np.array(boxes, np.float32).reshape(-1, 4)[order],
            np.array(numbers, np.float32)[order] / 256,
            np.array(labels, np.int64)[order],
            Masks(masks[order], image.shape[:2]) if self.masks else None,
        )


class Labelling(Painted):
    """Says of each pixel its class."""

    def _find(self, image: np.ndarray) -> np.ndarray:
        return image[..., 2].astype(np.int64)


class Scoring(Labelling):
    """Also says how sure it is; the scores are the pixel's own."""

    def scores(self, batch: list[Prepared], classes: int) -> list[np.ndarray]:
        each = np.arange(CLASSES)[:, None, None]
        return [1 / (1 + (p.data[..., 2].astype(np.float32) - each) ** 2) for p in batch]


@st.composite
def scenes(draw, largest: int | None = None):
    """A tiling and an image with objects up to the overlap's size, in boxes of their own."""
    size = draw(st.integers(4, 24))
    overlap = draw(st.sampled_from([0.1, 0.25, 0.4, 0.5, 0.7]))
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    image = np.zeros((height, width, 3), np.uint8)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    image[..., 2] = rng.integers(0, CLASSES, (height, width))
    most = largest or int(np.ceil(size * overlap))
    taken = np.zeros((height, width), bool)
    for number in range(1, draw(st.integers(1, 25))):
        h, w = rng.integers(1, most + 1, 2).clip(max=(height, width))
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        room = image[y : y + h, x : x + w]
        if not taken[y : y + h, x : x + w].any():
            taken[y : y + h, x : x + w] = True
            # A skyline: it hangs together, and its box is that of the rectangle.
            shape = np.arange(h)[:, None] >= rng.integers(0, h, w) * (np.arange(w) > 0)
            room[shape] = np.stack(
                [np.full(shape.sum(), rng.integers(CLASSES)), np.full(shape.sum(), number),
                 room[shape][:, 2]], axis=1,
            )  # fmt: skip
    return Tiling(size, overlap), image


def assert_equal(one: Instances, other: Instances) -> None:
    assert np.array_equal(one.scores, other.scores)
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.boxes, other.boxes)
    if other.masks is None:
        assert one.masks is None
    else:
        assert one.masks.encode() == other.masks.encode()
        assert np.array_equal(np.asarray(one.masks), np.asarray(other.masks))


@settings(max_examples=150)
@given(scenes(), st.integers(1, 5), st.booleans())
def test_objects_up_to_the_overlap_are_those_of_the_whole_image(scene, batch, masks):
    tiling, image = scene
    network = Painted(masks)
    tiled = TilePredictor(network, tiling, CLASSES, batch).detect(image, 0)
    assert network.largest <= batch
    [whole] = network.forward([network.prepare(image)])
    assert_equal(tiled, whole)


@pytest.mark.parametrize('place', [(11, 11), (12, 30), (30, 12), (8, 8), (14, 14), (60, 60)])
@pytest.mark.parametrize('side', [1, 4, 8])
def test_an_object_on_a_seam_or_a_corner_is_found_once(place, side):
    y, x = place
    image = np.zeros((64, 64, 3), np.uint8)
    image[y : y + side, x : x + side] = (1, 7, 0)
    found = TilePredictor(Painted(), Tiling(16, 0.5), CLASSES, 4).detect(image, 0)
    stop = [min(v + side, 64) for v in (x, y)]
    assert found.boxes.tolist() == [[x, y, *stop]]
    assert found.masks[0].sum() == image[..., 1].astype(bool).sum()


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(10, 60), st.integers(10, 60))
def test_a_larger_object_is_joined_from_its_fragments(y, x, h, w):
    image = np.zeros((100, 100, 3), np.uint8)
    image[y : y + h, x : x + w] = (2, 9, 0)
    network = Painted()
    tiled = TilePredictor(network, Tiling(20, 0.3), CLASSES, 8).detect(image, 0)
    [whole] = network.forward([network.prepare(image)])
    assert_equal(tiled, whole)


def test_neighbours_of_other_classes_are_not_joined():
    image = np.zeros((20, 60, 3), np.uint8)
    image[4:16, 5:30] = (0, 1, 0)
    image[4:16, 30:55] = (1, 2, 0)
    network = Painted()
    tiled = TilePredictor(network, Tiling(20, 0.3), CLASSES).detect(image, 0)
    [whole] = network.forward([network.prepare(image)])
    assert_equal(tiled, whole)


def test_objects_below_the_threshold_are_left_out():
    image = np.zeros((10, 40, 3), np.uint8)
    image[2:5, 2:5], image[2:5, 30:33] = (0, 64, 0), (0, 192, 0)
    found = TilePredictor(Painted(), Tiling(10, 0.4), CLASSES).detect(image, 0.5)
    assert found.scores.tolist() == [0.75]
    nothing = TilePredictor(Painted(), Tiling(10, 0.4), CLASSES).detect(image, 0.9)
    assert nothing.boxes.shape == (0, 4)
    assert np.asarray(nothing.masks).shape == (0, 10, 40)


@settings(max_examples=60)
@given(scenes(), st.booleans())
def test_labels_are_those_of_the_whole_image(scene, scored):
    tiling, image = scene
    network = Scoring() if scored else Labelling()
    rows = list(TilePredictor(network, tiling, CLASSES, 3).label(image))
    assert np.array_equal(np.concatenate(rows), image[..., 2])
    assert max(len(each) for each in rows) <= tiling.size


def test_an_overlap_goes_over_from_one_tile_to_the_next():
    """Two tiles that disagree: each wins in its own half."""

    class Disagreeing(Scoring):
        calls = 0

        def scores(self, batch, classes):
            self.calls += 1
            plane = np.zeros((CLASSES, *batch[0].data.shape[:2]), np.float32)
            plane[self.calls - 1] = 1
            return [plane]

    image = np.zeros((8, 12, 3), np.uint8)
    [rows] = TilePredictor(Disagreeing(), Tiling(8, 0.5), CLASSES).label(image)
    assert rows[0].tolist() == [0] * 6 + [1] * 6


def test_progress_counts_tiles():
    told = []
    image = np.zeros((30, 30, 3), np.uint8)
    tiles = TilePredictor(Painted(), Tiling(10, 0), CLASSES, 4, lambda *each: told.append(each))
    tiles.detect(image, 0)
    assert told == [(i, 9) for i in range(1, 10)]


@given(st.integers(1, 300), st.integers(1, 80), st.floats(0, 0.95))
def test_tiles_cover_an_axis_and_overlap_enough(length, size, overlap):
    spans = Tiling(size, overlap).spans(length)
    assert spans[0].start == 0
    assert spans[-1].stop == length
    assert {span.size for span in spans} == {min(size, length)}
    wanted = min(np.ceil(size * overlap), size - 1)
    assert all(span.before >= wanted for span in spans[1:])
    assert [span.last for span in spans[:-1]] == [span.first for span in spans[1:]]
    assert all(span.weights().min() > 0 for span in spans)


@pytest.mark.parametrize('arguments', [(0,), (True,), (8.5,), (8, 1), (8, -0.1)])
def test_a_tiling_that_covers_nothing_is_refused(arguments):
    with pytest.raises(UserError, match=r'tile=|overlap='):
        Tiling(*arguments)


@given(st.data())
def test_a_mask_is_placed_without_the_dense_image(data):
    height, width = (data.draw(st.integers(1, 9)) for _ in range(2))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    y, x = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    bits = data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    mask = np.array(bits).reshape(h, w)
    whole = np.zeros((height, width), bool)
    whole[y : y + h, x : x + w] = mask
    assert encode_placed(mask, (y, x), (height, width)) == encode_mask(whole)


@pytest.mark.parametrize('tta', [False, True])
@pytest.mark.parametrize('head', ['retinanet', 'mask_rcnn', 'fpn'])
def test_a_model_predicts_an_image_in_tiles(predictors, head, tta):
    if tta and head == 'mask_rcnn':
        pytest.skip('mmdet joins no masks')
    image = draw_scene((0,), 150, 90).image
    [found] = predictors[head].predict(image, tile=64, overlap=0.3, batch_size=4, tta=tta)
    if head == 'fpn':
        assert found.labels.shape == image.shape[:2]
        assert found.labels.dtype == np.uint8
    else:
        assert len(found) > 0
        assert found.boxes[:, 2].max() > 64
    assert found.draw().shape == image.shape


def test_one_tile_is_the_image_itself(predictors):
    image = draw_scene((0,)).image
    [tiled] = predictors['mask_rcnn'].predict(image, tile=500)
    [whole] = predictors['mask_rcnn'].predict(image)
    assert np.array_equal(tiled.boxes, whole.boxes)
    assert tiled.masks.encode() == whole.masks.encode()
    [tiled] = predictors['fpn'].predict(image, tile=500)
    [whole] = predictors['fpn'].predict(image)
    assert np.array_equal(tiled.labels, whole.labels)
