"""Pages that tell how to do something are followed to the letter, in a copy of the project."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r'(?:[^\\\n]|\\\n)+')


@pytest.fixture(scope='session')
def code_blocks(root: Path) -> Callable[[str], list[tuple[str, str]]]:
    """The code blocks of a page of docs/: language and text."""

    def read(page: str) -> list[tuple[str, str]]:
        return _BLOCK.findall((root / 'docs' / page).read_text())

    return read


@pytest.fixture(scope='session')
def copy_project(root: Path) -> Callable[[Path, list[tuple[str, str]]], Path]:
    """Copy the project and write the Python files of code blocks, whose first lines name them."""

    def copy(folder: Path, blocks: list[tuple[str, str]]) -> Path:
        for part in ('backbones', 'poolformer_dense', 'configs', 'tools'):
            shutil.copytree(
                root / part, folder / part, ignore=shutil.ignore_patterns('__pycache__')
            )
        for text in (text for language, text in blocks if language == 'python'):
            name = re.match(r'# (\S+\.py)\n', text)[1]
            assert not (folder / name).exists()
            (folder / name).write_text(text)
        return folder

    return copy


@pytest.fixture(scope='session')
def follow(
    run: Callable[..., subprocess.CompletedProcess],
) -> Callable[..., list[subprocess.CompletedProcess]]:
    """Run the commands of a code block, one after the other, until one fails."""

    def follow_block(
        block: str, folder: Path, env: dict[str, str] | None = None
    ) -> list[subprocess.CompletedProcess]:
        environment = {'PYTHONPATH': str(folder)} | (env or {})
        done = []
        for command in _COMMAND.findall(block):
            python, tool, *arguments = shlex.split(command.replace('\\\n', ' '))
            assert python == 'python'
            if tool == '-m':
                words = [sys.executable, tool, *arguments]
                done.append(subprocess.run(words, cwd=folder, capture_output=True, text=True))
            else:
                done.append(run(folder / tool, *arguments, cwd=folder, env=environment))
            if done[-1].returncode:
                break
        return done

    return follow_block
