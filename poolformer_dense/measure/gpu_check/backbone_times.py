"""How fast is the backbone, beside others and by what it is run with?"""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backbones import MetaFormer

from ..benchmark.compete import draw_weights
from ..benchmark.peers import PEERS, PeerUnavailable
from ..benchmark.task import FORMATS
from .result import Setting, StageResult, median_milliseconds

# Whose time ours is held against; the rest is ours.
PEER_NAMES = ('mmpretrain', 'plain', 'plain compiled', 'mmpretrain compiled')


def backbone(setting: Setting, result: StageResult) -> None:
    """Training and inference beside the others, in each dtype and at four sizes."""
    sizes = [(2, 800, 1344), (8, 800, 1344), (2, 512, 512), (8, 512, 512)]
    for train in (True, False):
        for dtype in setting.pick(('bfloat16', 'float16', 'float32'), ('bfloat16',)):
            for batch, height, width in setting.pick(sizes, [(1, 32, 32)]):
                shape = (batch, 3, height, width)
                where = dict(task='train' if train else 'infer', dtype=dtype, shape=list(shape))
                for name, run in _contestants(setting, shape, dtype, train, result):
                    result.add(**where, name=name, **_measure(run, setting, result, name))


def compiles(setting: Setting, result: StageResult) -> None:
    """How long training waits for compilers over random sizes, the first of which is warm."""
    draw = random.Random(0)
    sizes = [
        (draw.randrange(480, 801, 32), draw.randrange(640, 1345, 32))
        for _ in range(setting.pick(20, 2))
    ]
    sizes = setting.pick(sizes, [(32, 32), (32, 64)])
    for name in ('ours', 'ours compiled', 'plain compiled'):
        torch.compiler.reset()
        model = _model(setting, 'reference' if name.startswith('plain') else setting.backend)
        run = _compile(model, setting) if 'compiled' in name else model
        times = []
        for size in sizes:
            x = torch.randn(2, 3, *size, device=setting.device)
            start = time.perf_counter()
            with torch.autocast(setting.device, torch.bfloat16):
                out = run(x)
            sum(o.sum() for o in out).backward()
            if not setting.dry:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        later = times[1:]
        typical = statistics.median(later)
        stalls = [t for t in later if t > 5 * typical]
        result.add(
            name=name, sizes=len(sizes), first_s=times[0], typical_s=typical, stalls=len(stalls),
            stalled_s=sum(stalls),
        )  # fmt: skip


def _model(setting: Setting, backend: str) -> MetaFormer:
    torch.manual_seed(0)
    arch: Any = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), mlp_ratio=2)
    arch = setting.pick('poolformer_s12', arch)
    return draw_weights(MetaFormer(arch, backend=backend)).to(setting.device)


def _compile(model: nn.Module, setting: Setting) -> Any:
    return torch.compile(model, backend=setting.pick('inductor', 'eager'))


def _contestants(
    setting: Setting, shape: tuple[int, ...], dtype: str, train: bool, result: StageResult
) -> list[tuple[str, Callable[[], object]]]:
    ours, plain = _model(setting, setting.backend), _model(setting, 'reference')
    models: list[tuple[str, nn.Module, bool]] = [
        ('ours', ours, False),
        ('ours compiled', copy.deepcopy(ours), True),
        ('plain', plain, False),
        ('plain compiled', copy.deepcopy(plain), True),
    ]
    try:
        if setting.dry:
            raise PeerUnavailable('mmpretrain: dry')
        peer = PEERS['mmpretrain']('poolformer_s12', plain).to(setting.device)
        models += [('mmpretrain', peer, False), ('mmpretrain compiled', copy.deepcopy(peer), True)]
    except PeerUnavailable as missing:
        if str(missing) not in result.missing:
            result.missing.append(str(missing))
    lower = None if dtype == 'float32' else getattr(torch, dtype)
    layout: Any = dict(memory_format=FORMATS['channels_last'])
    image = torch.randn(*shape, device=setting.device).contiguous(**layout)
    runs: list[tuple[str, Callable[[], object]]] = []

    def step(run: Any, model: nn.Module) -> Callable[[], object]:
        def once() -> object:
            with torch.set_grad_enabled(train):
                with torch.autocast(setting.device, lower, enabled=lower is not None):
                    out: tuple[Tensor, ...] = run(image)
                if train:
                    torch.autograd.backward(out, [torch.ones_like(o) for o in out])
                    model.zero_grad(set_to_none=True)
            return out

        return once

    for name, model, compiled in models:
        model.to(**layout).train(train)
        runs.append((name, step(_compile(model, setting) if compiled else model, model)))
    if setting.dry:
        if 'CUDA graphs: dry' not in result.missing:
            result.missing.append('CUDA graphs: dry')
    else:
        graphed = copy.deepcopy(ours).train(train)
        with torch.autocast('cuda', lower, enabled=lower is not None, cache_enabled=False):
            run = torch.cuda.make_graphed_callables(graphed, (image.clone(),))
        runs.append(('ours with CUDA graphs', step(run, graphed)))
    return runs


def _measure(
    run: Callable[[], object], setting: Setting, result: StageResult, name: str
) -> dict[str, Any]:
    try:
        if not setting.dry:
            torch.cuda.reset_peak_memory_stats()
        took = median_milliseconds(run, setting, repeats=10)
    except Exception as error:  # one contestant's failure leaves the others' figures
        result.failed.append(f'{name}: {type(error).__name__}: {str(error)[:500]}')
        return dict(ms=None)
    if setting.dry:
        return dict(ms=took)
    return dict(ms=took, peak_mib=torch.cuda.max_memory_allocated() / 2**20)
