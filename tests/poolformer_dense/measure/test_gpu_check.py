"""The check for GPUs in its dry mode, on a CPU, and what it concludes from figures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from poolformer_dense.errors import UserError
from poolformer_dense.measure.gpu_check import STAGES, Setting, StageResult, report

# These interpret kernels, compile or build detectors.
SLOW = ('kernels', 'bandwidth', 'backbone', 'compiles', 'detector')


def run_stage(name: str, folder: Path) -> dict:
    path = folder / f'{name}.json'
    result = StageResult(name, True, path)
    STAGES[name](Setting(dry=True), result)
    result.end()
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in STAGES]
)
def test_a_stage_runs_without_a_gpu(name: str, tmp_path: Path) -> None:
    if name in ('kernels', 'bandwidth'):
        pytest.importorskip('triton', reason='the Triton compiler is not installed')
    found = run_stage(name, tmp_path)
    assert found['stage'] == name
    assert found['dry']
    assert found['rows']
    assert not found['failed']


def test_the_script_runs_stages_and_reports(root: Path, tmp_path: Path) -> None:
    env = os.environ | {'DRY': '1', 'OUT': str(tmp_path), 'PYTHON': sys.executable}
    command = [root / 'tools' / 'gpu_check.sh', 'nccl']
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'gradients' in done.stdout
    assert 'dry run, whose times mean nothing' in (tmp_path / 'report.md').read_text()


def test_without_a_gpu_the_script_is_one_line(root: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    env = os.environ | {'OUT': str(tmp_path), 'PYTHON': sys.executable}
    command = [root / 'tools' / 'gpu_check.sh']
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = f'gpu_check: {sys.executable} has no torch that finds a GPU; DRY=1 runs without one\n'
    assert done.stderr == said


def test_it_needs_no_toolbox() -> None:
    """But for the stage detector: a machine with a GPU may have torch alone."""
    absent = ('mmcv', 'mmdet', 'mmseg', 'pycocotools', 'scipy', 'tensorboard')
    code = (
        f'import sys; sys.modules.update(dict.fromkeys({absent}))\n'
        'import poolformer_dense.measure.gpu_check'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_stages_of_the_tool_are_the_librarys(root: Path) -> None:
    text = (root / 'tools' / 'gpu_stage.py').read_text()
    namespace: dict = {}
    exec(text[text.index('STAGES = (') : text.index('def parse_args')], namespace)
    assert namespace['STAGES'] == tuple(STAGES)


def figures(folder: Path, ours: dict[int, float], **changes: object) -> None:
    """Results of a GPU, invented: ours over the best peer's time by the number of images."""
    rows = []
    for batch, time in ours.items():
        row = dict(task='train', dtype='bfloat16', shape=[batch, 3, 800, 1344])
        rows.append(row | dict(name='plain', ms=30.0))
        rows.append(row | dict(name='plain compiled', ms=20.0))
        rows.append(row | dict(name='ours', ms=20.0 * time))
    backbone = StageResult('backbone', False, folder / 'backbone.json', rows)
    backbone.end()
    ran = [dict(check=name, outcome='right') for name in ('tests', 'memcheck')]
    kernels = StageResult('kernels', False, folder / 'kernels.json', ran)
    kernels.end()
    vars(kernels).update(changes)
    kernels.write()


@pytest.mark.parametrize(
    ('ours', 'verdict'),
    [
        ({2: 0.8, 8: 0.7}, 'auto takes Triton from 2,150,400 pixels a batch'),
        ({2: 1.1, 8: 0.7}, 'auto takes Triton from 8,601,600 pixels a batch'),
        ({2: 0.8, 8: 0.95}, 'auto keeps plain torch'),
    ],
)
def test_a_default_needs_nine_tenths_of_the_best_peers_time(
    ours: dict[int, float], verdict: str, tmp_path: Path
) -> None:
    """Also of the compiled one, which is faster here than what is not compiled."""
    figures(tmp_path, ours)
    assert f'- train, bfloat16: {verdict}' in report(tmp_path)


def test_a_default_needs_kernels_that_are_right(tmp_path: Path) -> None:
    figures(tmp_path, {2: 0.5}, failed=['memcheck: an invalid read'])
    text = report(tmp_path)
    assert 'The default stays plain torch: kernels failed or did not end' in text
    assert 'kernels: failed memcheck: an invalid read' in text
    figures(tmp_path, {2: 0.5})
    (tmp_path / 'kernels.json').unlink()
    assert 'kernels and backbone must both have run' in report(tmp_path)
    figures(tmp_path, {2: 0.5}, rows=[dict(check='tests', outcome='right')])
    assert 'memcheck of kernels did not run' in report(tmp_path)


def test_a_killed_stage_keeps_its_rows_and_supports_no_default(tmp_path: Path) -> None:
    figures(tmp_path, {2: 0.5})
    killed = StageResult('amp', False, tmp_path / 'amp.json')
    killed.add(backend='triton', skipped=1)
    assert json.loads(killed.path.read_text())['rows'] == [dict(backend='triton', skipped=1)]
    assert 'The default stays plain torch: amp failed or did not end' in report(tmp_path)


@pytest.mark.parametrize(
    ('stage', 'what'),
    [
        ('bandwidth', 'the fused MLP at 16 channels'),
        ('backbone', 'bfloat16'),
        ('compiles', 'plain compiled from size 1 on'),
        ('amp', 'reference'),
        ('exact', 'reference'),
        ('detector', 'fpn reference'),
    ],
)
def test_what_there_is_no_time_for_is_named(stage: str, what: str, tmp_path: Path) -> None:
    result = StageResult(stage, True, tmp_path / f'{stage}.json')
    STAGES[stage](Setting(dry=True, until=0.0), result)
    assert not [row for row in result.rows if row.get('kernel') != 'copy']
    assert any('no time' in line and what in line for line in result.missing)


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'has no results: run tools/gpu_check\.sh first'):
        report(tmp_path)


@pytest.mark.parametrize('version', ['three', '3', '2.7'])
def test_the_pack_refuses_what_is_no_python(version: str, root: Path, tmp_path: Path) -> None:
    command = [root / 'tools' / 'gpu_pack.sh', tmp_path / 'wheels', version]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f'gpu_pack: {version} is no version of Python like 3.12\n'


@pytest.mark.slow
def test_the_pack_has_what_stands_in_the_list(root: Path, tmp_path: Path) -> None:
    """From an index of packages; without one there is nothing to test."""
    lines = 'source tools/gpu_packages.sh; printf "%s " ${needed[@]#*:} ${detectors[@]#*:}'
    listed = subprocess.check_output(['bash', '-c', lines], cwd=root, text=True).split()
    env = os.environ | {'PYTHON': sys.executable}
    command = [root / 'tools' / 'gpu_pack.sh', tmp_path / 'wheels', '3.12']
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if 'NewConnectionError' in done.stderr:
        pytest.skip(f'no index of packages: {done.stderr.splitlines()[-1]}')
    assert done.returncode == 0, done.stderr
    assert 'left out' not in done.stderr
    found = {path.name.split('-')[0].lower() for path in (tmp_path / 'wheels').iterdir()}
    names = {re.split('[<=>]', each)[0].replace('-', '_').lower() for each in listed}
    toolboxes = {'onedl_mmcv', 'onedl_mmdetection', 'onedl_mmsegmentation'}
    assert names | toolboxes <= found
