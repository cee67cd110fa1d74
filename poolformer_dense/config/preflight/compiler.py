"""Whether torch.compile knows its options and finds what it compiles with."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator, Mapping

import torch._inductor
from mmengine.device import get_device

from .plan import Notice, Plan


def check_compiler(plan: Plan) -> Iterator[Notice]:
    """Whether what ``compile`` in the config asks for can be done."""
    options = plan.cfg.get('compile')
    if options is None or options is False:
        return
    given = options if isinstance(options, Mapping) else {}
    if given.get('backend', 'inductor') != 'inductor':
        return
    mode, modes = given.get('mode'), torch._inductor.list_mode_options()
    if mode is not None and mode not in modes:
        choices = ', '.join(sorted(modes))
        yield Notice(logging.ERROR, f'compile.mode={mode!r}: no such mode; take {choices}')
    if fault := compiler_fault(get_device()):
        yield Notice(logging.ERROR, fault)


def compiler_fault(device: str) -> str | None:
    """Return why torch.compile can't compile for a device, in one line."""
    if device == 'cpu':
        compiler = os.environ.get('CXX') or 'g++'
        if shutil.which(compiler) is None:
            return (
                f'--compile: torch.compile finds no C++ compiler ({compiler}): install one (on '
                'Debian g++), or drop --compile'
            )
    elif device.startswith('cuda') and importlib.util.find_spec('triton') is None:
        return '--compile: torch.compile needs triton for GPUs: pip install triton, or drop it'
    return None
