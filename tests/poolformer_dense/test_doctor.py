import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from poolformer_dense import doctor

ROOT = Path(__file__).resolve().parents[2]
ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
}


def problems(rows):
    return [row for row in rows if row.status == 'PROBLEM']


def test_this_environment_is_well():
    rows = doctor.diagnose()
    assert problems(rows) == [], doctor.format_findings(rows)
    assert {'torch', 'numpy', 'import mmcv._ext', 'torch CUDA'} <= {row.name for row in rows}


def test_command_prints_the_table_and_succeeds():
    command = [sys.executable, ROOT / 'tools/doctor.py']
    result = subprocess.run(command, capture_output=True, text=True, cwd='/')
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.rstrip().endswith('all is well')


@pytest.mark.parametrize('carried', [['pip'], []], ids=['pip alone', 'nothing'])
def test_empty_environment_still_gets_a_report(tmp_path, carried):
    for name in carried:
        # Not imported here: it would keep this process from importing setuptools later.
        (tmp_path / name).symlink_to(Path(sysconfig.get_path('purelib'), name))
    result = subprocess.run(
        [sys.executable, '-S', ROOT / 'tools/doctor.py'],  # -S: without site-packages
        env={**os.environ, 'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    report = result.stdout or result.stderr
    assert result.returncode == 1
    assert 'Traceback' not in report
    assert 'make setup' in report
    assert ('import torch' in report) == bool(carried)


@pytest.mark.parametrize(
    ('version', 'status'),
    [((3, 9, 18), 'PROBLEM'), ((3, 10, 0), 'ok'), ((3, 13, 2), 'ok'), ((3, 14, 0), 'PROBLEM')],
)
def test_python_range(version, status):
    assert doctor.check_python(version).status == status


@pytest.mark.parametrize(
    ('requirement', 'version', 'status'),
    [
        ('torch>=2.4,<2.14', '2.13.0+cpu', 'ok'),
        ('torch>=2.4,<2.14', '2.14.0', 'PROBLEM'),
        ('torch>=2.4,<2.14', '2.3.1', 'PROBLEM'),
        ('onedl-mmcv==2.3.6', '2.3.6+cu129', 'ok'),
        ('mmcv==2.1.0', '2.2.0', 'PROBLEM'),
        ('regex', '2026.1.1', 'ok'),
    ],
)
def test_versions_are_held_against_the_tested_range(requirement, version, status):
    requirement = Requirement(requirement)
    row = doctor.check_version(requirement, {requirement.name: version})
    assert row.status == status
    assert bool(row.remedy) == (status == 'PROBLEM')
    assert row.found.startswith(version)


def test_missing_distribution():
    requirement = Requirement('numpy>=1.26,<2.3')
    row = doctor.check_version(requirement, {})
    assert (row.found, row.status) == ('missing', 'PROBLEM')
    assert 'numpy' in row.remedy
    assert doctor.check_version(requirement, {}, needed=False).status == 'note'


def test_torch_is_never_replaced_in_place():
    row = doctor.check_version(Requirement('torch<2.14'), {'torch': '2.15.0'})
    assert 'pip install' not in row.remedy
    assert 'VENV=' in row.remedy


def test_stack_is_recognised():
    assert doctor.find_stack(ONEDL)[0] == 'onedl'
    assert doctor.find_stack({'mmengine': '0.10.7', 'mmcv': '2.1.0'})[0] == 'openmmlab'
    assert doctor.find_stack({})[1].status == 'PROBLEM'


def test_mixed_stacks_are_a_problem():
    row = doctor.find_stack({**ONEDL, 'mmengine': '0.10.7'})[1]
    assert row.status == 'PROBLEM'
    assert 'uninstall mmengine' in row.remedy


@pytest.mark.parametrize(
    ('dists', 'named'),
    [
        ({'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'}, 'mmcv'),
        ({'mmcv': '2.1.0', 'mmcv-lite': '2.1.0'}, 'mmcv-lite'),
        ({'mmcv-full': '1.7.2', 'mmcv': '2.1.0'}, 'mmcv-full'),
        ({'mmengine': '0.10.7', 'onedl-mmengine': '0.10.12'}, 'onedl-mmengine'),
        ({'opencv-python': '4.12', 'opencv-python-headless': '4.11'}, 'opencv-python-headless'),
    ],
)
def test_doubled_distributions(dists, named):
    (row,) = doctor.check_doubles({**dists, 'numpy': '2.2.6'})
    assert row.status == 'PROBLEM'
    assert named in row.found
    assert f'uninstall {" ".join(sorted(dists))}' in row.remedy


def test_two_opencvs_of_one_version_are_fine():
    assert doctor.check_doubles({'opencv-python': '4.12', 'opencv-python-headless': '4.12'}) == []
    assert doctor.check_doubles(ONEDL) == []


@pytest.mark.parametrize(
    ('module', 'error', 'remedy'),
    [
        ('mmcv._ext', ModuleNotFoundError("No module named 'mmcv._ext'"), 'make setup'),
        ('mmcv._ext', ImportError('undefined symbol: _ZN3c105ErrorC2E'), 'make setup'),
        ('cv2', ImportError('libGL.so.1: cannot open shared object file'), 'libgl1'),
        ('cv2', ImportError('libgthread-2.0.so.0: cannot open shared object'), 'libglib2.0-0'),
        ('torchvision', RuntimeError('operator torchvision::nms does not exist'), 'uninstall'),
    ],
)
def test_failing_imports_have_a_remedy(module, error, remedy):
    def load(name):
        raise error

    row = doctor.check_import(module, load)
    assert row.status == 'PROBLEM'
    assert str(error) in row.found
    assert remedy in row.remedy


@pytest.mark.parametrize(
    ('torch_cuda', 'available', 'gpus', 'mmcv_cuda', 'statuses'),
    [
        (None, False, [], None, {'torch CUDA': 'ok'}),
        (None, False, ['H200, 580.1'], None, {'torch CUDA': 'note'}),
        ('13.0', True, ['H200, 580.1'], '13.0', {'torch CUDA': 'ok', 'mmcv CUDA': 'ok'}),
        ('12.9', True, ['H200, 580.1'], '12.8', {'torch CUDA': 'ok', 'mmcv CUDA': 'ok'}),
        ('13.0', False, ['V100, 470.1'], '13.0', {'torch CUDA': 'PROBLEM', 'mmcv CUDA': 'ok'}),
        ('13.0', False, [], '13.0', {'torch CUDA': 'note', 'mmcv CUDA': 'ok'}),
        ('13.0', True, ['H200, 580.1'], '12.9', {'torch CUDA': 'ok', 'mmcv CUDA': 'PROBLEM'}),
        ('13.0', True, ['H200, 580.1'], None, {'torch CUDA': 'ok', 'mmcv CUDA': 'PROBLEM'}),
    ],
)
def test_cuda_agreement(torch_cuda, available, gpus, mmcv_cuda, statuses):
    rows = doctor.check_cuda(torch_cuda, available, gpus, mmcv_cuda)
    assert {row.name: row.status for row in rows} == {'GPUs': 'ok', **statuses}
    assert all(row.remedy for row in problems(rows))


def test_requirement_files_are_read(tmp_path):
    path = tmp_path / 'some.txt'
    path.write_text('# comment\n--extra-index-url https://host/x\n-c other.txt\n\nnumpy>=2 # why\n')
    assert [str(requirement) for requirement in doctor.read_requirements(path)] == ['numpy>=2']


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'requirements').glob('*.txt')), ids=lambda p: p.stem
)
def test_shipped_requirement_files_parse(path):
    assert doctor.read_requirements(path)


def test_a_wheel_says_itself_what_it_needs(monkeypatch):
    declared = [
        'torch<2.14,>=2.4',
        'onedl-mmcv==2.3.6; extra == "onedl"',
        'pytest; extra == "tests"',
    ]
    monkeypatch.setattr(doctor, 'IN_CLONE', False)
    monkeypatch.setattr(doctor.importlib.metadata, 'requires', lambda name: declared)
    parts = ('runtime', 'stack-onedl', 'optional', 'tests')
    needs = [[each.name for each in doctor.read_needs(part)] for part in parts]
    assert needs == [['torch'], ['onedl-mmcv'], [], []]


def test_table_puts_problems_last_and_counts_them():
    rows = [
        doctor.Diagnosis('torch', 'missing', 'PROBLEM', 'make setup'),
        doctor.Diagnosis('gpu', 'x'),
    ]
    lines = doctor.format_findings(rows).splitlines()
    assert lines[0].startswith('ok')
    assert lines[1].startswith('PROBLEM')
    assert lines[2].endswith('-> make setup')
    assert lines[3] == 'problems: 1'
