"""The sections of one training's report; each says what it lacks."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from .figures import Series
from .parts import Code, Link, Section, Table, Text, Tiles, chart, duration, number
from .predicted import Validation, by_class, confusion, gallery, precision_recall
from .workdir import Run


def run_sections(run: Run, out: Path) -> list[Section]:
    """Return the sections of one training.

    Args:
        run: The training.
        out: The page's path, which links are relative to.
    """
    validation = Validation(run)
    return [
        Section('summary', 'Summary', summary(run)),
        Section('losses', 'Loss and learning rate', losses([run])),
        Section('accuracy', 'Accuracy over time', accuracy([run])),
        Section('classes', 'Accuracy by class', by_class(validation)),
        Section('precision-recall', 'Precision and recall', precision_recall(validation)),
        Section('confusion', 'Confusion matrix', confusion(validation)),
        Section('speed', 'Speed and memory', speed([run])),
        Section('gallery', 'Validation images', gallery(run, validation)),
        Section('files', 'Checkpoints and files', files(run, out)),
        Section('configuration', 'Configuration', _configuration(run)),
        Section('environment', 'Environment', _environment(run)),
    ]


def progress(run: Run) -> tuple[int, int | str, str]:
    """Return how far a training came, how far it was to go, and the unit of both."""
    cfg = (run.config or {}).get('train_cfg') or {}
    last = run.train[-1] if run.train else {}
    if cfg.get('max_epochs'):
        return last.get('epoch', 0), cfg['max_epochs'], 'epoch'
    return last.get('step', 0), cfg.get('max_iters', '?'), 'iteration'


def images_per_second(run: Run) -> tuple[list[float], list[float]]:
    """Return iterations and the images trained a second at each."""
    steps, times = run.series('time')
    batch = run.batch or math.nan
    return steps, [batch / t if t > 0 else math.nan for t in times]


def median(values: Sequence[float]) -> float:
    """Return the median of the finite values, NaN if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def summary(run: Run) -> list[Any]:
    """Return what a training came to, and what is wrong with its files."""
    tiles = []
    best = run.best()
    if best:
        name = run.metrics[0]
        where = f'{run.unit} {best["step"]}'
        tiles += [(f'Best {name}', number(best[name]), where)]
        tiles += [
            (f'Last {name}', number(run.val[-1].get(name)), f'{run.unit} {run.val[-1]["step"]}')
        ]
    steps, loss = run.series('loss')
    if loss:
        tiles += [('Last loss', number(loss[-1]), f'iteration {steps[-1]}')]
    done, total, unit = progress(run)
    sessions = f'in {len(run.sessions)} session{"s" * (len(run.sessions) > 1)}'
    tiles += [(f'Trained {unit}s', f'{done} of {total}', sessions)]
    if run.train:
        tiles += [('Time in iterations', duration(run.seconds), 'without validation')]
        typical = median(images_per_second(run)[1])
        tiles += [('Images a second', number(typical, 3), f'median, batch {run.batch or "?"}')]
    memory = run.series('memory')[1]
    if memory:
        tiles += [('GPU memory', f'{max(memory) / 1024:.1f} GiB', 'peak of the first GPU')]
    lost = [s for s, v in zip(steps, loss, strict=True) if not math.isfinite(v)]
    parts: list[Any] = [Tiles(tiles)]
    if lost:
        text = f'The loss is not finite in {len(lost)} of {len(loss)} records, first at iteration'
        parts += [Text(f'{text} {lost[0]}.', warning=True)]
    return parts + [Text(f'{remark}.', warning=True) for remark in run.remarks]


def losses(runs: Sequence[Run]) -> list[Any]:
    """Return the curves of losses and learning rates."""
    if not any(run.series('loss')[0] for run in runs):
        return [
            Text('No loss was logged; the first record comes after logger.interval iterations.')
        ]
    if len(runs) > 1:
        parts = [chart('Loss', _of(runs, 'loss'), 'iteration', 'loss')]
    else:
        names = dict.fromkeys(key for record in runs[0].train for key in record)
        names = [n for n in names if 'loss' in n and n != 'loss'][:7]
        # One part that is the whole loss would hide it.
        names = ['loss', *(names if len(names) > 1 else [])]
        lines = [Series(name, *runs[0].series(name)) for name in names]
        parts = [chart('Loss', lines, 'iteration', 'loss')]
    parts += [chart('Learning rate', _of(runs, 'lr'), 'iteration', 'learning rate')]
    if any(run.series('grad_norm')[0] for run in runs):
        parts += [chart('Gradient norm', _of(runs, 'grad_norm'), 'iteration', 'norm')]
    return parts


def accuracy(runs: Sequence[Run]) -> list[Any]:
    """Return the validations' figures over time."""
    measured = [run for run in runs if run.metrics]
    if not measured:
        return [Text('No validation has given figures: it was not due yet, or found nothing.')]
    if len(runs) > 1:
        charts = []
        for name in dict.fromkeys(run.metrics[0] for run in measured):
            units = dict.fromkeys(run.unit for run in measured if name in run.metrics)
            charts += [chart(name, _of(measured, name, 'val'), ' or '.join(units), name)]
        return charts
    [run] = runs
    # Figures of boxes, of masks and of the rest, each in their own chart.
    groups: dict[str, list[str]] = {}
    for name in run.metrics:
        groups.setdefault(name.split('_')[0] if '_' in name else '', []).append(name)
    charts = []
    for prefix, names in groups.items():
        lines = [Series(name, *run.series(name, 'val')) for name in names[:8]]
        charts += [chart(f'Validation: {prefix or "figures"}', lines, run.unit, 'value')]
    return charts


def speed(runs: Sequence[Run]) -> list[Any]:
    """Return the curves of speed and memory."""
    timed = [run for run in runs if run.series('time')[0]]
    if not timed:
        return [Text('No time of an iteration was logged.')]
    lines = [Series(run.name, *images_per_second(run)) for run in timed]
    parts: list[Any] = []
    if any(math.isfinite(v) for line in lines for v in line.y):
        parts += [chart('Images trained a second', lines, 'iteration', 'images / s')]
    if len(runs) == 1:
        times = [Series(name, *runs[0].series(key)) for name, key in _TIMES.items()]
        parts += [chart('Time of an iteration', times, 'iteration', 'seconds')]
    memory = [Series(run.name, *run.series('memory')) for run in runs if run.series('memory')[0]]
    if memory:
        parts += [chart('Peak of GPU memory', memory, 'iteration', 'MiB')]
    else:
        parts += [Text('No memory was logged: mmengine measures that of GPUs only.')]
    return parts


_TIMES = {'all': 'time', 'waiting for data': 'data_time'}


def files(run: Run, out: Path) -> list[Any]:
    """Return links to a work directory's files."""
    last = run.folder / 'last_checkpoint'
    last_name = Path(last.read_text().strip()).name if last.is_file() else ''
    rows = []
    for path in sorted(run.folder.glob('*.pth'), key=lambda p: p.stat().st_mtime):
        stat = path.stat()
        note = 'last' if path.name == last_name else 'best' if path.name.startswith('best_') else ''
        written = time.strftime('%Y-%m-%d %H:%M', time.localtime(stat.st_mtime))
        rows.append([link(path, out), f'{stat.st_size / 2**20:.1f} MiB', written, note])
    parts: list[Any] = [
        Table('Checkpoints', ['file', 'size', 'written', 'note'], rows)
        if rows
        else Text('There is no checkpoint in the work directory.')
    ]
    others = [path for name in run.sessions for path in sorted((run.folder / name).glob('*.log'))]
    others += [run.folder / name / 'vis_data' / 'scalars.json' for name in run.sessions]
    others += sorted(run.folder.glob('*.py')) + sorted((run.folder / 'validation').glob('*.json'))
    rows = [[link(path, out), f'{path.stat().st_size / 1024:.0f} KiB'] for path in others]
    return [*parts, Table('Logs, configs and predictions', ['file', 'size'], rows, folded=True)]


def _configuration(run: Run) -> list[Any]:
    if not run.config:
        return [Text('The config was not found.')]
    cfg = run.config.to_dict()
    rows = []
    for label, place in _SETTINGS:
        node: Any = cfg
        for part in place.split('.'):
            node = node.get(part) if isinstance(node, dict) else None
        if node is not None and not isinstance(node, (dict, list)):
            rows.append([label, str(node)])
    rows.append(['images of an iteration', str(run.batch or '?')])
    table = Table('Settings', ['setting', 'value'], rows)
    return [table, Code('The whole config', run.config_text)]


_SETTINGS = [
    ('model', 'model.type'), ('backbone', 'model.backbone.type'), ('size', 'model.backbone.arch'),
    ('drop path', 'model.backbone.drop_path_rate'),
    ('backbone weights', 'model.backbone.init_cfg.checkpoint'), ('started from', 'load_from'),
    ('data set', 'train_dataloader.dataset.type'), ('data', 'data_root'),
    ('images of a process', 'train_dataloader.batch_size'),
    ('optimizer', 'optim_wrapper.optimizer.type'), ('learning rate', 'optim_wrapper.optimizer.lr'),
    ('weight decay', 'optim_wrapper.optimizer.weight_decay'),
    ('accumulated batches', 'optim_wrapper.accumulative_counts'),
    ('epochs', 'train_cfg.max_epochs'), ('iterations', 'train_cfg.max_iters'),
    ('seed', 'randomness.seed'),
]  # fmt: skip


def _environment(run: Run) -> list[Any]:
    if not run.environment:
        return [Text('The log, which tells the environment, was not found or has no such lines.')]
    return [Table('As logged when training began', ['name', 'value'], [*run.environment.items()])]


def _of(runs: Sequence[Run], name: str, split: str = 'train') -> list[Series]:
    # One run's line needs no name but the figure's.
    return [Series(run.name if len(runs) > 1 else name, *run.series(name, split)) for run in runs]


def link(path: Path, out: Path, text: str | None = None) -> Link:
    """Return a link to a file, relative to the page."""
    relative = os.path.relpath(path.resolve(), out.resolve().parent)
    return Link(text or relative, quote(relative))
