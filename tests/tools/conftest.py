"""Running a tool without the seconds that its imports take."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def call(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., subprocess.CompletedProcess]:
    """Run a tool as `run` does, in `tmp_path`, but in this process."""

    def call_tool(tool: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [tool, *map(str, arguments)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', command)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / 'tools' / tool), run_name='__main__')
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(command, end.value.code, printed.out, printed.err)

    return call_tool
