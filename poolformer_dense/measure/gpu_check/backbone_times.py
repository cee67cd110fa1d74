"""How fast is the backbone, beside others and by what it is run with?"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from backbones import MetaFormer

from ..benchmark.compete import draw_weights
from ..benchmark.peers import PEERS, PeerUnavailable
from ..benchmark.task import FORMATS
from .result import Setting, StageResult, median_milliseconds

# How ours and the others are run.
OURS = ('', 'compiled', 'with CUDA graphs')
THEIRS = ('', 'contiguous', 'compiled')
PEERS_OF_OURS = ('plain', 'mmpretrain', 'timm')
# Whose time ours is held against.
PEER_NAMES = tuple(f'{name} {how}'.strip() for name in PEERS_OF_OURS for how in THEIRS)


def backbone(setting: Setting, result: StageResult) -> None:
    """Training and inference beside the others, in each dtype and at four sizes."""
    peers = _available_peers(setting, result)
    sizes = [(8, 800, 1344), (2, 800, 1344), (8, 512, 512), (2, 512, 512)]
    dtypes = setting.pick(('bfloat16', 'float16', 'float32'), ('bfloat16',))
    sizes = setting.pick(sizes, [(1, 32, 32)])
    for dtype, task, (batch, *side) in itertools.product(dtypes, ('train', 'infer'), sizes):
        where = dict(task=task, dtype=dtype, shape=[batch, 3, *side])
        if not result.has_time(setting, where):
            continue
        for name in ('ours', *peers):
            for how in OURS if name == 'ours' else THEIRS:
                if setting.dry and how == 'with CUDA graphs':
                    continue
                label = f'{name} {how}'.strip()
                build = partial(_step, name, how, where, setting)
                result.add(**where, name=label, **_measure(build, setting, result, label))
    if setting.dry:
        result.missing.append('CUDA graphs: dry')


def compiles(setting: Setting, result: StageResult) -> None:
    """How long training waits for compilers over random sizes, and whether it stays right."""
    draw = random.Random(0)
    sizes = [
        (draw.randrange(480, 801, 32), draw.randrange(640, 1345, 32))
        for _ in range(setting.pick(20, 2))
    ]
    sizes = setting.pick(sizes, [(32, 32), (32, 64)])
    found: dict[tuple[str, tuple[int, int]], list[Tensor]] = {}
    for name in ('ours', 'ours compiled', 'plain compiled'):
        torch.compiler.reset()
        model = _model(setting, 'reference' if name.startswith('plain') else setting.backend)
        run = _compile(model, setting, dynamic=True) if 'compiled' in name else model
        times: list[float] = []
        for size in sizes:
            if not result.has_time(setting, f'{name} from size {len(times) + 1} on'):
                break
            torch.manual_seed(len(times))
            x = torch.randn(2, 3, *size, device=setting.device)
            start = time.perf_counter()
            with torch.autocast(setting.device, torch.bfloat16):
                out = run(x)
            torch.autograd.backward(out, [torch.randn_like(o) for o in out])
            if not setting.dry:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            found[name, size] = [*(o.detach() for o in out), *grads]
            model.zero_grad()
        later = times[1:]
        if not later:
            continue
        typical = statistics.median(later)
        stalls = [t for t in later if t > 5 * typical]
        result.add(
            name=name, sizes=len(times), first_s=times[0], typical_s=typical, stalls=len(stalls),
            stalled_s=sum(stalls),
        )  # fmt: skip
    errors = [
        (a - b).norm() / (b.norm() + 1e-6)
        for size in sizes
        if ('ours compiled', size) in found
        for a, b in zip(found['ours compiled', size], found['ours', size], strict=True)
    ]
    if errors:
        largest = float(torch.stack(errors).max())
        result.check(largest < 2e-2, f'ours compiled is off by {largest:.1e}')


def _model(setting: Setting, backend: str) -> MetaFormer:
    torch.manual_seed(0)
    arch: Any = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), mlp_ratio=2)
    arch = setting.pick('poolformer_s12', arch)
    return draw_weights(MetaFormer(arch, backend=backend)).to(setting.device)


def _compile(model: nn.Module, setting: Setting, dynamic: bool | None = None) -> Any:
    return torch.compile(model, dynamic=dynamic, backend=setting.pick('inductor', 'eager'))


def _available_peers(setting: Setting, result: StageResult) -> list[str]:
    found = ['plain']
    for name in PEERS_OF_OURS[1:]:
        try:
            if setting.dry:
                raise PeerUnavailable(f'{name}: dry')
            PEERS[name]('poolformer_s12', _model(setting, 'reference'))
            found.append(name)
        except PeerUnavailable as missing:
            result.missing.append(str(missing))
    return found


def _step(name: str, how: str, where: dict[str, Any], setting: Setting) -> Callable[[], object]:
    """Build a contestant; return a step of it."""
    train = where['task'] == 'train'
    model: nn.Module = _model(setting, setting.backend if name == 'ours' else 'reference')
    if name in PEERS:
        model = PEERS[name]('poolformer_s12', cast(MetaFormer, model)).to(setting.device)
    layout: Any = dict(memory_format=FORMATS[how if how == 'contiguous' else 'channels_last'])
    model.to(**layout).train(train).requires_grad_(train)
    image = torch.randn(where['shape'], device=setting.device).contiguous(**layout)
    lower = None if where['dtype'] == 'float32' else getattr(torch, where['dtype'])
    cast_down = partial(torch.autocast, setting.device, lower, enabled=lower is not None)
    run: Any = _compile(model, setting) if how == 'compiled' else model
    if how == 'with CUDA graphs':
        with cast_down(cache_enabled=False):
            run = torch.cuda.make_graphed_callables(model, (image.clone(),))

    def step() -> object:
        with torch.set_grad_enabled(train):
            with cast_down():
                out: tuple[Tensor, ...] = run(image)
            if train:
                torch.autograd.backward(out, [torch.ones_like(o) for o in out])
                model.zero_grad(set_to_none=True)
        return out

    return step


def _measure(
    build: Callable[[], Callable[[], object]], setting: Setting, result: StageResult, name: str
) -> dict[str, Any]:
    torch.compiler.reset()  # past a limit of recompilations it would run uncompiled
    gc.collect()  # graphs are in cycles, and keep their memory
    try:
        if not setting.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        took = median_milliseconds(build(), setting, calls=3)
    except Exception as error:  # one contestant's failure leaves the others' figures
        said = f'{name}: {type(error).__name__}: {str(error)[:500]}'
        (result.failed if name.startswith('ours') else result.missing).append(said)
        return dict(ms=None)
    if setting.dry:
        return dict(ms=took)
    # Of all allocations; a graph's are in a pool of its own, so that only the second has them.
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return dict(ms=took, peak_mib=peaks[0] / 2**20, reserved_mib=peaks[1] / 2**20)
