"""What rounding decides on is told apart from what every computation must find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import batched_nms

from poolformer_dense.exporting.graphs import build_graph
from poolformer_dense.exporting.parity import find_ties, measure_parity
from poolformer_dense.exporting.ties import (
    BOX_ROUNDING,
    SCORE_ROUNDING,
    Decisions,
    possible_detections,
    take,
)
from poolformer_dense.runtimes.outputs import Objects, read_detections
from tests.tiny_models import tiny_predictor

ULP = float(np.finfo(np.float32).eps)
BOX, FAR = [0, 0, 30, 10], [50, 0, 80, 10]


def _decide(boxes, scores, rows=100, proposals=None):
    """Which are certain of those that are possible, and what is undecided of the others."""
    decide = Decisions(0.05, 100, proposals)
    found, *_ = decide(
        torch.tensor([boxes]).float(),
        torch.tensor([scores]).float(),
        torch.zeros(1, len(scores), dtype=torch.int64),
        0.5,
        rows,
    )
    assert found.shape == (1, len(decide.certain), 4)
    return decide.certain.tolist(), ' '.join(decide.reasons).strip()


@pytest.mark.parametrize(
    ('second', 'score', 'certain', 'reason'),
    [
        (FAR, 0.5, [True, True], ''),
        (FAR, 0.0505, [True, True], ''),
        (FAR, 0.05 * (1 + 3 * ULP), [True, False], 'score_thr'),
        ([14, 0, 44, 10], 0.5, [True, True], ''),  # IoU 0.36
        ([6, 0, 36, 10], 0.5, [True], ''),  # 0.67
        ([10, 0, 40, 10], 0.5, [True, False], 'IoU 0.5000000'),
        ([10, 0, 40, 10.01], 0.5, [True, True], ''),  # 0.4998
        ([6, 0, 36, 10], 0.9 * (1 + 3 * ULP), [False, False], 'its score equals'),
        ([6, 0, 36, 10], 0.901, [True], ''),
    ],
)
def test_only_equal_values_are_undecided(second, score, certain, reason):
    found, why = _decide([BOX, second], [0.9, score])
    assert found == certain
    assert reason in why
    assert bool(reason) == bool(why)


def test_what_follows_from_an_undecided_one_is_undecided():
    chain = [BOX, [10, 0, 40, 10], [16, 0, 46, 10], [60, 0, 90, 10]]
    assert _decide(chain, [0.9, 0.8, 0.7, 0.6])[0] == [True, False, False, True]
    # The second is out for certain: the third stays.
    chain[1] = [6, 0, 36, 10]
    assert _decide(chain, [0.9, 0.8, 0.7, 0.6])[0] == [True, True, True]


def test_equal_scores_at_a_limit_are_undecided():
    boxes = [[40 * i, 0, 40 * i + 30, 10] for i in range(4)]
    close = 0.8 * (1 - 2 * ULP)
    assert _decide(boxes, [0.9, 0.8, 0.7, 0.6], rows=2) == ([True, True], '')
    certain, why = _decide(boxes, [0.9, 0.8, close, 0.6], rows=2)
    assert certain == [True, False, False]
    assert 'max_per_img 2' in why
    certain, why = _decide(boxes, [0.9, 0.8, close, 0.6], proposals=2)
    assert certain == [True, False, False]
    assert 'nms_pre 2' in why


@settings(max_examples=60)
@given(count=st.integers(1, 40), rows=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_every_rounding_finds_what_is_certain_and_only_what_is_possible(count, rows, seed):
    rng = np.random.default_rng(seed)
    # On a grid, so that many scores and overlaps are equal.
    corner = rng.integers(0, 6, (count, 2)) * 10.0
    boxes = np.concatenate([corner, corner + rng.integers(1, 5, (count, 2)) * 10], 1)
    scores = rng.choice([0.3, 0.5, 0.7, 0.9], count)
    groups = torch.from_numpy(rng.integers(0, 2, count))
    decide = Decisions(0.05, 100, None)
    possible, *_ = decide(
        torch.from_numpy(boxes).float()[None],
        torch.from_numpy(scores).float()[None],
        groups[None],
        0.5,
        rows,
    )
    possible = set(map(tuple, possible[0].round().int().tolist()))
    certain = sum(decide.certain.tolist())
    for _ in range(5):
        noise = 1 + rng.uniform(-SCORE_ROUNDING, SCORE_ROUNDING, count)
        moved = boxes + rng.uniform(-BOX_ROUNDING, BOX_ROUNDING, boxes.shape) * 100
        _, order = batched_nms(
            torch.from_numpy(moved).float(),
            torch.from_numpy(scores * noise).float(),
            groups,
            dict(iou_threshold=0.5),
        )
        kept = boxes[order[:rows].numpy()]
        found = set(map(tuple, kept.astype(int).tolist()))
        assert found <= possible
        assert len(kept) >= certain


@pytest.mark.parametrize(
    'head',
    ['retinanet', *(pytest.param(h, marks=pytest.mark.slow) for h in ('mask_rcnn', 'cascade'))],
)
def test_a_detection_that_is_lost_or_too_many_is_no_tie(root, tmp_path, head):
    predictor = tiny_predictor(root, head, tmp_path / 'weights.pth')
    graph = build_graph(predictor.model, predictor.cfg.model.data_preprocessor, nms=True)
    rng = np.random.default_rng(0)
    image = (np.linspace(0, 200, 128) * rng.random((1, 3, 1, 1))).astype(np.uint8)
    image = image.repeat(96, 2) + rng.integers(0, 55, (1, 3, 96, 128), np.uint8)
    with torch.no_grad():
        found = {k: v.numpy() for k, v in graph(torch.from_numpy(image)).items()}
    [read] = read_detections(found, dict(applied=True))
    expected = Objects(read.boxes, read.scores, read.labels)
    close = possible_detections(graph, image)
    assert close.certain.sum() > 10
    assert close.certain.sum() <= len(expected) <= len(close.certain)
    nothing = take(expected, [])
    ties, lost = find_ties(graph, image, [expected, nothing], 0.99)
    assert lost >= close.certain.sum()
    assert len(ties) <= (~close.certain).sum()
    elsewhere = take(expected, [0])
    elsewhere.boxes[:] += 3
    assert find_ties(graph, image, [nothing, elsewhere], 0.99) == ([], 1)

    def without_one(images):
        return found | dict(scores=np.where(np.arange(100) == 4, 0, found['scores']))

    parity = measure_parity(graph, predictor.model, without_one, [image])
    assert not parity.holds
