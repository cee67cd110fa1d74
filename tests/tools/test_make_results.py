"""The tool that makes docs/results.md, in a copy of the project."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from poolformer_dense.measure.results_page import METAFILE, PAGE, load_metafile, write_metafile


@pytest.fixture
def copy(root, tmp_path):
    """The project with one model in its metafile, and without the page."""
    for part in ('backbones', 'poolformer_dense', 'configs', 'tools'):
        ignored = shutil.ignore_patterns('__pycache__')
        shutil.copytree(root / part, tmp_path / part, ignore=ignored)
    (tmp_path / 'docs').mkdir()
    metafile = load_metafile(tmp_path)
    del metafile['Models'][1:], metafile['Collections'][1:]
    write_metafile(tmp_path, metafile)
    return tmp_path


def _make_results(folder, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, folder / 'tools/make_results.py', *arguments]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=300)


def test_the_page_is_written_without_measuring(copy):
    before = (copy / METAFILE).read_text()
    done = _make_results(copy)
    assert done.returncode == 0, done.stderr
    assert 'docs/results.md: 1 models' in done.stdout
    assert '| PoolFormer-S12 | 21.65 | 197.9 |' in (copy / PAGE).read_text()
    assert (copy / METAFILE).read_text() == before


def test_measuring_fills_in_what_is_missing(copy):
    metafile = load_metafile(copy)
    complete = (copy / METAFILE).read_text()
    metadata = metafile['Models'][0]['Metadata']
    del metadata['Parameters'], metadata['FLOPs']
    write_metafile(copy, metafile)

    done = _make_results(copy)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith('error: configs/metafile.yml: retinanet_')
    assert not (copy / PAGE).exists()

    done = _make_results(copy, '--measure')
    assert done.returncode == 0, done.stderr
    assert (copy / METAFILE).read_text() == complete
    assert '| 197.9 |' in (copy / PAGE).read_text()
