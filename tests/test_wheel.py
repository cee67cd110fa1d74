"""The wheel: built, installed outside the clone, and used from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('backbones', 'poolformer_dense', 'configs', 'requirements', 'setup.py', 'setup.cfg',
           'pyproject.toml', 'README.md', 'LICENSE')  # fmt: skip


def _run(*command, cwd, **options):
    # Without this clone on the path, as anywhere else.
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, **options
    )


def _pip(python, *words, cwd):
    quiet = ('--quiet', '--disable-pip-version-check')
    done = _run(python, '-m', 'pip', *words, *quiet, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    """Built from a copy of what goes into it: setuptools leaves files in its folder."""
    folder = tmp_path_factory.mktemp('wheel')
    ignore = shutil.ignore_patterns('__pycache__', '*.so')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / 'source' / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / 'source' / name)
    without = ('--no-deps', '--no-build-isolation', '--wheel-dir', folder)
    _pip(sys.executable, 'wheel', *without, folder / 'source', cwd=folder)
    [path] = folder.glob('*.whl')
    return path


@pytest.fixture(scope='session')
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's packages alone."""
    target = tmp_path_factory.mktemp('installed')
    _pip(sys.executable, 'install', '--no-deps', '--no-compile', '--target', target, wheel,
         cwd=target)  # fmt: skip
    return target


def test_it_holds_everything_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if '.dist-info/' not in name}
    expected = {'poolformer_dense/configs/metafile.yml'}
    for folder, place in (('backbones', ''), ('poolformer_dense', ''),
                          ('configs', 'poolformer_dense/')):  # fmt: skip
        for path in (ROOT / folder).rglob('*'):
            if path.suffix in ('.py', '.cpp', '.typed', '.css', '.j2'):
                expected.add(place + path.relative_to(ROOT).as_posix())
    assert names == expected


def test_its_metadata_read_the_requirement_files(wheel):
    # setuptools knows no pip options in them
    [found] = distributions(path=[str(wheel)])
    needs = [Requirement(line) for line in found.requires]
    always = {need.name: need for need in needs if need.marker is None}
    assert {'torch', 'numpy', 'onedl-mmengine'} <= set(always)
    stack = {need.name: need for need in needs if need.marker and 'onedl' in str(need.marker)}
    assert str(stack['onedl-mmcv'].specifier) == '==2.3.6'
    assert stack['onedl-mmengine'].specifier == always['onedl-mmengine'].specifier
    extras = set(found.metadata.get_all('Provides-Extra'))
    assert {'onedl', 'tests', 'optional', 'export'} <= extras
    assert 'openmmlab' not in extras  # it would bring a second mmengine


def test_its_command_knows_the_shipped_configs(installed, tmp_path):
    code = (
        f'import sys; sys.path.insert(0, {str(installed)!r}); import poolformer_dense as p;'
        'print(p.__file__); print(p.config_path("beyond/upernet_poolformer_s12"));'
        'print(*p.config_names())'
    )
    file, path, names = _run(sys.executable, '-c', code, cwd=tmp_path).stdout.splitlines()
    assert file == str(installed / 'poolformer_dense/__init__.py')
    assert path == str(installed / 'poolformer_dense/configs/beyond/upernet_poolformer_s12.py')
    assert {'retinanet_poolformer_s12', 'demo/fpn_poolformer_s12'} <= set(names.split())
    code = (installed / 'bin/poolformer-dense').read_text().partition('\n')[2]
    command = f'import sys; sys.path.insert(0, {str(installed)!r});'
    done = _run(sys.executable, '-c', f'{command} sys.argv[1:] = ["--help"]\n{code}', cwd=tmp_path)
    assert 'usage: poolformer-dense COMMAND' in done.stdout, done.stderr


def test_a_config_of_a_project_inherits_a_shipped_one(run, installed, tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = __import__('poolformer_dense').config_path('retinanet_poolformer_s12')\n"
        'train_cfg = dict(max_epochs=3)\n'
    )
    (tmp_path / 'program.py').write_text(
        'from poolformer_dense.config import load\n'
        'cfg = load.load_config("mine.py")\n'
        'print(load.__file__, cfg.train_cfg.max_epochs, cfg.model.backbone.arch, cfg.work_dir)\n'
    )
    done = run(tmp_path / 'program.py', cwd=tmp_path, env={'PYTHONPATH': str(installed)})
    expected = f'{installed}/poolformer_dense/config/load.py 3 s12 work_dirs/mine'
    assert done.stdout.splitlines()[-1] == expected, done.stderr


def _mmcv_wheel():
    """The folder of the wheel that the set-up has compiled for this torch."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'poolformer-dense'
    build = f'{sys.implementation.cache_tag}-*-torch{torch.__version__}-*'
    found = list(cache.glob(f'onedl-mmcv-*-{build}/*.whl'))
    return found[0].parent if found else None


@pytest.mark.slow
@pytest.mark.skipif(_mmcv_wheel() is None, reason='the set-up has compiled no mmcv for this torch')
def test_a_fresh_environment_trains_tests_and_infers(wheel, tmp_path):
    """With the set-up's own mmcv and torch, from an empty folder, by the command alone."""
    environment, folder = tmp_path / 'environment', tmp_path / 'empty'
    folder.mkdir()
    assert _run(sys.executable, '-m', 'venv', environment, cwd=folder).returncode == 0
    constraint = tmp_path / 'torch.txt'
    constraint.write_text(f'torch=={version("torch")}\n')
    _pip(environment / 'bin/python', 'install', '--find-links', _mmcv_wheel(), '--constraint',
         constraint, f'poolformer-dense[onedl] @ {wheel.as_uri()}', cwd=folder)  # fmt: skip

    def command(*words):
        done = _run(environment / 'bin/poolformer-dense', *words, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    config = 'demo/retinanet_poolformer_s12'
    assert 'all is well' in command('doctor')
    command('make-shapes', 'data/shapes', '--train', 8, '--val', 2)
    printed = command('train', config, '--cfg-options', 'train_cfg.max_epochs=1')
    assert 'CPU operators are' in printed or 'No GPU' in printed or torch.cuda.is_available()
    checkpoint = folder / 'work_dirs' / config / 'epoch_1.pth'
    command('test', config, checkpoint)
    printed = command('infer', config, checkpoint, 'data/shapes/coco/val2017', '--out', 'found')
    assert '2 results in found' in printed
    assert (folder / 'found/results.json').is_file()
    alone = 'import sys, backbones; assert not {"mmcv", "mmdet", "mmseg"} & set(sys.modules)'
    done = _run(environment / 'bin/python', '-c', alone, cwd=folder)
    assert done.returncode == 0, done.stderr
