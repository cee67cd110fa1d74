"""Where signals are handled stays as it was, whatever OpenVINO does."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from poolformer_dense.exporting.exporter import write_export
from poolformer_dense.runtimes.signal_stack import _call, _Stack, kept_signal_stack
from tests.tiny_models import tiny_predictor

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='Linux has it')
SIZE = 1 << 16


def _current():
    stack = _Stack()
    _call(None, ctypes.byref(stack))
    return stack.address, stack.size


@pytest.fixture
def memory():
    """Two places for a stack; the thread gets its own back."""
    with kept_signal_stack():
        yield [ctypes.create_string_buffer(SIZE) for _ in range(2)]


def _use(buffer):
    _call(ctypes.byref(_Stack(ctypes.addressof(buffer), 0, SIZE)), None)


def test_a_stack_is_put_back(memory):
    before, other = memory
    _use(before)
    kept = _current()
    assert kept == (ctypes.addressof(before), SIZE)
    with kept_signal_stack() as restore:
        _use(other)
        assert _current() != kept
        restore()
        assert _current() == kept
        _use(other)
    assert _current() == kept


def test_an_error_leaves_it_too(memory):
    kept = _current()
    with pytest.raises(ZeroDivisionError):
        _use_and_fail(memory[0])
    assert _current() == kept


def _use_and_fail(buffer):
    with kept_signal_stack():
        _use(buffer)
        raise ZeroDivisionError


def test_what_the_system_refuses_is_an_error():
    with pytest.raises(OSError, match='Cannot allocate'):
        _call(ctypes.byref(_Stack(None, 0, 1)), None)


def test_a_signal_after_two_files_of_openvino(root, tmp_path):
    pytest.importorskip('openvino')
    predictor = tiny_predictor(root, 'fpn', tmp_path / 'weights.pth')
    write_export(predictor, tmp_path / 'model.xml', (64, 64))
    done = subprocess.run(
        [sys.executable, '-c', AFTER_TWO_FILES, tmp_path / 'model.xml'],
        cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, 'handled\n'), done.stderr


AFTER_TWO_FILES = """
import gc, os, signal, sys
from pathlib import Path
from poolformer_dense.runtimes.runtime import open_runtime
signal.signal(signal.SIGUSR1, lambda *_: print('handled'))
first, second = open_runtime(Path(sys.argv[1])), open_runtime(Path(sys.argv[1]))
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""
