"""The whole collection of hostile files, from three seeds."""

from __future__ import annotations

import pytest

from tests.backbones import hostile
from tests.backbones.test_hostile_files import check, read_all


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_hostile_files(root, tmp_path, tally, seed):
    hostile.make(tmp_path, 300, seed)
    rows = read_all(root, tmp_path)
    assert len(rows) == 300
    check(rows)
    memory = max(row['memory'] for row in rows) >> 20
    tally(f'{len(rows)} hostile files refused, 0 executions, at most {memory} MB')
