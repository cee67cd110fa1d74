"""What of a training step is the backbone: RetinaNet and Semantic FPN as the configs build them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .result import Setting, StageResult

ROOT = Path(__file__).resolve().parents[3]


def detector(setting: Setting, result: StageResult) -> None:
    """Data, forward, backward, guard and optimizer of whole steps, plain and ours."""
    missing = [name for name in ('mmcv', 'mmdet', 'mmseg') if find_spec(name) is None]
    if missing:
        result.missing.append(f'detectors: {", ".join(missing)} not installed')
        return
    from ...config.load import load_config
    from ..shapes import write_ade20k, write_coco

    count = setting.pick(64, 16)
    # The published sizes: COCO's as it is, ADE20K's with its crop. Each has a place in a pipeline.
    pipeline = 'train_dataloader.dataset.pipeline'
    sizes: dict[str, dict[str, Any]] = dict(
        retinanet={f'{pipeline}.2.scale': (1333, 800)},
        fpn={f'{pipeline}.2.scale': (2048, 512), f'{pipeline}.3.crop_size': (512, 512)},
    )
    with TemporaryDirectory() as folder:
        write_coco(Path(folder, 'coco'), num_train=count, num_val=1)
        write_ade20k(Path(folder, 'ade'), num_train=count, num_val=1)
        for name, data in (('retinanet', 'coco'), ('fpn', 'ade')):
            config = ROOT / 'configs' / 'demo' / f'{name}_poolformer_s12.py'
            if not config.exists():
                result.missing.append(f'{name}: no {config.name}')
                continue
            for backend in ('reference', setting.backend):
                if not result.has_time(setting, f'{name} {backend}'):
                    continue
                overrides = setting.pick(sizes[name], {})
                cfg = load_config(str(config), overrides | {'data_root': str(Path(folder, data))})
                cfg.model.backbone.backend = backend
                result.add(model=name, backend=backend, **_steps(cfg, setting))


def _steps(cfg: Any, setting: Setting) -> dict[str, float]:
    from mmengine.optim import OptimWrapper
    from mmengine.registry import MODELS
    from mmengine.runner import Runner

    from ...runner.mixed_precision import keep_edges_in_float32
    from ...runner.numerical_guard import NumericalGuardHook

    model = MODELS.build(cfg.model).to(setting.device).train()
    keep_edges_in_float32(model)
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)
    batches = _endless(Runner.build_dataloader(loader, seed=0))
    parts = dict.fromkeys(('data_ms', 'forward_ms', 'backward_ms', 'optimizer_ms', 'guard_ms'), 0.0)
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-5))
    guard = NumericalGuardHook()
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        if not setting.dry:
            torch.cuda.synchronize()
        now = time.perf_counter()
        parts[name] += 1e3 * (now - last)
        last = now

    rounds = setting.pick(10, 1)
    for number in range(rounds + 1):
        if number == 1:  # the first is warm-up
            parts.update(dict.fromkeys(parts, 0.0))
        last = time.perf_counter()
        data = model.data_preprocessor(next(batches), training=True)
        lap('data_ms')
        with torch.autocast(setting.device, torch.bfloat16):
            losses = model(**data, mode='loss')
        loss, _ = model.parse_losses(losses)
        lap('forward_ms')
        loss.backward()
        lap('backward_ms')
        guard.judge(loss.detach(), wrapper)
        lap('guard_ms')
        wrapper.step()
        wrapper.zero_grad()
        lap('optimizer_ms')
    return {name: value / rounds for name, value in parts.items()}


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader
