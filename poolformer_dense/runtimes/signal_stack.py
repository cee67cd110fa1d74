"""A thread's alternate signal stack, as it was before OpenVINO.

OpenVINO's plugin for CPUs gives the thread that loads it a stack for signal handlers, and unmaps it
in the end. It takes it back only in that thread, and if no other plugin was loaded since. Else the
thread keeps an address where nothing is, and the next signal that Python handles, such as the end
of a data loading worker, kills the process.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (('address', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[Callable[[], None]]:
    """Put this thread's alternate signal stack back at the end of the block.

    Yields:
        A function that does so before.

    Raises:
        OSError: The system refuses it.
    """
    if not sys.platform.startswith('linux'):
        yield lambda: None
        return
    before = _Stack()
    _call(None, ctypes.byref(before))

    def restore() -> None:
        _call(ctypes.byref(before), None)

    try:
        yield restore
    finally:
        restore()


def _call(new: object, old: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    pointer = ctypes.POINTER(_Stack)
    sigaltstack = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, use_errno=True)(
        ('sigaltstack', library)
    )
    if sigaltstack(new, old):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
