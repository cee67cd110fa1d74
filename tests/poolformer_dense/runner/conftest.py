"""Fixtures of the tests of `poolformer_dense.runner`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.poolformer_dense.runner import tiny


@pytest.fixture(scope='session')
def warmed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make this process ready to be forked: imports and first steps are done, one thread."""
    torch.set_num_threads(1)
    tiny.warm(tmp_path_factory.mktemp('warm'))


@pytest.fixture
def runs(warmed: None, tmp_path: Path) -> Path:
    """A folder for runs, in a process that is ready to be forked."""
    return tmp_path


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exit codes be those outside of Slurm, wherever the tests run."""
    monkeypatch.delenv('SLURM_JOB_ID', raising=False)
