"""Fixtures shared by all tests."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mmengine
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # Triton reads it when it is imported
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def _read_metafiles_once() -> Iterator[None]:
    """For each base named by ``mmdet::`` mmengine reads all of mmdet's metafiles, which is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.utils.load', functools.cache(mmengine.load))
        yield


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope='session')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few drawn images: ``coco/`` and ``ade/``."""
    from poolformer_dense.measure.shapes import write_ade20k, write_coco

    folder = tmp_path_factory.mktemp('shapes')
    write_coco(folder / 'coco', num_train=8, num_val=4)
    write_ade20k(folder / 'ade', num_train=8, num_val=4)
    return folder


@pytest.fixture(scope='session')
def tiny_coco() -> Path:
    """A subset of COCO in its own layout; its place is told by the variable TINY_COCO."""
    folder = os.environ.get('TINY_COCO')
    if not folder:
        pytest.skip('TINY_COCO is not set to the folder of a COCO subset')
    return Path(folder)


@pytest.fixture(scope='session')
def run(root: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a tool as a user would: another process, from another folder."""

    def run_tool(
        tool: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        command = [str(root / 'tools' / tool), *map(str, arguments)]
        if tool.endswith('.py'):
            command.insert(0, sys.executable)
        venv = str(Path(sys.executable).parent)
        environment = os.environ | {
            'PATH': f'{venv}{os.pathsep}{os.environ["PATH"]}',
            'VIRTUAL_ENV': str(Path(venv).parent),
            **(env or {}),
        }
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
        )

    return run_tool
