"""The compiled loops of `native.cpp`: to build them, to find them, to call them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name('native.cpp')
# By the name that torch gives to what a processor can do. Both are built, for an environment may
# be used by other machines than the one that made it.
LEVELS = {
    'AVX2': ['-mavx2', '-mfma'],
    'AVX512': [
        *('-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma'),
        '-mprefer-vector-width=512',
    ],
}
# Without errno and traps, loops with sqrt and comparisons become vectors; values are the same.
# OpenMP is not linked: torch has loaded one, and two would compete for the processors.
COMPILE = ['-O3', '-std=c++17', '-fPIC', '-fopenmp', '-fno-math-errno', '-fno-trapping-math', '-c']


def build(compiler: str | None = None) -> list[Path]:
    """Compile the loops for every level, where that is not done yet.

    Args:
        compiler: A C++ compiler; $CXX or g++ if not given.

    Returns:
        The libraries, beside the source. Those of older sources are removed.

    Raises:
        RuntimeError: The processor is of another kind, or there is no compiler, or it fails.
    """
    compiler = compiler or os.environ.get('CXX') or 'g++'
    if platform.machine() != 'x86_64':
        raise RuntimeError(f'there are no flags for processors of the kind {platform.machine()}')
    paths = [_path(level) for level in LEVELS]
    for path, flags in zip(paths, LEVELS.values(), strict=True):
        if not path.exists():
            _compile(compiler, flags, path)
    for old in SOURCE.parent.glob('native-*.so'):
        if old not in paths:
            old.unlink()
    return paths


def load() -> Callable[..., None] | None:
    """Load what `build` made for this processor.

    Returns:
        A function that calls a loop by its name; a tensor stands for the address of its data, None
        for a null. None if there is no library that fits the source and the processor.
    """
    level = torch.backends.cpu.get_cpu_capability()
    if level not in LEVELS or not _path(level).exists():
        return None
    try:
        # By RTLD_LOCAL its own names stay its own; OpenMP's are those that torch made global.
        library = ctypes.CDLL(str(_path(level)))
    except OSError:
        return None
    function, known = ctypes.CFUNCTYPE(None), {}

    def call(name: str, *arguments: Tensor | int | float | None) -> None:
        if name not in known:
            known[name] = function(ctypes.c_void_p.in_dll(library, name).value)
        known[name](*map(_as_c, arguments), ctypes.c_int64(torch.get_num_threads()))

    return call


def _path(level: str) -> Path:
    identity = repr((COMPILE, LEVELS[level])).encode() + SOURCE.read_bytes()
    digest = hashlib.sha256(identity).hexdigest()[:12]
    return SOURCE.with_name(f'native-{level.lower()}-{digest}.so')


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        parts = Path(folder) / 'native.o', Path(folder) / 'native.so'
        for command in (
            [compiler, *COMPILE, *flags, SOURCE, '-o', parts[0]],
            [compiler, '-shared', parts[0], '-o', parts[1]],
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except OSError as error:
                raise RuntimeError(f'{compiler} can not be run: {error.strerror}') from error
            except subprocess.CalledProcessError as error:
                lines = [line for line in error.stderr.splitlines() if 'error' in line]
                reason = (lines or error.stderr.splitlines() or ['no message'])[0]
                raise RuntimeError(f'{compiler} fails: {reason}') from error
        parts[1].replace(path)  # whole or not at all


def _as_c(value: Tensor | int | float | None) -> object:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_void_p(None)
