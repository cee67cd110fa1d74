"""Which detections of a file are those of its model, apart from what rounding decides on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from poolformer_dense.exporting.graphs import build_graph
from poolformer_dense.exporting.parity import (
    MIN_IOU_FROM_PROPOSALS,
    Parity,
    find_pairs,
    measure_parity,
    with_whole_masks,
)
from poolformer_dense.runtimes.outputs import Objects
from tests.tiny_models import tiny_predictor

SIZE = (40, 60)


def _object(box, mask=None):
    masks = None if mask is None else mask[None].astype(np.float32)
    boxes = np.array([box], np.float32)
    return Objects(boxes, np.array([0.5], np.float32), np.array([1]), masks)


def _are_partners(one, other):
    return bool(find_pairs(one, other, MIN_IOU_FROM_PROPOSALS))


@pytest.fixture
def mask():
    """Probabilities on a grid of a box, which are clear but for one bin in the object's corner."""
    grid = np.full((8, 8), 0.9)
    grid[-1, -1] = 0.5
    return grid


# Bins are pixels there.
BOX = (16, 8, 24, 16)


@pytest.mark.parametrize(('change', 'same'), [(1e-5, True), (-1e-5, True), (-0.1, False)])
def test_a_pixel_of_a_small_mask_may_differ_where_rounding_decides(mask, change, same):
    expected = with_whole_masks(_object(BOX, mask), SIZE)
    model = Objects(expected.boxes, expected.scores, expected.labels, expected.masks > 0)
    assert model.masks.sum() == 64
    mask[-1, -1] += change
    assert _are_partners(model, with_whole_masks(_object(BOX, mask), SIZE)) is same


@pytest.mark.parametrize(('change', 'same'), [(3e-6, True), (1e-3, False)])
def test_a_box_thinner_than_rounding_is_the_same_if_its_ends_are(change, same):
    x = np.float32(59.999)
    one, other = _object((x, 1, x + 2e-5, 9)), _object((x + np.float32(change), 1, x + 2e-5, 9))
    assert _are_partners(one, other) is same


def test_nothing_compared_is_no_agreement():
    assert not Parity().holds
    assert Parity(total=1, same=1).holds
    assert Parity(errors=dict(logits=1e-6)).holds


def test_numbers_that_are_none_do_not_pass(root, tmp_path):
    predictor = tiny_predictor(root, 'fpn', tmp_path / 'weights.pth')
    graph = build_graph(predictor.model, predictor.cfg.model.data_preprocessor)
    images = np.zeros((1, 3, 64, 64), np.uint8)

    def run(images):
        with torch.no_grad():
            found = {k: v.numpy() for k, v in graph(torch.from_numpy(images)).items()}
        return found | dict(logits=found['logits'] * np.nan)

    parity = measure_parity(graph, predictor.model, run, [images])
    assert parity.worst == np.inf
    assert not parity.holds


def test_objects_apart_are_no_partners():
    assert not _are_partners(_object((0, 0, 20, 20)), _object((0, 0, 20, 22)))
    assert _are_partners(_object((0, 0, 20, 20)), _object((0, 0, 20, 20.01)))
