"""Are the kernels right, and how near are they to the speed of memory?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from backbones import ops

from ..launches import kernel_bytes
from .result import Setting, StageResult, median_milliseconds

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 480  # seconds of each program
BLOCK = """
import torch
from backbones.metaformer import build_block
from backbones.presets import PRESETS
for stage in (0, 2):
    block = build_block(PRESETS['poolformer_s12'], stage).to({device!r})
    block.backend = 'triton'
    x = torch.randn(1, PRESETS['poolformer_s12'].dims[stage], 9, 7, device={device!r})
    with torch.autocast({device!r}, torch.bfloat16):
        block(x.requires_grad_(), torch.ones(2, 1, device={device!r})).sum().backward()
    assert x.grad.isfinite().all()
"""


def kernels(setting: Setting, result: StageResult) -> None:
    """The tests of the kernels, compiled; memory checkers; maps of more than 2^31 elements."""
    block = [sys.executable, '-c', BLOCK.format(device=setting.device)]
    _run(result, 'a block', block, setting)
    _sanitize(result, 'memcheck', block, setting)
    tests = ['tests/ops/test_triton.py', 'tests/ops/test_half.py']
    chosen = setting.pick([], ['-k', 'dropped_sample or powers_of_two'])
    _run(result, 'tests', [sys.executable, '-m', 'pytest', '-q', *tests, *chosen], setting)
    _sanitize(result, 'racecheck', block, setting)
    _check_large_map(setting, result)


def _sanitize(result: StageResult, tool: str, command: list[str], setting: Setting) -> None:
    sanitizer = shutil.which('compute-sanitizer')
    if setting.dry or sanitizer is None:
        result.missing.append(f'compute-sanitizer {tool}: {setting.pick("not found", "dry")}')
    else:
        _run(result, tool, [sanitizer, '--tool', tool, '--error-exitcode', '1', *command], setting)


def _check_large_map(setting: Setting, result: StageResult) -> None:
    """4 hidden channels for each of 64: over 2^31 elements of them, the last of which are used."""
    side = setting.pick(2944, 8)
    shape = (1, 64, side, side)
    given = _mlp(torch.randn(shape, device=setting.device, requires_grad=True), 64)
    learned = dict(x=given.x, w1=given.w1, w2=given.w2)
    grad = torch.zeros(shape, device=setting.device)
    grad[:, :, -8:, -8:] = torch.randn(1, 64, 8, 8)
    found = []
    for backend in ('triton', 'reference'):
        try:
            # Triton's interpreter cuts off bits of bfloat16.
            with torch.autocast(setting.device, torch.bfloat16, enabled=not setting.dry):
                out = ops.norm_mlp(given, 1e-5, backend=backend)
            x_grad, *grads = torch.autograd.grad(out, list(learned.values()), grad.to(out.dtype))
        except RuntimeError as refusal:
            if backend == 'triton':
                raise
            result.missing.append(f'large map: plain torch can not: {refusal}')
            return
        # Without what goes past the branch, in which its error would vanish.
        ends = [(t - past)[..., -8:, -8:] for t, past in ((out, given.x), (x_grad, grad))]
        found.append([t.detach().double() for t in (*ends, *grads)])
    for name, one, other in zip(('output', *learned), *found, strict=True):
        error = float((one - other).norm() / other.norm())
        result.check(error < 2e-2, f'large map: {name} is off by {error:.1e}')
    result.add(check='hidden elements', outcome=f'{4 * given.x.numel():,}')


def bandwidth(setting: Setting, result: StageResult) -> None:
    """Each kernel against a copy on the device, and the fused MLP against the unfused one."""
    from backbones.ops.backends.triton import common, fused_mlp

    size = setting.pick((8, 200, 336), (1, 3, 2))
    source = torch.randn(setting.pick(1 << 28, 1 << 10), device=setting.device)
    target = torch.empty_like(source)
    copied = median_milliseconds(partial(target.copy_, source), setting)
    copy = 2 * source.numel() * 4 / copied / 1e6
    result.add(kernel='copy', channels='', ms=copied, gb_per_s=copy, of_copy=1.0)
    for dim in setting.pick((64, 320), (64, 160)):
        if not result.has_time(setting, f'kernels at {dim} channels'):
            break
        seen: set[str] = set()

        def observe(
            kernel: Any, arguments: Any, run: Callable[[], None], dim: int = dim, seen: set = seen
        ) -> None:
            run()
            name = f'{kernel.fn.__module__.rpartition(".")[2]}.{kernel.fn.__name__}'
            if name in seen:
                return
            seen.add(name)
            took = median_milliseconds(run, setting)
            speed = kernel_bytes(kernel, arguments) / took / 1e6
            result.add(kernel=name, channels=dim, ms=took, gb_per_s=speed, of_copy=speed / copy)

        x = torch.randn(size[0], dim, *size[1:], device=setting.device, requires_grad=True)
        weight = torch.ones(dim, device=setting.device, requires_grad=True)
        with common.observed(observe), torch.autocast(setting.device, torch.bfloat16):
            y = ops.pool_mix(x, weight, weight, weight, None, 1e-5, 'triton')
            y = ops.norm_mlp(_mlp(y, dim), 1e-5, backend='triton')
            ops.modified_layer_norm(y, weight, weight, 1e-5, 'triton').sum().backward()
    before = fused_mlp.MOST_CHANNELS
    for dim in setting.pick((64, 96, 128), (16,)):
        if not result.has_time(setting, f'the fused MLP at {dim} channels'):
            break
        x = torch.randn(size[0], dim, *size[1:], device=setting.device)
        x = x.contiguous(memory_format=torch.channels_last)
        times = []
        for most in (dim, 0):
            fused_mlp.MOST_CHANNELS = most
            try:
                with torch.no_grad(), torch.autocast(setting.device, torch.bfloat16):
                    given = _mlp(x, dim)
                    run_mlp = partial(ops.norm_mlp, given, 1e-5, backend='triton')
                    took = median_milliseconds(run_mlp, setting)
            finally:
                fused_mlp.MOST_CHANNELS = before
            times.append(took)
        result.add(kernel='fused MLP', channels=dim, ms=times[0], unfused_ms=times[1])


def _mlp(x: torch.Tensor, dim: int) -> ops.MLPInputs:
    def weight(*size: int) -> torch.Tensor:
        return (0.02 * torch.randn(*size, device=x.device)).requires_grad_()

    vector = torch.ones(dim, device=x.device, requires_grad=True)
    w1, w2 = weight(4 * dim, dim, 1, 1), weight(dim, 4 * dim, 1, 1)
    return ops.MLPInputs(x, vector, vector, w1, weight(4 * dim), w2, vector, vector, None)


def _run(result: StageResult, name: str, command: list[str], setting: Setting) -> None:
    if name == 'tests' and find_spec('pytest') is None:
        result.missing.append('the tests: pytest is not installed')
        return
    env = os.environ | {'TRITON_INTERPRET': str(int(setting.dry))}
    if 'check' in name:  # memcheck knows what is allocated by CUDA, not by torch within that
        env['PYTORCH_NO_CUDA_MEMORY_CACHING'] = '1'
    limit = max(30, min(LIMIT, setting.until - time.monotonic()))
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        result.failed.append(f'{name}: not ended in {error.timeout:.0f} s')
        return
    last = (done.stdout.strip().splitlines() or ['nothing printed'])[-1]
    result.add(check=name, outcome='right' if done.returncode == 0 else 'wrong', said=last)
    result.check(done.returncode == 0, f'{name}: {last} {done.stderr[-2000:]}')
