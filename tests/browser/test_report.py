"""The report in headless Chromium: no error, no request, no violation that axe-core finds.

`make browser` brings Chromium and what is in package.json. REPORTS names work directories to open
beside those that are made here (with a colon between them), and SCREENSHOTS a folder for pictures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from poolformer_dense.report.page import write_report
from tests.poolformer_dense.report.report_runs import (
    train_record,
    val_record,
    write_detections,
    write_label_maps,
    write_session,
)

HERE = Path(__file__).parent
ALL = {
    'summary', 'losses', 'accuracy', 'classes', 'precision-recall', 'confusion', 'speed', 'gallery',
    'files', 'configuration', 'environment',
}  # fmt: skip
COMPARED = ALL - {'precision-recall', 'confusion', 'gallery', 'files'}


@pytest.fixture(scope='session')
def chromium() -> str:
    """The path of Chromium."""
    names = ('chromium', 'chromium-browser', 'google-chrome')
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip('there is no chromium on the PATH: make browser installs it')
    if shutil.which('node') is None or not (HERE / 'node_modules').is_dir():
        pytest.skip('node or tests/browser/node_modules is missing: make browser installs them')
    return path


def _opened(chromium: str, page: Path, pictures: Path) -> list[dict[str, Any]]:
    shots = os.environ.get('SCREENSHOTS')
    if shots:
        pictures = Path(shots, page.parent.name)
        pictures.mkdir(parents=True, exist_ok=True)
    command = ['node', str(HERE / 'open.mjs'), chromium, str(page), str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _check(visits: list[dict[str, Any]], sections: set[str]) -> None:
    windows = [(visit['window'], visit['colorScheme']) for visit in visits]
    assert windows == [(w, s) for w in ('desktop', 'phone') for s in ('light', 'dark')]
    for visit in visits:
        assert visit['messages'] == []
        assert visit['requests'] == []
        assert visit['violations'] == []
        assert visit['broken'] == []
        assert set(visit['sections']) == sections
        assert visit['overflow'] <= 0  # nothing is wider than the window
        # The keyboard comes to the skip link, then to the sections, and shows where it is.
        assert [stop['href'] for stop in visit['stops'][:3]] == ['#summary', '#summary', '#losses']
        assert all(stop['outline'] == 'solid' for stop in visit['stops'])
    assert visits[0]['paper'] != visits[1]['paper']


def _records(count: int = 30) -> list[dict[str, Any]]:
    steps = [train_record(s, loss_cls=0.5, loss_bbox=0.5 / s) for s in range(1, count + 1)]
    return [*steps, val_record(1, 0.1), val_record(2, 0.3)]


@pytest.fixture
def page(request, tmp_path) -> Path:
    """The page of a training: what it is of is the parameter."""
    write_session(tmp_path, _records())
    if request.param == 'detection':
        write_detections(tmp_path, ['<b>bold</b>', '中文', 'c', 'd'], segm=True)
    elif request.param == 'many classes':
        write_detections(tmp_path, [f'class {i}' for i in range(80)], images=40)
    elif request.param == 'segmentation':
        write_label_maps(tmp_path, [f'class {i}' for i in range(30)])
    (tmp_path / 'epoch_2.pth').write_bytes(b'')
    return write_report([tmp_path])


@pytest.mark.slow
@pytest.mark.parametrize(
    'page', ['detection', 'many classes', 'segmentation', 'no validation'], indirect=True
)
def test_a_report_opens(page, chromium, tmp_path):
    _check(_opened(chromium, page, tmp_path), ALL)


@pytest.mark.slow
def test_a_comparison_opens(chromium, tmp_path):
    folders = [tmp_path / name for name in 'abc']
    for number, folder in enumerate(folders):
        write_session(folder, _records(10 * number + 5), config=f'optim_wrapper = {number}\n')
    page = write_report(folders, tmp_path / 'comparison.html')
    _check(_opened(chromium, page, tmp_path), COMPARED)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet', 'fpn'])
def test_the_report_of_a_demo_opens(name, chromium, run, root, shapes, tmp_path):
    data = f'{shapes}/{"ade" if name == "fpn" else "coco"}'
    length = ['train_cfg.max_iters=4', 'train_cfg.val_interval=2']
    if name == 'retinanet':
        length = [
            'train_cfg.max_epochs=2',
            'train_cfg.val_interval=1',
            'model.test_cfg.score_thr=0',
        ]
    done = run(
        'train.py', root / f'configs/demo/{name}_poolformer_s12.py', '--work-dir', tmp_path,
        '--cfg-options', f'data_root={data}', 'default_hooks.logger.interval=1', *length,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'report.html').read_text()
    assert page.count('<img ') == 2 * 3  # four validation images: one of each kind
    assert 'was not kept' not in page
    _check(_opened(chromium, tmp_path / 'report.html', tmp_path), ALL)


@pytest.mark.slow
def test_named_reports_open(chromium, tmp_path):
    folders = list(filter(None, os.environ.get('REPORTS', '').split(':')))
    if not folders:
        pytest.skip('REPORTS names no work directory')
    for folder in folders:
        _check(_opened(chromium, write_report([Path(folder)]), tmp_path), ALL)


@pytest.mark.slow
def test_a_faulty_page_is_found_out(chromium, tmp_path):
    """What the other tests rely on: each kind of fault shows."""
    page = tmp_path / 'page.html'
    page.write_text(
        '<html><head><title>x</title></head><body style="width: 3000px"><main>'
        '<img src="http://localhost:9/x.png"><p style="color: #ddd; background: #fff">pale</p>'
        '<script>console.error("oh"); undefined_function()</script></main></body></html>'
    )
    for visit in _opened(chromium, page, tmp_path):
        assert {'color-contrast', 'html-has-lang', 'image-alt'} <= {
            violation['id'] for violation in visit['violations']
        }
        assert any('oh' in message for message in visit['messages'])
        assert any('undefined_function' in message for message in visit['messages'])
        assert visit['requests'] == ['http://localhost:9/x.png']
        assert visit['overflow'] > 0
        assert visit['broken']
