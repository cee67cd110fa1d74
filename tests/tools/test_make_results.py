"""The tool that makes docs/results.md, for a project of one model."""

from __future__ import annotations

import runpy
import shutil
import sys

import pytest

from poolformer_dense.measure.results_page import METAFILE, PAGE, load_metafile, write_metafile


@pytest.fixture
def copy(root, tmp_path):
    """The tool and the configs, with one model in the metafile, and without the page."""
    for part in ('configs', 'tools'):
        shutil.copytree(root / part, tmp_path / part, ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / 'docs').mkdir()
    metafile = load_metafile(tmp_path)
    del metafile['Models'][1:], metafile['Collections'][1:]
    write_metafile(tmp_path, metafile)
    return tmp_path


@pytest.fixture
def make_results(copy, monkeypatch):
    """Run the tool of the copy; returns its exit code."""
    monkeypatch.setattr(sys, 'path', [*sys.path])

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, 'argv', ['make_results.py', *arguments])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(copy / 'tools/make_results.py'), run_name='__main__')
        return exit.value.code

    return run


def test_the_page_is_written_without_measuring(copy, make_results, capsys):
    before = (copy / METAFILE).read_text()
    assert make_results() == 0
    assert 'docs/results.md: 1 models' in capsys.readouterr().out
    assert '| PoolFormer-S12 | 21.65 | 197.9 |' in (copy / PAGE).read_text()
    assert (copy / METAFILE).read_text() == before


def test_measuring_fills_in_what_is_missing(copy, make_results, capsys):
    metafile = load_metafile(copy)
    complete = (copy / METAFILE).read_text()
    metadata = metafile['Models'][0]['Metadata']
    del metadata['Parameters'], metadata['FLOPs']
    write_metafile(copy, metafile)

    assert make_results() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: configs/metafile.yml: retinanet_')
    assert not (copy / PAGE).exists()

    assert make_results('--measure') == 0
    assert (copy / METAFILE).read_text() == complete
    assert '| 197.9 |' in (copy / PAGE).read_text()
