"""The checks of tools/setup.sh that need no network: each stops before anything is installed."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_setup(*args, **env):
    variables = ('STACK', 'TORCH', 'MMCV_LINKS', 'FORCE_CUDA', 'VENV', 'PYTHON')
    clean = {name: value for name, value in os.environ.items() if name not in variables}
    return subprocess.run(
        ['bash', ROOT / 'tools/setup.sh', *args],
        env={**clean, **{name: str(value) for name, value in env.items()}},
        capture_output=True,
        text=True,
        timeout=60,
    )


def fails_with_one_line(result):
    assert result.returncode == 1
    assert result.stdout == ''
    (line,) = result.stderr.splitlines()
    return line


def make_executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def pretend_installed(venv, *distributions):
    for name in distributions:
        info = venv / 'lib/python3.11/site-packages' / f'{name}.dist-info'
        info.mkdir(parents=True)
        (info / 'RECORD').touch()


def test_unknown_stack(tmp_path):
    line = fails_with_one_line(run_setup(STACK='mmlab', VENV=tmp_path / 'venv'))
    assert "'mmlab'" in line
    assert 'STACK=openmmlab' in line
    assert not (tmp_path / 'venv').exists()


@pytest.mark.parametrize(
    ('present', 'stack'),
    [('mmengine-0.10.7', 'onedl'), ('mmcv-2.1.0', 'onedl'), ('onedl_mmcv-2.3.6', 'openmmlab')],
)
def test_venv_of_the_other_stack(tmp_path, present, stack):
    venv = tmp_path / 'venv'
    pretend_installed(venv, present)
    line = fails_with_one_line(run_setup(STACK=stack, VENV=venv))
    assert str(venv) in line
    assert f'VENV=.venv-{stack}' in line


def test_python_too_old(tmp_path):
    shim = make_executable(
        tmp_path / 'python3.8', '#!/bin/sh\n[ "$1" = -V ] && echo Python 3.8.18 || exit 1\n'
    )
    line = fails_with_one_line(run_setup(PYTHON=shim, VENV=tmp_path / 'venv'))
    assert 'Python 3.8.18' in line
    assert 'PYTHON=' in line
    assert not (tmp_path / 'venv').exists()


def test_python_not_found(tmp_path):
    line = fails_with_one_line(run_setup(PYTHON='python3.99', VENV=tmp_path / 'venv'))
    assert 'python3.99 not found' in line


def test_missing_system_packages_are_named_at_once(tmp_path):
    # a Python of the right version whose every other check fails
    shim = make_executable(
        tmp_path / 'python3', '#!/bin/sh\ncase "$2" in *version_info*) exit 0;; *) exit 1;; esac\n'
    )
    line = fails_with_one_line(
        run_setup(PYTHON=shim, CXX='no-such-compiler', VENV=tmp_path / 'venv')
    )
    packages = 'python3-venv build-essential python3-dev libgl1 libglib2.0-0'
    assert line.endswith(f'sudo apt-get install -y {packages}')


def stamp_for(venv, stack):
    """Lets the script itself name its stamp: `bash -x` shows the assignment."""
    trace = subprocess.run(
        ['bash', '-x', ROOT / 'tools/setup.sh'],
        env={**os.environ, 'VENV': str(venv), 'STACK': stack, 'PYTHON': 'python3.99'},
        capture_output=True,
        text=True,
    ).stderr
    (line,) = (line for line in trace.splitlines() if line.startswith('+ stamp='))
    return Path(line.split('=', 1)[1])


@pytest.mark.parametrize('stack', ['onedl', 'openmmlab'])
def test_a_stamped_venv_is_left_alone(tmp_path, stack):
    venv = tmp_path / 'venv'
    make_executable(venv / 'bin/python', '#!/bin/sh\nexit 1\n')
    pretend_installed(venv, 'mmcv-2.1.0' if stack == 'openmmlab' else 'onedl_mmcv-2.3.6')
    stamp_for(venv, stack).touch()
    result = run_setup(VENV=venv)  # the stack is the one the venv has
    assert result.returncode == 0, result.stderr
    assert f'is ready (stack {stack})' in result.stdout
    assert run_setup('--quiet', VENV=venv).stdout == ''


def test_an_outdated_stamp_does_not_count(tmp_path):
    venv = tmp_path / 'venv'
    make_executable(venv / 'bin/python', '#!/bin/sh\nexit 1\n')
    (venv / '.setup-onedl-000000000000').touch()
    line = fails_with_one_line(run_setup(VENV=venv, PYTHON='python3.99'))
    assert 'python3.99 not found' in line


def test_scripts_are_valid_bash():
    for script in (ROOT / 'tools').glob('*.sh'):
        subprocess.run(['bash', '-n', script], check=True)
