"""The report: what it reads, what it counts, and that it is written whatever is missing."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.evaluation import CocoMetric, VOCMetric
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

from poolformer_dense.errors import UserError
from poolformer_dense.measure.shapes import write_ade20k
from poolformer_dense.report.hook import ReportHook
from poolformer_dense.report.page import write_report
from poolformer_dense.report.scores import DetectionScores
from poolformer_dense.report.sections import accuracy
from poolformer_dense.report.validation import (
    SUMMARY,
    choose,
    intersection_over_union,
    read_summary,
)
from poolformer_dense.report.workdir import read_run
from poolformer_dense.terminal import printable
from tests.poolformer_dense.report.report_runs import (
    Images,
    make_runner,
    train_record,
    val_record,
    validate,
    write_detections,
    write_label_maps,
    write_session,
)

SECTIONS = [
    'summary', 'losses', 'accuracy', 'classes', 'precision-recall', 'confusion', 'speed', 'gallery',
    'files', 'configuration', 'environment',
]  # fmt: skip
TRICKY = ['<script>alert(1)</script>', '中文 & "quotes"', 'a $x$ b $', "it's {{ 7 * 7 }}"]


def _page(work_dir: Path) -> str:
    return write_report([work_dir]).read_text(encoding='utf-8')


def _section(page: str, name: str) -> str:
    return re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)[0]


def _summary(work_dir: Path) -> dict:
    return json.loads((work_dir / 'validation/summary.json').read_text())


def _simple_run(work_dir: Path) -> Path:
    write_session(work_dir, [*map(train_record, (10, 20)), val_record(2, 0.25)])
    return work_dir


# --- reading ----------------------------------------------------------------------------------


def test_a_resumed_training_counts_from_where_it_resumed(tmp_path):
    first = [*map(train_record, (10, 20, 30, 40)), val_record(2, 0.1), val_record(4, 0.9)]
    write_session(tmp_path, first, '20260101_000000')
    write_session(tmp_path, [train_record(30, loss=7.0), val_record(4, 0.2)], '20260102_000000')
    run = read_run(tmp_path)
    assert run.series('loss') == ([10, 20, 30], [0.1, 0.05, 7.0])
    assert run.series('coco/bbox_mAP', 'val') == ([2, 4], [10, 20])
    assert run.best()['coco/bbox_mAP'] == 20
    assert run.sessions == ['20260101_000000', '20260102_000000']


def test_an_evaluation_that_is_undone_does_not_count(tmp_path):
    first = [*map(train_record, (10, 20, 30)), val_record(3, 0.9)]
    write_session(tmp_path, first, '20260101_000000')
    write_session(tmp_path, [train_record(20)], '20260102_000000')  # epoch 3 begins anew
    run = read_run(tmp_path)
    assert run.val == []
    assert run.series('loss')[0] == [10, 20]


def test_sessions_without_records_are_passed_over(tmp_path):
    write_session(tmp_path, [train_record(10)], '20260101_000000')
    write_session(tmp_path, [], '20260102_000000', config='train_cfg = dict(max_epochs=99)')
    run = read_run(tmp_path)
    assert run.sessions == ['20260101_000000']
    assert run.setting('train_cfg.max_epochs') == 12


def test_time_batch_and_environment(tmp_path):
    write_session(tmp_path, [train_record(10, time=0.5), train_record(30, time=2.0)])
    run = read_run(tmp_path)
    assert run.seconds == 10 * 0.5 + 20 * 2.0
    assert run.batch == 2 * 4
    assert run.environment == {'sys.platform': 'linux', 'seed': '0', 'GPU number': '4'}


def test_minus_one_is_no_accuracy(tmp_path):
    record = val_record(1, 0.5) | {'coco/bbox_mAP_l': -1.0}
    write_session(tmp_path, [train_record(10), record])
    assert read_run(tmp_path).series('coco/bbox_mAP_l', 'val') == ([], [])


def test_a_cut_off_line_is_told(tmp_path):
    folder = write_session(tmp_path, [train_record(10)])
    with (folder / 'vis_data/scalars.json').open('a') as file:
        file.write('{"lr": 0.0')
    run = read_run(tmp_path)
    assert len(run.train) == 1
    assert '1 lines' in run.remarks[0]


def test_reading_a_config_imports_nothing(tmp_path, monkeypatch):
    """A work directory names modules that may be gone, renamed, or another project's."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'named_by_a_config.py').write_text('')
    line = "custom_imports = dict(imports=['named_by_a_config'], allow_failed_imports=False)\n"
    write_session(tmp_path / 'work', [train_record(10)], config=f'{line}a = dict(b=3)\n')
    run = read_run(tmp_path / 'work')
    assert run.setting('a.b') == 3
    assert run.remarks == []
    assert 'named_by_a_config' not in sys.modules


def test_a_config_is_not_run(tmp_path):
    harmed = tmp_path / 'harmed'
    config = f'import os\nx = os.mkdir({str(harmed)!r})\ntrain_cfg = dict(max_epochs=7)\n'
    write_session(tmp_path / 'work', [train_record(10)], config=config)
    assert read_run(tmp_path / 'work').setting('train_cfg.max_epochs') == 7
    assert 'os.mkdir' in _page(tmp_path / 'work')
    assert not harmed.exists()


class TestAReceivedFolder:
    """What another's folder says of files is not where they are looked for."""

    def test_predictions_are_its_own(self, tmp_path):
        work, secret = tmp_path / 'work', tmp_path / 'results.bbox.json'
        write_detections(_simple_run(work), ['a', 'b'])
        page = _section(_page(work), 'classes')
        summary = _summary(work)
        secret.write_text('secret')
        (work / 'validation/summary.json').write_text(
            json.dumps(summary | dict(results=dict(bbox=str(secret), other='/dev/zero')))
        )
        assert _section(_page(work), 'classes') == page

    @pytest.mark.parametrize('name', ['../secret.png', '/etc/passwd', '..', 'best_1_truth.png\0'])
    def test_label_maps_are_its_own(self, tmp_path, name):
        write_label_maps(_simple_run(tmp_path), ['a', 'b'])
        summary = _summary(tmp_path)
        summary['pictures'][0]['truth'] = name
        (tmp_path / 'validation/summary.json').write_text(json.dumps(summary))
        assert 'summary.json is unreadable' in _section(_page(tmp_path), 'summary')

    @settings(max_examples=30)
    @given(
        st.recursive(
            st.none() | st.integers() | st.text() | st.floats(),
            lambda inner: st.lists(inner) | st.dictionaries(
                st.sampled_from(['kind', 'classes', 'palette', 'confusion', 'images', 'results']),
                inner | st.sampled_from(['detection', 'segmentation']),
            ),
        )
    )  # fmt: skip
    def test_a_summary_is_right_or_told(self, tmp_path_factory, summary):
        folder = tmp_path_factory.mktemp('summary')
        (folder / SUMMARY).write_text(json.dumps(summary))
        with contextlib.suppress(ValueError):  # all else fails the test
            read_summary(folder)

    @pytest.mark.parametrize(
        'line',
        ['7', '[]', '{"step": "1"}', '{"step": [1]}', '{"step": 1, "lr": {}}', '[' * 5000],
    )
    def test_figures_that_are_none_are_left_out(self, tmp_path, line):
        folder = _simple_run(tmp_path)
        [path] = folder.glob('*/vis_data/scalars.json')
        path.write_text(path.read_text() + line + '\n{"step": 20, "lr": 0.1, "loss": "x"}\n')
        assert 'Loss' in _page(folder)

    def test_pictures_of_others_stay(self, tmp_path):
        mine = tmp_path / 'validation/mine.png'
        mine.parent.mkdir()
        mine.touch()
        write_label_maps(_simple_run(tmp_path), ['a', 'b'])
        write_label_maps(tmp_path, ['a', 'b'])
        assert mine.exists()


@pytest.mark.parametrize('make', [False, True])
def test_what_is_no_work_dir_is_refused(tmp_path, make):
    folder = tmp_path / 'folder'
    if make:
        folder.mkdir()
    with pytest.raises(UserError, match='no log of a training' if make else 'is not a folder'):
        read_run(folder)


# --- counting ---------------------------------------------------------------------------------


def test_average_precision_is_the_evaluators(tmp_path):
    numbers = write_detections(tmp_path, [f'c{i}' for i in range(5)], images=20, segm=True)
    truth = json.loads((tmp_path / 'truth.json').read_text())['annotations']
    real = [a['category_id'] for a in truth if not a['iscrowd']]
    for kind in ('bbox', 'segm'):
        scores = DetectionScores(_summary(tmp_path), kind)
        for key, threshold in (('mAP', None), ('mAP_50', 0.5), ('mAP_75', 0.75)):
            mine = np.nanmean(scores.average_precision(threshold))
            assert mine == pytest.approx(numbers[f'coco/{kind}_{key}'], abs=6e-4)
            assert mine > 0.1
        assert scores.objects.tolist() == [real.count(i) for i in range(1, 6)]


@pytest.fixture
def by_hand(tmp_path):
    """Two classes and four images, with detections whose counts are known."""

    def box(image, category, x, **more):
        return dict(image_id=image, category_id=category, bbox=[x, 0, 10, 10], **more)

    objects = [box(1, 1, 0), box(1, 2, 50), box(2, 1, 0), box(3, 1, 0), box(4, 2, 0, iscrowd=1)]
    truth = [dict(iscrowd=0, area=100, id=i) | a for i, a in enumerate(objects, start=1)]
    found = [
        box(1, 1, 0, score=0.9), box(1, 2, 50, score=0.8),  # image 1: both found
        box(2, 2, 0, score=0.9), box(2, 1, 0, score=0.29),  # image 2: taken for the other class
        box(3, 1, 80, score=0.5),  # image 3: missed, and something where there is nothing
        box(4, 2, 0, score=0.9),  # image 4: a crowd, which does not count
    ]  # fmt: skip
    files = {'truth.json': dict(
        images=[dict(id=i, width=100, height=100) for i in range(1, 6)],
        categories=[dict(id=1, name='one'), dict(id=2, name='two')], annotations=truth,
    ), 'found.json': found}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    return DetectionScores(
        dict(
            classes=['one', 'two'],
            ann_file=str(tmp_path / 'truth.json'),
            results=dict(bbox=str(tmp_path / 'found.json')),
        ),
        'bbox',
    )


def test_confusions_are_counted(by_hand):
    assert by_hand.confusion().tolist() == [
        [1, 1, 1],  # one: found, taken for two, missed
        [0, 1, 0],  # two: found
        [1, 0, 0],  # nothing: taken for one
    ]


def test_images_are_scored(by_hand):
    # Image 4 has a crowd alone and image 5 nothing: there is nothing to score.
    assert by_hand.image_scores == {1: 1.0, 2: 0.0, 3: 0.0}


@given(st.lists(st.floats(0, 1), max_size=40))
@settings(max_examples=100)
def test_chosen_images_are_different_and_in_order(scores):
    chosen = choose(scores)
    places = [place for kind in ('best', 'median', 'worst') for place in chosen[kind]]
    assert len(set(places)) == len(places) >= min(len(scores), 3)
    assert [scores[p] for p in places] == sorted((scores[p] for p in places), reverse=True)
    if scores:
        assert scores[chosen['best'][0]] == max(scores)
        assert min(scores) in {scores[p] for p in places[-1:]}


def test_label_maps_are_counted_as_by_the_evaluator(tmp_path):
    numbers = write_label_maps(tmp_path, ['a', 'b', 'c', 'd'])
    summary = _summary(tmp_path)
    confusion = np.array(summary['confusion'])
    assert confusion.sum() == 3 * 46 * 64
    iou = intersection_over_union(confusion)
    assert math.isnan(iou[3])
    assert 100 * np.nanmean(iou) == pytest.approx(numbers['mIoU'], abs=0.01)
    assert [p['kind'] for p in summary['pictures']] == ['best', 'median', 'worst']
    assert len(list(tmp_path.glob('validation/*.png'))) == 6


# --- the page ---------------------------------------------------------------------------------


@pytest.mark.parametrize('write', [write_detections, write_label_maps])
def test_the_page_has_everything_and_needs_nothing(tmp_path, write):
    write(_simple_run(tmp_path), TRICKY)
    (tmp_path / 'epoch 1 #2.pth').write_bytes(b'x' * 2**20)
    (tmp_path / 'last_checkpoint').write_text(f'{tmp_path}/epoch 1 #2.pth')
    page = _page(tmp_path)
    assert re.findall(r'<section id="([\w-]+)"', page) == SECTIONS
    assert 'can not be' not in page
    assert 'was not kept' not in page
    assert page.count('<img src="data:image/jpeg;base64,') == (
        12 if write is write_detections else 6
    )
    # Nothing but data: and links to files of the work directory.
    for source in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert source.startswith(('data:', '#')) or (tmp_path / unquote(source)).exists()
    assert not re.search(r'@import|url\((?!#)', page)
    assert 'epoch%201%20%232.pth' in page
    assert len(page) < 5_000_000


def test_names_that_steer_are_escapes_on_the_page(tmp_path):
    write_session(tmp_path / 'a\x1b[31m', [train_record(10), val_record(1, 0.25)])
    write_detections(tmp_path / 'a\x1b[31m', ['x\x1b[2J', 'left\u202eright', 'a\x07b'])
    page = _page(tmp_path / 'a\x1b[31m')
    assert r'x\x1b[2J' in page
    assert not [c for c in page if c != '\n' and printable(c) != c]


def test_ap_is_in_percent_everywhere(tmp_path):
    write_session(tmp_path, [train_record(10), val_record(1, 0.125), val_record(2, 0.0815)])
    write_detections(tmp_path, ['a', 'b'])
    page = _page(tmp_path)
    summary = _section(page, 'summary')
    assert '<dt>Best coco/bbox_mAP</dt><dd class="value">12.5 %</dd>' in summary
    assert '<dt>Last coco/bbox_mAP</dt><dd class="value">8.15 %</dd>' in summary
    accuracy = _section(page, 'accuracy')
    assert '>percent</text>' in accuracy
    assert 'from 12.5 to 8.15' in accuracy
    assert '<td class="number">12.5</td>' in accuracy
    curves = _section(page, 'precision-recall')
    assert '>precision in percent</text>' in curves
    assert '<th scope="row">100</th>' in curves
    scores = re.findall(r'<figcaption>[^<]*: ([\d.]+ %)</figcaption>', _section(page, 'gallery'))
    assert scores


@pytest.mark.parametrize(
    ('name', 'value', 'shown', 'percent'),
    [
        ('coco/bbox_mAP_50', 0.5, 50, True),
        ('coco/segm_mAP', 0.5, 50, True),
        ('coco/AR@100', 0.5, 50, True),
        ('coco/person_precision', 0.5, 50, True),
        ('pascal_voc/AP50', 0.5, 50, True),
        ('pascal_voc/mAP', 35.5, 35.5, True),  # somebody has it in percent
        ('coco/bbox_mAP_s', -1, -1, True),
        ('mIoU', 0.7, 0.7, True),
        ('aAcc', 71.5, 71.5, True),
        ('mAPE', 0.5, 0.5, False),
        ('loss', 0.5, 0.5, False),
    ],
)
def test_units_of_figures(tmp_path, name, value, shown, percent):
    write_session(tmp_path, [train_record(10), {name: value, 'step': 1}])
    run = read_run(tmp_path)
    assert run.val[0][name] == shown
    assert run.in_percent(name) == percent


def test_names_are_shown_and_not_run(tmp_path):
    write_detections(_simple_run(tmp_path), TRICKY)
    page = _page(tmp_path)
    assert '<script' not in page
    assert '&lt;script&gt;alert(1)&lt;/script&gt;' in page
    assert '中文 &amp; ' in page
    assert 'it&#39;s {{ 7 * 7 }}' in page
    assert 'a $x$ b $' in page


@pytest.mark.parametrize(('write', 'count'), [(write_detections, 80), (write_label_maps, 150)])
def test_many_classes(tmp_path, write, count):
    write(_simple_run(tmp_path), [f'class {i}' for i in range(count)])
    page = _page(tmp_path)
    assert len(page) < 5_000_000
    confusion = _section(page, 'confusion')
    names = re.findall(r'>(class \d+)</text>', confusion)
    assert len(names) == 2 * count  # each row and column has its name
    width = float(re.search(r'style="width: (\d+)px"', confusion)[1])
    assert width > 14 * count
    assert 'The most frequent confusions' in confusion
    assert _section(page, 'classes').count('<th scope="row">') == count


def test_few_classes_have_a_table_of_confusions(tmp_path):
    write_label_maps(_simple_run(tmp_path), ['a', 'b', 'c'])
    confusion = np.array(_summary(tmp_path)['confusion'])
    cells = re.findall(r'title="([\d,]+) pixels">(\d+)%<', _section(_page(tmp_path), 'confusion'))
    assert [int(count.replace(',', '')) for count, _ in cells] == confusion.ravel().tolist()
    shares = (100 * confusion / confusion.sum(1, keepdims=True).clip(1)).round().ravel()
    assert [int(share) for _, share in cells] == shares.astype(int).tolist()


def test_pictures_of_the_text_are_the_figures_own(tmp_path):
    """The page of two charts has no identifier twice: references would lead to the other chart."""
    write_detections(_simple_run(tmp_path), ['a', 'b'])
    identifiers = re.findall(r'\bid="([^"]+)"', _page(tmp_path))
    assert len(identifiers) == len(set(identifiers)) > 50


@pytest.mark.parametrize(
    ('broken', 'told'),
    [
        (
            {'validation/summary.json': None, '*/vis_data/config.py': None, '*/*.log': None},
            {
                'classes': 'was not kept',
                'configuration': 'The config was not found',
                'environment': 'not found',
            },
        ),
        (
            {'truth.json': None, '*/vis_data/config.py': 'a = ('},
            {
                'precision-recall': 'can not be evaluated',
                'summary': 'the config is unreadable',
            },
        ),
        (
            {'validation/results.bbox.json': None, '*/vis_data/scalars.json': None},
            {'confusion': 'can not be evaluated', 'losses': 'No loss was logged'},
        ),
        ({'picture.jpg': None}, {'gallery': 'picture.jpg does not exist any more'}),
        ({'validation/results.bbox.json': '[{"image_'}, {'classes': 'can not be evaluated'}),
        ({'validation/results.bbox.json': '[7]'}, {'classes': 'can not be evaluated'}),
        ({'validation/summary.json': '{"kind": "d'}, {'summary': 'summary.json is unreadable'}),
    ],
)
def test_what_is_missing_is_told_where_it_would_be(tmp_path, broken, told):
    write_session(tmp_path, [train_record(10), val_record(1, 0.2)])
    write_detections(tmp_path, ['a', 'b'])
    for pattern, content in broken.items():
        [path] = tmp_path.glob(pattern)
        path.unlink() if content is None else path.write_text(content)
    page = _page(tmp_path)
    assert re.findall(r'<section id="([\w-]+)"', page) == SECTIONS
    for section, text in told.items():
        assert text in _section(page, section)


def test_one_iteration_without_validation(tmp_path):
    write_session(tmp_path, [train_record(1)])
    page = _page(tmp_path)
    assert 'No validation has given figures' in _section(page, 'accuracy')
    assert 'was not kept' in _section(page, 'gallery')
    assert 'There is no checkpoint' in _section(page, 'files')


def test_no_detection_at_all(tmp_path):
    write_detections(_simple_run(tmp_path), ['a', 'b'])
    (tmp_path / 'validation/results.bbox.json').write_text('[]')
    page = _page(tmp_path)
    assert 'can not be' not in page
    assert page.count('Prediction: no object') == 6


def test_a_loss_that_is_not_finite_is_told(tmp_path):
    losses = [1.0, math.nan, math.inf, 0.5]
    records = [train_record(s, loss=loss) for s, loss in zip((1, 2, 3, 4), losses, strict=True)]
    write_session(tmp_path, records)
    page = _page(tmp_path)
    assert 'The loss is not finite in 2 of 4 records, first at iteration 2.' in page
    assert 'nan' not in _section(page, 'losses').lower().replace('nance', '')


def test_a_comparison_tells_what_differs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rate in (('one', '0.1'), ('two', '0.2')):
        config = f'optim_wrapper = dict(lr={rate})\nwork_dir = "{name}"\nsame = 1\n'
        write_session(tmp_path / name, [train_record(10), val_record(1, 0.3)], config=config)
    write_detections(tmp_path / 'one', ['a', 'b'])
    _page(tmp_path / 'one')
    path = write_report([tmp_path / 'one', tmp_path / 'two'])
    page = path.read_text()
    assert path == Path('comparison.html')
    rows = re.findall(r'<th scope="row">([^<]+)</th>', _section(page, 'configuration'))
    assert rows == ['optim_wrapper.lr']
    assert 'There is no difference' in _section(page, 'environment')
    assert 'href="one/report.html"' in _section(page, 'summary')
    assert 'two: What the validation predicted was not kept' in _section(page, 'classes')
    assert _section(page, 'losses').count('>one</text>') == 2


def test_a_comparison_lies_beside_the_work_directories(tmp_path, monkeypatch):
    (tmp_path / 'elsewhere').mkdir()
    for name in ('runs/a', 'runs/more/b'):
        write_session(tmp_path / name, [train_record(10)])
    monkeypatch.chdir(tmp_path / 'elsewhere')
    path = write_report([Path('../runs/a'), tmp_path / 'runs/more/b'])
    assert path == tmp_path / 'runs/comparison.html'
    monkeypatch.chdir(tmp_path)
    assert write_report([Path('runs/a'), Path('runs/a')]) == Path('runs/comparison.html')


def test_compared_folders_of_the_same_name_are_told_apart(tmp_path):
    folders = [tmp_path / 'a/run', tmp_path / 'b/run']
    for folder in folders:
        write_session(folder, [train_record(10)])
    page = write_report(folders, tmp_path / 'out.html').read_text()
    assert re.findall(r'<th scope="row">([^<]+)</th>', page)[:2] == ['a/run', 'b/run']


# --- the hook ---------------------------------------------------------------------------------


def test_a_report_that_fails_does_not_end_the_training(tmp_path):
    runner = make_runner(tmp_path)
    ReportHook().after_train(runner)  # the work directory has no log
    [message] = runner.told
    assert message.startswith('the report was not written: UserError: ')


def test_predictions_that_can_not_be_kept_do_not_end_the_training(tmp_path):
    metric = IoUMetric()
    runner = make_runner(tmp_path, metric, Images([], ['a', 'b']))
    metric.dataset_meta = dict(classes=('a', 'b'))
    hook = ReportHook()
    hook.before_val_epoch(runner)
    for index in range(3):
        hook.after_val_iter(runner, index, outputs=[SegDataSample()])
    assert len(runner.told) == 1  # once, not at each image
    assert 'predictions are not kept' in runner.told[0]


@pytest.mark.parametrize('write', [write_detections, write_label_maps])
def test_a_folder_that_can_not_be_written_does_not_end_the_training(tmp_path, write):
    (tmp_path / 'validation').write_text('where the folder would be')
    numbers = write(tmp_path, ['a', 'b'])
    assert numbers
    assert (tmp_path / 'validation').is_file()


def test_ground_truth_of_a_data_set_without_a_file_is_kept(tmp_path):
    box = [10.0, 10.0, 60.0, 50.0]
    sample = dict(
        img_id=1, ori_shape=(48, 64),
        instances=[dict(bbox=box, bbox_label=1, ignore_flag=0)],
        pred_instances=dict(
            bboxes=np.array([box], np.float32), scores=np.array([0.9]), labels=np.array([1])
        ),
    )  # fmt: skip
    for name, array in sample['pred_instances'].items():
        sample['pred_instances'][name] = torch.from_numpy(array)
    runner = make_runner(tmp_path, CocoMetric(), Images([tmp_path / 'a.jpg'], ['a', 'b']))
    validate(runner, ReportHook(), [sample])
    assert DetectionScores(_summary(tmp_path), 'bbox').image_scores == {1: 1.0}


def test_objects_of_voc_are_kept(tmp_path):
    """An object that VOCMetric ignores counts for nothing, and a missed one does."""
    boxes = torch.tensor([[10.0, 10, 60, 50], [70, 10, 90, 50], [100, 10, 120, 50]])
    sample = DetDataSample(metainfo=dict(img_id='a', img_path=str(tmp_path / 'a.jpg')))
    sample.gt_instances = InstanceData(bboxes=boxes[:2], labels=torch.tensor([1, 0]))
    sample.ignored_instances = InstanceData(bboxes=boxes[2:], labels=torch.tensor([1]))
    sample.pred_instances = InstanceData(
        bboxes=boxes[[0, 2]], labels=torch.tensor([1, 1]), scores=torch.tensor([0.9, 0.8])
    )
    runner = make_runner(tmp_path, VOCMetric(), Images([tmp_path / 'a.jpg'], ['a', 'b']))
    numbers = validate(runner, ReportHook(), [sample])
    found = DetectionScores(_summary(tmp_path), 'bbox')
    assert found.classes == ['a', 'b']
    assert found.average_precision(0.5) == pytest.approx([0.0, 1.0])
    assert numbers['pascal_voc/mAP'] == pytest.approx(0.5)
    assert _summary(tmp_path)['images'] == {'1': str(tmp_path / 'a.jpg')}
    assert runner.told == []


def test_figures_of_voc_have_their_chart(tmp_path):
    numbers = {'pascal_voc/mAP': 0.5, 'pascal_voc/AP50': 0.5, 'step': 1}
    write_session(tmp_path, [train_record(10), numbers, {**numbers, 'step': 2}])
    assert read_run(tmp_path).metrics[0] == 'pascal_voc/mAP'
    page = _page(tmp_path)
    assert 'Best pascal_voc/mAP' in page
    assert 'Validation: pascal_voc<' in page


@pytest.mark.parametrize('count', [3, 20])
def test_classwise_figures_share_one_chart(tmp_path, count):
    def record(epoch):
        by_class = {f'coco/class_{i}_precision': (i + epoch) / 100 for i in range(count)}
        by_class['coco/absent_precision'] = float('nan')
        return by_class | val_record(epoch, 0.25)

    write_session(tmp_path, [train_record(10), record(1), record(2)])
    [overall, single] = accuracy([read_run(tmp_path)])
    assert overall.caption == 'Validation: coco/bbox'
    assert single.caption == 'Validation: AP of each class'
    many = count > 7
    named = [f'class_{i}' for i in (*range(3), *range(count - 3, count))] if many else ['class_0']
    assert all(f'>{name}<' in str(single.svg) for name in named)
    assert '>class_9<' not in str(single.svg)
    assert 'absent' not in str(single.svg)
    if many:
        assert len(single.table.rows) == count
        assert single.table.rows[0][0] == f'class_{count - 1}'


def test_the_hook_can_be_told_to_do_nothing(tmp_path):
    hook = ReportHook(predictions=False, page=False)
    runner = make_runner(tmp_path, IoUMetric(), Images([], ['a', 'b']))
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0, outputs=[SegDataSample()])
    hook.after_val_epoch(runner)
    hook.after_train(runner)
    assert runner.told == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_keep_what_one_keeps(run, root, free_port, tmp_path):
    """Of three images one process has two and the other one, and one again to fill up."""
    write_ade20k(tmp_path / 'ade', num_train=8, num_val=3)
    config = root / 'configs/demo/fpn_poolformer_s12.py'
    options = [
        '--cfg-options', f'data_root={tmp_path}/ade', 'train_cfg.max_iters=1',
        'train_cfg.val_interval=1', 'train_dataloader.batch_size=2',
    ]  # fmt: skip
    done = run(
        'dist_train.sh', config, 2, '--work-dir', tmp_path / 'two', *options,
        cwd=tmp_path, env={'PORT': str(free_port)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / 'two/validation/summary.json').read_text())
    pixels = 0
    for path in (tmp_path / 'ade/annotations/validation').iterdir():
        pixels += int((cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0).sum())
    assert np.sum(found['confusion']) == pixels
    assert len({picture['image'] for picture in found['pictures']}) == 3
    assert '>GPU number</th>' in (tmp_path / 'two/report.html').read_text()
