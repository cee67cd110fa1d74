"""Where a step of a whole detector or segmentor spends its time, ours beside stock.

Each contestant is built from the config by the Runner, as a training builds it, and has the same
weights and batches. Stock is the same config with the backbone in plain torch, maps contiguous.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.utils.benchmark import timer

from backbones import MetaFormer

from ...config.registered import find_types
from ...errors import UserError
from ...runner import build_runner
from ...runner.mixed_precision import keep_edges_in_float32

STAGES = {
    'train': (
        'data', 'preprocessing', 'backbone', 'neck', 'heads', 'targets and losses', 'backward',
        'optimizer',
    ),
    'infer': ('data', 'preprocessing', 'backbone', 'neck', 'heads', 'post-processing'),
}  # fmt: skip
STOCK = 'stock'
TOLERANCE = 1e-3  # of the features in float32, over their largest element


class StageClock:
    """Seconds by stage; what is timed within a stage is not counted in it again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._began: list[tuple[str, float]] = []

    def start(self, stage: str) -> None:
        now = timer()  # waits for the GPU
        if self._began:
            outer, since = self._began.pop()
            self.seconds[outer] += now - since
            self._began.append((outer, now))
        self._began.append((stage, now))

    def stop(self) -> None:
        now = timer()
        stage, since = self._began.pop()
        self.seconds[stage] += now - since
        if self._began:
            self._began.append((self._began.pop()[0], now))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def watch(self, module: nn.Module, name: str) -> None:
        """Count a module's forward as a stage."""
        module.register_forward_pre_hook(lambda *_: self.start(name))
        module.register_forward_hook(lambda *_: self.stop())


@dataclass
class WholeModel:
    """A contestant: one step of it is a call.

    Attributes:
        name: What it is called in the table.
        model: The detector or segmentor.
        step: Does a step.
        clock: Of the steps.
        seconds: By stage, of each step that counts.
    """

    name: str
    model: Any
    step: Callable[[], None]
    clock: StageClock
    seconds: list[Mapping[str, float]] = field(default_factory=list)

    def __call__(self) -> None:
        self.clock.seconds.clear()
        self.step()
        self.seconds.append(dict(self.clock.seconds))

    def times(self, stage: str | None = None) -> list[float]:
        """Seconds of a stage, or of the whole step, in each that counts."""
        return [
            sum(each.values()) if stage is None else each.get(stage, 0.0) for each in self.seconds
        ]


def build_contestants(cfg: Config, task: str, dtype: str) -> list[WholeModel]:
    """Build a config's model, and stock, with the same weights and batches.

    Args:
        cfg: Of a whole run; its data must be there. What it loads is loaded. A model of another
            backbone than ours runs alone.
        task: 'train' or 'infer'.
        dtype: 'float32'; below it autocast.

    Returns:
        Ours first, each warm.

    Raises:
        UserError: They do not compute the same features.
    """
    configs = {'ours': cfg}
    if _is_ours(cfg):
        configs[STOCK] = copy.deepcopy(cfg)
        configs[STOCK].model.backbone.backend = 'reference'
    with tempfile.TemporaryDirectory() as folder:
        models: list[WholeModel] = []
        for name, each in configs.items():
            each.work_dir = str(Path(folder, name))
            runner = build_runner(each)
            if models:
                runner.model.load_state_dict(models[0].model.state_dict())
            else:
                _initialize(runner.model)
                runner.load_or_resume()
                loader = cfg.train_dataloader if task == 'train' else cfg.test_dataloader
                batches = _endless(runner.build_dataloader(loader, seed=0))
            models.append(_contestant(name, runner, batches, task, dtype))
        _check_agreement([model.model for model in models], next(batches), task == 'train')
        for model in models:
            model()
    return models


def take_turns(models: Sequence[WholeModel], rounds: int) -> None:
    """Time steps of models in turn, so many of each, in place of what was timed before."""
    for model in models:
        model.seconds.clear()
    for model in track([*models] * rounds, f'{rounds} rounds', console=Console(stderr=True)):
        model()


def stage_table(models: Sequence[WholeModel], title: str) -> Table:
    """Return each stage's median and range, and how many times as fast ours is by the medians."""
    result = Table(title=title, box=SIMPLE_HEAD, title_justify='left', padding=(0, 1, 0, 0))
    result.add_column('stage', no_wrap=True)
    for model in models:
        result.add_column(f'{model.name}, ms', justify='right')
        result.add_column('min-max', justify='right')
    if len(models) > 1:
        result.add_column('ours is', justify='right')
    stages = [s for s in _stages(models) if any(max(m.times(s)) > 0 for m in models)]
    for stage in [*stages, None]:
        row = [stage or 'whole step']
        for model in models:
            times = [1e3 * seconds for seconds in model.times(stage)]
            row += [f'{statistics.median(times):.1f}', f'{min(times):.1f}-{max(times):.1f}']
        medians = [statistics.median(model.times(stage)) for model in models]
        if len(models) > 1:
            row.append(f'{medians[1] / medians[0]:.2f}x' if medians[0] else '')
        if stage is None:
            result.add_section()
        result.add_row(*row)
    return result


def _stages(models: Sequence[WholeModel]) -> list[str]:
    found = {stage for model in models for each in model.seconds for stage in each}
    return [s for s in dict.fromkeys(STAGES['train'] + STAGES['infer']) if s in found]


def _is_ours(cfg: Config) -> bool:
    kinds = find_types(cfg.model.get('backbone', {}).get('type'), cfg.get('default_scope'))
    return any(isinstance(kind, type) and issubclass(kind, MetaFormer) for kind in kinds)


def _initialize(model: nn.Module) -> None:
    """Let heads start as in a training, with few detections; our backbone is built so."""
    for name, part in model.named_children():
        start = getattr(part, 'init_weights', None)
        if name != 'backbone' and callable(start):
            start()


@torch.no_grad()
def _check_agreement(models: Sequence[Any], batch: Any, training: bool) -> None:
    images = models[0].data_preprocessor(copy.deepcopy(batch), training)['inputs']
    for model in models:
        model.eval()
    truth, *others = [model.extract_feat(images) for model in models]
    for features in others:
        for x, y in zip(features, truth, strict=True):
            difference = float((x - y).abs().max() / y.abs().max())
            if not difference <= TOLERANCE:
                raise UserError(
                    f'{STOCK} computes other features than ours, by {difference:.1e} of the '
                    'largest; different functions are not compared'
                )


def _contestant(
    name: str, runner: Any, batches: Iterator[Any], task: str, dtype: str
) -> WholeModel:
    clock, model = StageClock(), runner.model
    if task == 'infer' and dtype != 'float32':
        keep_edges_in_float32(model)
    for part in ('backbone', 'neck'):
        if hasattr(model, part):
            clock.watch(getattr(model, part), part)
    for path, module in model.named_modules():
        top = path.split('.')[0]
        leaf = not any(True for _ in module.children())
        if leaf and top not in ('backbone', 'neck', 'data_preprocessor', '') and 'loss' not in path:
            clock.watch(module, 'heads')
    if task == 'train':
        step = _training(runner, batches, clock)
    else:
        step = _inference(model, batches, clock, dtype)
    return WholeModel(name, model, step, clock)


def _training(runner: Any, batches: Iterator[Any], clock: StageClock) -> Callable[[], None]:
    model = runner.model
    optimizer = runner.build_optim_wrapper(runner.cfg.optim_wrapper)

    def step() -> None:
        model.train()
        with clock.stage('data'):
            batch = next(batches)
        with optimizer.optim_context(model):
            with clock.stage('preprocessing'):
                data = model.data_preprocessor(batch, True)
            with clock.stage('targets and losses'):
                loss, _ = model.parse_losses(model(**data, mode='loss'))
        with clock.stage('backward'):
            optimizer.backward(optimizer.scale_loss(loss))
        with clock.stage('optimizer'):
            optimizer.step()
            optimizer.zero_grad()

    return step


def _inference(
    model: Any, batches: Iterator[Any], clock: StageClock, dtype: str
) -> Callable[[], None]:
    device = next(model.parameters()).device.type

    @torch.no_grad()
    def step() -> None:
        model.eval()
        with clock.stage('data'):
            batch = next(batches)
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != 'float32'):
            with clock.stage('preprocessing'):
                data = model.data_preprocessor(batch, False)
            with clock.stage('post-processing'):
                model(**data, mode='predict')

    return step


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
