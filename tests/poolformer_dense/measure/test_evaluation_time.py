"""Both COCO evaluators give the same numbers; pycocotools is the reference."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolformer_dense.measure.evaluation_time import (
    Content,
    generate_detections,
    time_evaluator,
    write_ground_truth,
)

ITEMS = [
    'mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l',
    'AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000',
]  # fmt: skip
SMALL = Content(images=8, categories=4, objects=6, detections=30, empty=0.2, crowd=0.2, scores=20)
EVALUATORS = ('CocoMetric', 'FasterCocoMetric')


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    """Evaluate with one of the metrics; the numbers of the toolkit below it, before rounding."""
    pytest.importorskip('faster_coco_eval')
    from mmdet.evaluation import metrics

    if not hasattr(metrics, 'FasterCocoMetric'):
        pytest.skip('this mmdet has no FasterCocoMetric')
    from mmdet.evaluation.metrics import coco_metric, faster_coco_metric

    toolkits = {'CocoMetric': (coco_metric, 'COCOeval')}
    toolkits['FasterCocoMetric'] = (faster_coco_metric, 'COCOeval_faster')
    annotations = tmp_path_factory.mktemp('evaluation') / 'annotations.json'

    def run(content, seed, metric, edit=lambda truth, samples: None, **options):
        truth = write_ground_truth(annotations, content, seed)
        samples = generate_detections(truth, content, seed)
        edit(truth, samples)
        found = {}
        for name, (module, toolkit) in toolkits.items():
            made = []

            class Kept(getattr(module, toolkit)):
                def __init__(self, *args, _made=made, **kwargs):
                    super().__init__(*args, **kwargs)
                    _made.append(self)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, toolkit, Kept)
                numbers, _ = time_evaluator(
                    name, annotations, samples, metric,
                    metric_items=ITEMS, classwise=True, **options,
                )  # fmt: skip
            found[name] = (numbers, dict(zip(ITEMS, made[0].stats[:12], strict=True)))
        return found

    return run


def _assert_equal(found):
    (numbers, stats), (others, other_stats) = (found[name] for name in EVALUATORS)
    assert other_stats == pytest.approx(stats, abs=1e-12)
    # What is printed is rounded: equal but for a number on the edge between two.
    assert others == pytest.approx(numbers, abs=1.001e-3, nan_ok=True)
    return stats


@pytest.mark.parametrize('metric', ['bbox', 'segm'])
@settings(max_examples=25, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    content=st.builds(
        Content,
        images=st.integers(2, 10),
        categories=st.integers(1, 6),
        objects=st.sampled_from([0.3, 2.0, 8.0]),
        detections=st.integers(1, 40),
        empty=st.sampled_from([0.0, 0.3]),
        crowd=st.sampled_from([0.0, 0.2, 0.9]),
        scores=st.sampled_from([1, 3, 10**6]),
    ),
)
def test_fuzzed_contents_agree(raw, metric, seed, content):
    def one_detection(truth, samples):
        # Without a single detection neither metric has any number.
        if not any(len(sample['pred_instances']['scores']) for sample in samples):
            full = dataclasses.replace(content, empty=0.0)
            samples[:] = generate_detections(truth, full, seed)

    _assert_equal(raw(content, seed, metric, one_detection))


@pytest.mark.parametrize('metric', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(3))
def test_categories_and_images_without_objects_agree(raw, metric, seed):
    content = dataclasses.replace(SMALL, images=20, categories=40, objects=1, empty=0.5)
    _assert_equal(raw(content, seed, metric))


@pytest.mark.parametrize('metric', ['bbox', 'segm'])
def test_tied_scores_agree_and_matter(raw, metric):
    tied = dataclasses.replace(SMALL, images=20, scores=2)
    stats = _assert_equal(raw(tied, 5, metric))

    def reverse(truth, samples):
        for sample in samples:
            predictions = sample['pred_instances']
            for key in ('bboxes', 'scores', 'labels'):
                predictions[key] = predictions[key].flip(0)
            predictions['masks'].reverse()

    # The order of tied detections decides: the agreement above is on it, too.
    assert _assert_equal(raw(tied, 5, metric, reverse))['mAP'] != stats['mAP']


@pytest.mark.parametrize('metric', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(3))
def test_more_detections_than_count_agree(raw, metric, seed):
    crowded = dataclasses.replace(SMALL, images=4, categories=1, detections=160, objects=30)
    _assert_equal(raw(crowded, seed, metric, proposal_nums=(1, 10, 100)))


def test_above_100_detections_of_a_class_only_the_ap_differs(raw):
    # mmdet counts up to 1,000 of them, pycocotools' first line 100: as docs/evaluation.md says.
    crowded = dataclasses.replace(SMALL, images=4, categories=1, detections=160, objects=30)
    stats, others = (raw(crowded, 0, 'bbox')[name][1] for name in EVALUATORS)
    assert others['mAP'] != stats.pop('mAP')
    del others['mAP']
    assert others == pytest.approx(stats, abs=1e-12)


def test_the_generated_content_has_what_is_asked_for(tmp_path):
    content = dataclasses.replace(SMALL, images=200)
    truth = write_ground_truth(tmp_path / 'a.json', content, 0)
    samples = generate_detections(truth, content, 0)
    objects = truth['annotations']
    assert len(objects) / 200 == pytest.approx(6 * 0.8, rel=0.15)
    assert sum(o['iscrowd'] for o in objects) / len(objects) == pytest.approx(0.2, abs=0.05)
    counts = [len(sample['pred_instances']['scores']) for sample in samples]
    assert set(counts) == {0, 30}
    scores = {float(s) for sample in samples for s in sample['pred_instances']['scores']}
    assert len(scores) == 20
    assert all(math.isclose(s * 20, round(s * 20)) for s in scores)
    again = generate_detections(truth, content, 0)
    assert all(
        (one['pred_instances']['bboxes'] == other['pred_instances']['bboxes']).all()
        for one, other in zip(samples, again, strict=True)
    )


def test_good_detections_score_well_and_none_is_perfect(tmp_path, raw):
    stats = _assert_equal(raw(dataclasses.replace(SMALL, images=60, crowd=0.0), 1, 'segm'))
    assert 0.15 < stats['mAP'] < 0.9


def test_the_same_releases_everywhere(root):
    pins = {
        line
        for name in ('optional', 'tests')
        for line in (root / f'requirements/{name}.txt').read_text().splitlines()
        if line.startswith('faster-coco-eval')
    }
    [pin] = pins
    # The error that says how to install it, and the page that does.
    assert pin in (root / 'poolformer_dense/config/preflight/packages.py').read_text()
    assert pin in (root / 'docs/evaluation.md').read_text()
