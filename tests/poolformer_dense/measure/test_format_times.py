"""Formats are timed on the same image, in turns."""

from __future__ import annotations

import pytest

from poolformer_dense.errors import UserError
from poolformer_dense.measure.format_times import FormatRow, compare_formats, format_table
from tests.tiny_models import tiny_predictor


def test_formats_run_in_turns(root, tmp_path):
    path = tmp_path / 'weights.pth'
    cfg = tiny_predictor(root, 'fpn', path).cfg
    rows = compare_formats(cfg, str(path), ['reference', 'torch', 'onnx'], tmp_path / 'files', 2)
    assert [row.name for row in rows] == ['reference', 'torch', 'onnx']
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    assert (rows[0].megabytes, rows[2].megabytes > 0) == (0.0, True)
    assert (tmp_path / 'files/onnx.onnx').is_file()


def test_an_unknown_format_is_refused(root, tmp_path):
    with pytest.raises(UserError, match='--formats tensorrt: it is none of reference, torch'):
        compare_formats(None, '', ['torch', 'tensorrt'], tmp_path)


def test_the_first_row_is_compared_with():
    rows = [FormatRow('torch', (0.3, 0.2, 0.1), 0), FormatRow('onnx', (0.1, 0.1, 0.1), 5)]
    columns = [list(column.cells) for column in format_table(rows).columns]
    assert columns[1] == ['200.0', '100.0']
    assert columns[3] == ['1.00', '2.00']
