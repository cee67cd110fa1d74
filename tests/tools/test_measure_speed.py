"""The table of whole models beside stock, from runs of their own."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys

import pytest


@pytest.fixture
def tool(root, monkeypatch):
    """What the tool defines."""
    monkeypatch.setattr(sys, 'path', [*sys.path])
    return runpy.run_path(str(root / 'tools/measure_speed.py'))


def test_a_cell_is_the_median_of_the_runs_and_their_range(tool):
    cells = [
        f'{name} {task} {dtype} {load}'
        for name in tool['MODELS']
        for task, dtype in tool['CELLS']
        for load in tool['LOADS']
    ]
    runs = [dict.fromkeys(cells, ratio) for ratio in (1.0, 1.3, 0.9)]
    runs[0]['RetinaNet-S12 train bfloat16 2'] = 4.0
    head, rule, *rows = tool['format_table'](runs).splitlines()
    assert head == '| times as fast as stock | RetinaNet-S12 | Semantic FPN-S12 |'
    assert {line.count('|') for line in (head, rule, *rows)} == {4}
    assert rows[0] == '| infer, float32 | 1.00 (0.90-1.30) | 1.00 (0.90-1.30) |'
    assert rows[-1] == (
        '| train, bfloat16, beside 2 busy processes | 1.30 (0.90-4.00) | 1.00 (0.90-1.30) |'
    )
    assert len(rows) == 8


@pytest.mark.slow
def test_a_run_has_a_ratio_for_each_cell(root, tool, tmp_path):
    file = tmp_path / 'ratios.json'
    words = ['--rounds', '1', '--size', '96', '64', '--once', str(file)]
    subprocess.run([sys.executable, root / 'tools/measure_speed.py', *words], check=True)
    ratios = json.loads(file.read_text())
    tool['format_table']([ratios])
    assert len(ratios) == 16
    assert min(ratios.values()) > 0
