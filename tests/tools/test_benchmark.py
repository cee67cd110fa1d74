"""The benchmark as a user calls it."""

from __future__ import annotations

import json
import runpy
import sys

import pytest

ENV = {'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}


def test_prints_tables_and_writes_json_and_a_plot(run, tmp_path):
    arguments = '--task train --sizes 32 64 --batch 1 --rounds 1 --threads 1 --against timm'
    done = run(
        'benchmark.py',
        *arguments.split(),
        *('--json', 'times.json', '--plot', 'times.png'),
        cwd=tmp_path,
        env=ENV,
    )
    assert done.returncode == 0, done.stderr
    first, *lines = [' '.join(line.split()) for line in done.stdout.splitlines()]
    assert '1 threads, torch' in first
    for title in (
        'poolformer_s12 train, 1x3x32x32, float32',
        'poolformer_s12 train, 1x3x64x64, float32',
        'how many times as fast ours is (its memory over theirs)',
        'ns per pixel',
    ):
        assert title in lines
    result = json.loads((tmp_path / 'times.json').read_text())
    assert result['environment']['command'].startswith('benchmark.py --task train --sizes 32 64')
    assert [r['workload']['size'] for r in result['runs']] == [[32, 32], [64, 64]]
    names = {row['name'] for r in result['runs'] for row in r['rows']}
    assert {'ours', "ours, recompute='mlp'", 'matrix products'} <= names
    if 'timm' not in names:  # only .venv-peers has it
        (missing,) = result['missing']
        assert missing in lines[-1] + done.stdout
        assert 'make peers' in missing
    assert (tmp_path / 'times.png').stat().st_size > 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('poolformer_s13', 'error: unknown preset poolformer_s13; choose from'),
        ('--device cuda:99', 'error: --device cuda:99: there is none here; torch'),
        ('--size 16 64', "'16' is not a number from 32"),
        ('--rounds 0', "'0' is not a number from 1"),
        ('--against timm,keras', "'keras' is none of reference, mmpretrain, timm, hf, compile"),
        ('--json nowhere/times.json', 'the folder of nowhere/times.json does not exist'),
    ],
)
def test_says_what_is_wrong_in_one_line(root, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments.split()])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(root / 'tools/benchmark.py'), run_name='__main__')
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
