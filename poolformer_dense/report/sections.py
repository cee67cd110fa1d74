"""The sections made from a work directory's logs and config; each says what it lacks."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .figures import Series, chart
from .parts import NONE, Cell, Code, Part, Row, Table, Text, Tiles, duration, number
from .workdir import Run

# What every training has differently.
_PRIVATE = ('work_dir', 'resume', 'load_from')
# How CocoMetric(classwise=True) names the AP of a class.
_OF_A_CLASS = '_precision'
_TIMES = {'all': 'time', 'waiting for data': 'data_time'}
_SETTINGS = {
    'model': 'model.type', 'backbone': 'model.backbone.type', 'size': 'model.backbone.arch',
    'drop path': 'model.backbone.drop_path_rate',
    'backbone weights': 'model.backbone.init_cfg.checkpoint', 'started from': 'load_from',
    'data set': 'train_dataloader.dataset.type', 'data': 'data_root',
    'images of a process': 'train_dataloader.batch_size',
    'optimizer': 'optim_wrapper.optimizer.type', 'learning rate': 'optim_wrapper.optimizer.lr',
    'weight decay': 'optim_wrapper.optimizer.weight_decay',
    'accumulated batches': 'optim_wrapper.accumulative_counts',
    'epochs': 'train_cfg.max_epochs', 'iterations': 'train_cfg.max_iters',
    'seed': 'randomness.seed',
}  # fmt: skip


def summary(run: Run) -> list[Part]:
    """Return what a training came to, and what is wrong with its files."""
    tiles = []
    best = run.best()
    if best:
        name, last = run.metrics[0], run.val[-1]
        tiles += [
            (f'Best {name}', _figure(run, best), f'{run.unit} {best["step"]}'),
            (f'Last {name}', _figure(run, last), f'{run.unit} {last["step"]}'),
        ]
    steps, loss = run.series('loss')
    if loss:
        tiles.append(('Last loss', number(loss[-1]), f'iteration {steps[-1]}'))
    done, total, unit = run.progress
    sessions = f'in {len(run.sessions)} session{"s" * (len(run.sessions) > 1)}'
    tiles.append((f'Trained {unit}s', f'{done} of {total}', sessions))
    if run.train:
        tiles += [
            ('Time in iterations', duration(run.seconds), 'without validation'),
            ('Images a second', _typical_speed(run), f'median, batch {run.batch or "?"}'),
        ]
    memory = run.series('memory')[1]
    if memory:
        tiles.append(('GPU memory', f'{max(memory) / 1024:.1f} GiB', 'peak of the first GPU'))
    parts: list[Part] = [Tiles(tiles)]
    lost = [s for s, v in zip(steps, loss, strict=True) if not math.isfinite(v)]
    if lost:
        text = f'The loss is not finite in {len(lost)} of {len(loss)} records, first at iteration'
        parts.append(Text(f'{text} {lost[0]}.', warning=True))
    return parts + [Text(f'{remark}.', warning=True) for remark in run.remarks]


def compare_summaries(runs: Sequence[Run], out: Path) -> list[Part]:
    """Return a table with a row for each training, which leads to its own page if it has one."""
    header = [
        'training',
        'figure',
        'best',
        'at',
        'last',
        'last loss',
        'images/s',
        'time',
        'trained',
    ]
    rows: list[Row] = []
    for run in runs:
        best, loss = run.best(), run.series('loss')[1]
        name = run.metrics[0] if run.metrics else NONE
        page = run.folder / 'report.html'
        rows.append(
            [
                _link(page, out, run.name) if page.is_file() else run.name,
                name,
                _figure(run, best) if best else NONE,
                f'{run.unit} {best["step"]}' if best else NONE,
                _figure(run, run.val[-1]) if run.val else NONE,
                number(loss[-1]) if loss else NONE,
                _typical_speed(run),
                duration(run.seconds),
                '{} of {} {}s'.format(*run.progress),
            ]
        )
    remarks = [Text(f'{run.name}: {r}.', warning=True) for run in runs for r in run.remarks]
    return [Table('The trainings', header, rows), *remarks]


def losses(runs: Sequence[Run]) -> list[Part]:
    """Return the curves of losses, learning rates and gradient norms."""
    if not any(run.series('loss')[0] for run in runs):
        return [
            Text('No loss was logged; the first record comes after logger.interval iterations.')
        ]
    names = ['loss']
    if len(runs) == 1:
        known = dict.fromkeys(key for record in runs[0].train for key in record)
        parts = [n for n in known if 'loss' in n and n != 'loss'][:7]
        # One part that is the whole loss would hide it.
        names += parts if len(parts) > 1 else []
    lines = [line for name in names for line in _lines(runs, name)]
    charts = [chart('Loss', lines, 'iteration', 'loss')]
    charts += [chart('Learning rate', _lines(runs, 'lr'), 'iteration', 'learning rate')]
    if any(run.series('grad_norm')[0] for run in runs):
        charts += [chart('Gradient norm', _lines(runs, 'grad_norm'), 'iteration', 'norm')]
    return [*charts]


def accuracy(runs: Sequence[Run]) -> list[Part]:
    """Return the validations' figures over time."""
    measured = [run for run in runs if run.metrics]
    if not measured:
        return [Text('No validation has given figures: it was not due yet, or found nothing.')]
    if len(runs) > 1:
        charts = []
        for name in dict.fromkeys(run.metrics[0] for run in measured):
            units = dict.fromkeys(run.unit for run in measured if name in run.metrics)
            label = f'{name} in percent' if measured[0].in_percent(name) else name
            charts += [chart(name, _lines(measured, name, 'val'), ' or '.join(units), label)]
        return [*charts]
    # Figures of boxes, of masks and of the rest, each in their own chart.
    groups: dict[str, list[str]] = {}
    single = [name for name in runs[0].metrics if name.endswith(_OF_A_CLASS)]
    for name in runs[0].metrics:
        if name in single:
            continue
        evaluator, _, figure = name.rpartition('/')
        prefix = f'{evaluator}/{figure.split("_")[0]}' if '_' in figure else evaluator
        groups.setdefault(prefix, []).append(name)
    charts = []
    for prefix, names in groups.items():
        lines = [line for name in names[:8] for line in _lines(runs, name, 'val')]
        label = 'percent' if all(map(runs[0].in_percent, names[:8])) else 'value'
        charts += [chart(f'Validation: {prefix or "figures"}', lines, runs[0].unit, label)]
    return [*charts, *_classwise(runs[0], single)]


def _classwise(run: Run, names: Sequence[str]) -> list[Part]:
    """Return charts of the AP of each class over time, one for each evaluator that tells it.

    Of many classes the best and the worst are named, and a table lists all.
    """
    evaluators: dict[str, list[Series]] = {}
    for name in names:
        evaluator, _, figure = name.rpartition('/')
        line = Series(figure.removesuffix(_OF_A_CLASS), *run.series(name, 'val'))
        if any(math.isfinite(value) for value in line.y):
            evaluators.setdefault(evaluator, []).append(line)
    charts: list[Part] = []
    for evaluator, lines in evaluators.items():
        lines.sort(key=lambda line: [v for v in line.y if math.isfinite(v)][-1], reverse=True)
        title = f'Validation: AP of each class{f" ({evaluator})" if len(evaluators) > 1 else ""}'
        table = None
        if len(lines) > 7:
            for line in lines[3:-3]:
                line.faint = True
            rows: list[Row] = [
                [line.label, number(max(filter(math.isfinite, line.y))), number(line.y[-1])]
                for line in lines
            ]
            table = Table(f'{title}: figures', ['class', 'best', 'last'], rows, folded=True)
        charts.append(chart(title, lines, run.unit, 'AP in percent', table=table))
    return charts


def speed(runs: Sequence[Run]) -> list[Part]:
    """Return the curves of speed and memory."""
    timed = [run for run in runs if run.series('time')[0]]
    if not timed:
        return [Text('No time of an iteration was logged.')]
    lines = [Series(run.name, *run.images_per_second()) for run in timed]
    parts: list[Part] = []
    if any(math.isfinite(v) for line in lines for v in line.y):
        parts.append(chart('Images trained a second', lines, 'iteration', 'images / s'))
    if len(runs) == 1:
        times = [Series(name, *runs[0].series(key)) for name, key in _TIMES.items()]
        parts.append(chart('Time of an iteration', times, 'iteration', 'seconds'))
    memory = [Series(run.name, *run.series('memory')) for run in runs if run.series('memory')[0]]
    if memory:
        parts.append(chart('Peak of GPU memory', memory, 'iteration', 'MiB'))
    else:
        parts.append(Text('No memory was logged: mmengine measures that of GPUs only.'))
    return parts


def file_links(run: Run, out: Path) -> list[Part]:
    """Return links to a work directory's files."""
    last = run.folder / 'last_checkpoint'
    last_name = Path(last.read_text(errors='replace').strip()).name if last.is_file() else ''
    rows: list[Row] = []
    for path in sorted(run.folder.glob('*.pth'), key=lambda p: p.stat().st_mtime):
        stat = path.stat()
        note = 'last' if path.name == last_name else 'best' if path.name.startswith('best_') else ''
        written = time.strftime('%Y-%m-%d %H:%M', time.localtime(stat.st_mtime))
        rows.append([_link(path, out), f'{stat.st_size / 2**20:.1f} MiB', written, note])
    checkpoints: Part = Text('There is no checkpoint in the work directory.')
    if rows:
        checkpoints = Table('Checkpoints', ['file', 'size', 'written', 'note'], rows)
    others = [path for name in run.sessions for path in sorted((run.folder / name).glob('*.log'))]
    others += [run.folder / name / 'vis_data' / 'scalars.json' for name in run.sessions]
    others += sorted(run.folder.glob('*.py')) + sorted((run.folder / 'validation').glob('*.json'))
    rows = [[_link(path, out), f'{path.stat().st_size / 1024:.0f} KiB'] for path in others]
    caption = 'Logs, configs and predictions'
    return [checkpoints, Table(caption, ['file', 'size'], rows, folded=True)]


def configuration(run: Run) -> list[Part]:
    """Return the settings that matter most, and the whole config."""
    if not run.config:
        return [Text('The config was not found.')]
    values = {label: run.setting(place) for label, place in _SETTINGS.items()}
    rows = [
        [label, str(value)]
        for label, value in values.items()
        if value is not None and not isinstance(value, (dict, list))
    ]
    rows.append(['images of an iteration', str(run.batch or '?')])
    return [
        Table('Settings', ['setting', 'value'], rows),
        Code('The whole config', run.config_text),
    ]


def compare_configurations(runs: Sequence[Run]) -> list[Part]:
    """Return a table of the configs' entries that differ."""
    missing = [Text(f'{run.name}: the config was not found.') for run in runs if not run.config]
    known = [dict(_flatten(run.config)) for run in runs]
    return [*missing, _differences('Entries that differ', runs, known)]


def machine(run: Run) -> list[Part]:
    """Return what the log says of the machine."""
    if not run.environment:
        return [Text('The log, which tells the environment, was not found or has no such lines.')]
    return [Table('As logged when training began', ['name', 'value'], [*run.environment.items()])]


def compare_environments(runs: Sequence[Run]) -> list[Part]:
    """Return a table of what the logs say differently of the machines."""
    return [_differences('Lines that differ', runs, [run.environment for run in runs])]


def _typical_speed(run: Run) -> str:
    finite = [value for value in run.images_per_second()[1] if math.isfinite(value)]
    return number(statistics.median(finite) if finite else None, 3)


def _figure(run: Run, record: Mapping[str, Any]) -> str:
    """Return the text of a record's main figure, with its unit."""
    name = run.metrics[0] if run.metrics else ''
    text = number(record.get(name))
    return f'{text} %' if text != NONE and run.in_percent(name) else text


def _lines(runs: Sequence[Run], name: str, split: str = 'train') -> list[Series]:
    # One run's line needs no name but the figure's.
    return [Series(run.name if len(runs) > 1 else name, *run.series(name, split)) for run in runs]


def _link(path: Path, out: Path, text: str = '') -> Cell:
    """Return a link to a file, relative to the page."""
    relative = os.path.relpath(path.resolve(), out.resolve().parent)
    return Cell(text or relative, href=quote(relative))


def _flatten(node: Any, place: str = '') -> Iterator[tuple[str, str]]:
    """Yield a config's entries by their dotted names."""
    if isinstance(node, dict) and node:
        items = [(key, node[key]) for key in sorted(node, key=str)]
    elif isinstance(node, (list, tuple)) and any(isinstance(child, dict) for child in node):
        items = list(enumerate(node))
    else:
        yield place, repr(node)
        return
    for key, child in items:
        yield from _flatten(child, f'{place}.{key}'.lstrip('.'))


def _differences(caption: str, runs: Sequence[Run], known: Sequence[dict[str, str]]) -> Part:
    keys = sorted({key for entries in known for key in entries})
    rows = [
        [key, *(entries.get(key, NONE) for entries in known)]
        for key in keys
        if key not in _PRIVATE and not key.endswith('_scope_')
        if len({entries.get(key) for entries in known}) > 1
    ]
    if not rows:
        return Text('There is no difference.')
    return Table(caption, ['name', *(run.name for run in runs)], rows)
