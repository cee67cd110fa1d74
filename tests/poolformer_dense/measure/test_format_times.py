"""Formats are timed on the same image, in turns."""

from __future__ import annotations

import pytest

from poolformer_dense.errors import UserError
from poolformer_dense.measure.benchmark import format_times
from poolformer_dense.measure.benchmark.format_times import (
    FormatRow,
    compare_formats,
    format_table,
)
from tests.tiny_models import tiny_predictor


def test_formats_run_in_turns(root, tmp_path, monkeypatch):
    path = tmp_path / 'weights.pth'
    cfg = tiny_predictor(root, 'fpn', path).cfg
    monkeypatch.setattr(format_times, '_memory', lambda name, file, folder: float(len(name)))
    names = ['reference', 'torch', 'onnx']
    rows = compare_formats(cfg, str(path), names, tmp_path / 'files', 2)
    assert [(row.name, row.memory) for row in rows] == [(name, len(name)) for name in names]
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    assert [row.file for row in rows] == [str(path)] * 2 + [str(tmp_path / 'files/onnx.onnx')]
    assert all(row.megabytes > 0 for row in rows)


def test_memory_is_that_of_a_process_that_predicts(root, tmp_path):
    path = tmp_path / 'weights.pth'
    cfg = tiny_predictor(root, 'fpn', path).cfg
    held = b'x' * 1_500_000_000  # of this process, not of that
    [row] = compare_formats(cfg, str(path), ['reference'], tmp_path / 'files', 1)
    assert 100 < row.memory < len(held) / 1024**2
    assert [*(tmp_path / 'files/predicted').rglob('*.png')]


def test_a_process_that_fails_is_told(tmp_path):
    (tmp_path / 'config.py').write_text("model = dict(type='None')\n")
    with pytest.raises(UserError, match=r'torch: the process for its memory ended: .*error: '):
        format_times._memory('torch', 'nothing.pth', tmp_path)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UserError, match='--formats tensorrt: it is none of reference, torch'):
        compare_formats(None, '', ['torch', 'tensorrt'], tmp_path)


def test_the_first_row_is_compared_with():
    rows = [
        FormatRow('torch', 'a.pth', (0.3, 0.2, 0.1), 900, 45),
        FormatRow('onnx', 'a.onnx', (0.1, 0.1, 0.1), 700, 50),
    ]
    cells = [list(column.cells) for column in format_table(rows).columns]
    assert cells[1:3] == [['200.0', '100.0'], ['100.0-300.0', '100.0-100.0']]
    assert cells[4:] == [['1.00', '2.00'], ['900', '700'], ['45.0', '50.0']]
