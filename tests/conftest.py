"""Fixtures shared by all tests."""

from __future__ import annotations

import functools
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import mmengine
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # Triton reads it when it is imported
# The same examples in each run, however slow the machine is.
hypothesis.settings.register_profile('any machine', deadline=None, derandomize=True)
hypothesis.settings.load_profile('any machine')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='module', autouse=True)
def _look_for_garbage_among_the_new() -> None:
    """mmengine collects garbage for each data set: not all over what has been imported."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture(scope='session')
def tiny_coco() -> Path:
    """A subset of COCO in its own layout; its place is told by the variable TINY_COCO."""
    folder = os.environ.get('TINY_COCO')
    if not folder:
        pytest.skip('TINY_COCO is not set to the folder of a COCO subset')
    return Path(folder)


class ToolServer:
    """`tests.tool_server`, started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def run(self, words: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'tests.tool_server'], cwd=ROOT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        out, err = (Path(tempfile.mkstemp(dir=self.folder)[1]) for _ in range(2))
        job = dict(words=words, cwd=str(cwd), env=env, out=str(out), err=str(err))
        print(json.dumps(job), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


@pytest.fixture(scope='session')
def run_fresh(root: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a tool as a user would: another process, from another folder."""

    def run_tool(
        tool: str | Path, *arguments: object, cwd: Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        path = root / 'tools' / tool
        command = [sys.executable] if path.suffix == '.py' else []
        command += [str(path), *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=_environment(env), capture_output=True, text=True, timeout=600
        )

    return run_tool


@pytest.fixture(scope='session')
def run(
    root: Path,
    run_fresh: Callable[..., subprocess.CompletedProcess],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """As `run_fresh`, but Python tools are forked from a process that has imported the stack.

    The import takes ten times as long as most of what is tested. With a GPU all are fresh, because
    CUDA does not survive a fork.
    """
    server = ToolServer(tmp_path_factory.mktemp('printed'))

    def run_tool(
        tool: str | Path, *arguments: object, cwd: Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        path = root / 'tools' / tool
        if path.suffix != '.py' or torch.cuda.is_available():
            return run_fresh(tool, *arguments, cwd=cwd, env=env)
        return server.run([str(path), *map(str, arguments)], cwd, _environment(env))

    yield run_tool
    if server.process is not None:
        # The input ends only when every process that was forked since the start has closed it.
        print(file=server.process.stdin, flush=True)
        server.process.wait()


def _environment(added: dict[str, str] | None) -> dict[str, str]:
    venv = str(Path(sys.executable).parent)
    return os.environ | {
        'PATH': f'{venv}{os.pathsep}{os.environ["PATH"]}',
        'VIRTUAL_ENV': str(Path(venv).parent),
        **(added or {}),
    }
