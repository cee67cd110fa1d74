"""The compiled loops of `native.cpp`: to build them, to find them, to call them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
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
# What T of `native.cpp` is called in the names of its loops.
SUFFIXES = {torch.float32: 'float', torch.bfloat16: 'bfloat16'}
_ROWS, _MAP = 'iiii', 'iiii'  # first, count, area, channels; samples, height, width, channels
# The arguments of each loop but the last, the number of threads: f and d are tensors of float32
# and float64, t one of T, a capital one that may be None, i an integer, e a float.
SIGNATURES = {
    'normalize': 'ffffFt' + _ROWS,
    'norm_sums': 'tffd' + _ROWS,
    'norm_gradient': 'Ftfffffff' + _ROWS,
    'gelu': 'tfTii',
    'gelu_gradient': 'tfttdii',
    'add_branch': 'ftffFf' + _ROWS,
    'scale_gradient': 'fFTd' + _ROWS,
    'moments': 'fiieff',
    'pool_mix': 'fff' + _MAP,
    'pool_mix_sums': 'fffd' + _MAP,
    'pool_mix_gradient': 'ffffff' + _MAP,
}


@dataclass(frozen=True)
class _Pointer:
    """A declared argument: the address of a tensor's data, or where that is optional a null."""

    dtype: torch.dtype
    optional: bool

    def from_param(self, value: Tensor | None) -> ctypes.c_void_p:
        """Convert an argument for ctypes, which makes its own ArgumentError of a TypeError."""
        if isinstance(value, Tensor) and value.dtype is self.dtype and value.is_cpu:
            # A map is channels-last. The flag is asked for last, since that is slow.
            dense = value.is_contiguous() if value.ndim != 4 else _is_channels_last(value)
            address = value.data_ptr() if dense else 0
            if address or (dense and not value.numel()):
                return ctypes.c_void_p(address)
        if value is None and self.optional:
            return ctypes.c_void_p(None)
        raise TypeError(
            f'needs a dense tensor of {self.dtype} with data on a CPU, got {_describe(value)}'
        )


class Loops:
    """Calls the loops of a library by name."""

    def __init__(self, path: Path) -> None:
        # By RTLD_LOCAL its own names stay its own; OpenMP's are those that torch made global.
        self._library = ctypes.CDLL(str(path))
        self._known: dict[tuple[str, torch.dtype], Any] = {}

    def __call__(
        self, name: str, *arguments: Tensor | float | None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Call a loop, whose T is this dtype, with the arguments of its signature.

        Raises:
            TypeError: The number of arguments is wrong.
            ctypes.ArgumentError: The type of an argument is wrong.
        """
        if (name, dtype) not in self._known:
            self._known[name, dtype] = self._function(name, dtype)
        function = self._known[name, dtype]
        if len(arguments) != len(SIGNATURES[name]):
            wanted = len(SIGNATURES[name])
            raise TypeError(f'{name} takes {wanted} arguments, got {len(arguments)}')
        function(*arguments, torch.get_num_threads())

    def _function(self, name: str, dtype: torch.dtype) -> Any:
        types: dict[str, Any] = {'i': ctypes.c_int64, 'e': ctypes.c_double}
        for letter, pointed in dict(f=torch.float32, d=torch.float64, t=dtype).items():
            types[letter] = _Pointer(pointed, optional=False)
            types[letter.upper()] = _Pointer(pointed, optional=True)
        declared = [types[letter] for letter in SIGNATURES[name] + 'i']
        pointer = ctypes.c_void_p.in_dll(self._library, f'{name}_{SUFFIXES[dtype]}')
        function = ctypes.cast(pointer, ctypes.CFUNCTYPE(None))
        function.argtypes = declared
        return function


def build(compiler: str | None = None, levels: Sequence[str] = tuple(LEVELS)) -> list[Path]:
    """Compile the loops for some levels, where that is not done yet.

    Args:
        compiler: A C++ compiler; $CXX or g++ if not given.
        levels: Keys of LEVELS.

    Returns:
        The libraries, beside the source, or in the user's cache if nothing can be written there.
        Those of older sources are removed.

    Raises:
        RuntimeError: The processor is of another kind, or there is no compiler, or it fails.
    """
    compiler = compiler or os.environ.get('CXX') or 'g++'
    if platform.machine() != 'x86_64':
        raise RuntimeError(f'there are no flags for processors of the kind {platform.machine()}')
    paths = [_find(level) or _folder() / _name(level) for level in levels]
    for path, level in zip(paths, levels, strict=True):
        if not path.exists():
            _compile(compiler, LEVELS[level], path)
    current = {_name(level) for level in LEVELS}
    for old in paths[0].parent.glob('native-*.so'):
        if old.name not in current:
            old.unlink()
    return paths


def load() -> Loops | None:
    """Load what `build` made for this processor; None if nothing fits the source and it."""
    level = torch.backends.cpu.get_cpu_capability()
    path = _find(level) if level in LEVELS else None
    try:
        return Loops(path) if path else None
    except OSError:
        return None


# By torch.compile it is called once, while it traces.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def compiled() -> bool:
    """Whether there are loops; the first call compiles them if they have to be, or says why not."""
    global loops, tried
    with _compiling:
        if loops is None and not tried:
            tried = True
            loops = _load_or_build()
    return loops is not None


def _load_or_build() -> Loops | None:
    level = torch.backends.cpu.get_cpu_capability()
    try:
        if level not in LEVELS:
            raise RuntimeError(f'there are no flags for a processor without {" or ".join(LEVELS)}')
        [path] = build(levels=[level])
        found = load()
        if found is None:
            raise RuntimeError(f'{path} can not be loaded')
    except (RuntimeError, OSError) as error:
        print_log(
            f"The CPU operators are not compiled ({error}); torch's own take their place, which "
            'are slower. `poolformer-dense build-ops` compiles them once there is a compiler.',
            'current',
            WARNING,
        )
        return None
    print_log(f'The CPU operators are compiled, once for all: {path}', 'current')
    return found


def _folder() -> Path:
    """Where libraries go."""
    if os.access(SOURCE.parent, os.W_OK):
        return SOURCE.parent
    return _cache()


def _cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'poolformer-dense'


def _find(level: str) -> Path | None:
    places = (SOURCE.parent / _name(level), _cache() / _name(level))
    return next((path for path in places if path.exists()), None)


def _name(level: str) -> str:
    identity = repr((COMPILE, LEVELS[level])).encode() + SOURCE.read_bytes()
    digest = hashlib.sha256(identity).hexdigest()[:12]
    return f'native-{level.lower()}-{digest}.so'


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        parts = Path(folder) / 'native.o', Path(folder) / 'native.so'
        for command in (
            [compiler, *COMPILE, *flags, str(SOURCE), '-o', str(parts[0])],
            [compiler, '-shared', str(parts[0]), '-o', str(parts[1])],
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


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        shape, strides = tuple(value.shape), value.stride()
        return f'{value.dtype} on {value.device}, shape {shape}, strides {strides}'
    return 'None' if value is None else type(value).__name__


loops = load()
# Whether `compiled` has tried to compile them.
tried = False
_compiling = threading.Lock()
