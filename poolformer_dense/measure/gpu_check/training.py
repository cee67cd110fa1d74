"""Does training keep its promises: float16's loss scale, exact resuming, a process group?"""

from __future__ import annotations

import copy
import itertools
import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from backbones import MetaFormer

from .result import Setting, StageResult

ARCH: dict[str, Any] = dict(
    depths=(1, 1, 1, 1), mlp_ratio=2, dims=(8, 8, 8, 8), layer_scale_init=1e-6
)


def amp(setting: Setting, result: StageResult) -> None:
    """The loss scale of float16 over some steps, ours and plain torch's."""
    for backend in ('reference', setting.backend):
        if not result.has_time(setting, backend):
            return
        model, optimizer = _start(setting, backend)
        scaler = torch.amp.GradScaler(setting.device, init_scale=2.0**16, growth_interval=10)
        scales, losses = [], []
        for number in range(setting.pick(200, 2)):
            loss = _loss(model, _images(setting, number), setting, torch.float16)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            losses.append(loss.item())
        drops = sum(b < a for a, b in itertools.pairwise(scales))
        result.add(backend=backend, steps=len(scales), skipped=drops, last_scale=scales[-1],
                   first_loss=losses[0], last_loss=losses[-1])  # fmt: skip
        result.check(all(loss == loss for loss in losses), f'{backend}: a loss is NaN')
    plain, ours = result.rows
    result.check(ours['skipped'] <= plain['skipped'] + 2, 'ours skips more steps than plain torch')


def exact(setting: Setting, result: StageResult) -> None:
    """Deterministic settings: two trainings are the same bits, and so is a resumed one."""
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
    try:
        for backend in ('reference', setting.backend):
            if not result.has_time(setting, backend):
                break
            whole, again = (_train(setting, backend, [range(4)]) for _ in range(2))
            resumed = _train(setting, backend, [range(2), range(2, 4)])
            for name, other in (('again', again), ('resumed', resumed)):
                same = all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
                result.add(backend=backend, training=name, equal=same)
                result.check(same, f'{backend} {name}: other bits')
    finally:
        torch.use_deterministic_algorithms(before)


def nccl(setting: Setting, result: StageResult) -> None:
    """One process in a group of its own: DDP finds a gradient for every parameter."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    store = dist.TCPStore('127.0.0.1', port, 1, is_master=True)
    kind = setting.pick('nccl', 'gloo')
    dist.init_process_group(kind, store=store, rank=0, world_size=1)
    try:
        right = _all_have_gradients(setting)
        result.add(group=kind, steps=2, gradients='all' if right else 'missing')
        result.check(right, 'a parameter has no gradient')
    finally:
        dist.destroy_process_group()


def _all_have_gradients(setting: Setting) -> bool:
    """In DDP, which must end before its group does: torch 2.13 else may wait for ever."""
    model, optimizer = _start(setting, setting.backend)
    ddp = nn.parallel.DistributedDataParallel(model)
    for number in range(2):
        optimizer.zero_grad()
        _loss(ddp, _images(setting, number), setting, torch.bfloat16).backward()
        optimizer.step()
    return all(p.grad is not None for p in model.parameters())


def _start(setting: Setting, backend: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    arch = setting.pick('poolformer_s36', ARCH)
    model = MetaFormer(arch, backend=backend, drop_path_rate=0.1).to(setting.device)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def _images(setting: Setting, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    size = setting.pick(256, 32)
    return torch.randn(2, 3, size, size, generator=generator).to(setting.device)


def _loss(model: nn.Module, x: torch.Tensor, setting: Setting, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.autocast(setting.device, dtype):
        outputs = model(x)
    total: torch.Tensor = sum(o.float().square().mean() for o in outputs)
    return total


def _train(setting: Setting, backend: str, parts: list[range]) -> list[torch.Tensor]:
    state: Any = None
    for part in parts:
        model, optimizer = _start(setting, backend)
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        for number in part:
            optimizer.zero_grad()
            _loss(model, _images(setting, number), setting, torch.bfloat16).backward()
            optimizer.step()
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    return [*state[0].values()]
