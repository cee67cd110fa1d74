"""Run-length encodings are judged as pycocotools reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from poolformer_dense.data.coco_faults import polygon_problem, rle_problem


@st.composite
def masks(draw):
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    density = draw(st.sampled_from([0, 0.02, 0.5, 1]))
    return (rng.random((height, width)) < density).astype(np.uint8)


def _runs(mask):
    flat = mask.ravel(order='F')
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *edges, flat.size]).tolist()


@settings(max_examples=60)
@given(masks())
def test_every_mask_passes_compressed_or_not(mask):
    height, width = mask.shape
    rle = mask_utils.encode(np.asfortranarray(mask))
    assert not rle_problem(
        dict(size=[height, width], counts=rle['counts'].decode()), (width, height)
    )
    assert not rle_problem(dict(size=[height, width], counts=_runs(mask)), (width, height))


def test_a_mask_of_a_large_image_passes():
    mask = np.zeros((3000, 5000), np.uint8, order='F')
    mask[100:2900, 3000:4000] = 1
    counts = mask_utils.encode(mask)['counts'].decode()
    assert not rle_problem(dict(size=[3000, 5000], counts=counts), (5000, 3000))


@settings(max_examples=60)
@given(masks(), st.data())
def test_a_string_that_covers_another_area_is_named(mask, data):
    height, width = mask.shape
    counts = mask_utils.encode(np.asfortranarray(mask))['counts'].decode()
    cut = data.draw(st.integers(0, len(counts) - 1))
    assert rle_problem(dict(size=[height, width], counts=counts[:cut]), (width, height))
    assert rle_problem(dict(size=[height, width + 1], counts=counts), None)


@settings(max_examples=60)
@given(st.text(alphabet=[*map(chr, range(32, 128)), '\0', 'é'], max_size=20))
def test_any_text_is_judged_without_a_crash(text):
    rle_problem(dict(size=[4, 4], counts=text), (4, 4))


@settings(max_examples=60)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.just('x'), st.lists))
def test_only_finite_pairs_are_a_polygon(value):
    sound = (
        isinstance(value, list)
        and len(value) >= 6
        and len(value) % 2 == 0
        and all(isinstance(v, (int, float)) and abs(v) < 1e300 for v in value)
    )
    if not sound and not isinstance(value, list):
        assert polygon_problem(value)
    elif sound:
        assert not polygon_problem(value)


@pytest.mark.parametrize(
    ('polygon', 'problem'),
    [
        ([1, 2, 3, 4], 'has 2 points, fewer than 3'),
        ([1, 2, 3, 4, 5, 6, 7], 'has 7 numbers, which are no pairs'),
        ([1, 2, 3, 4, 5, '6'], "has '6' among its numbers"),
        ([1, 2, 3, 4, 5, float('nan')], 'NaN or infinite'),
        (7, 'is 7, not a list of numbers'),
    ],
)
def test_a_broken_polygon_says_why(polygon, problem):
    assert problem in polygon_problem(polygon)
