"""The sections of a page that compares trainings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .parts import NONE, Section, Share, Table, Text, duration, number, share
from .predicted import Validation, by_class_values
from .sections import accuracy, images_per_second, link, losses, median, progress, speed
from .workdir import Run, flatten

# What every run has differently.
_PRIVATE = ('work_dir', 'resume', 'load_from')


def name_apart(runs: Sequence[Run]) -> None:
    """Give trainings whose folders have the same name the names of their paths."""
    counts = Counter(run.name for run in runs)
    seen: Counter[str] = Counter()
    for run in runs:
        if counts[run.name] > 1:
            run.name = '/'.join(run.folder.parts[-2:])
    for run in runs:
        seen[run.name] += 1
        if seen[run.name] > 1:
            run.name = f'{run.name} ({seen[run.name]})'


def comparison_sections(runs: Sequence[Run], out: Path) -> list[Section]:
    """Return the sections of a page that compares trainings.

    Args:
        runs: The trainings, with names of their own.
        out: The page's path, which links are relative to.
    """
    return [
        Section('summary', 'Summary', _summary(runs, out)),
        Section('losses', 'Loss and learning rate', losses(runs)),
        Section('accuracy', 'Accuracy over time', accuracy(runs)),
        Section('classes', 'Accuracy by class', _by_class(runs)),
        Section('speed', 'Speed and memory', speed(runs)),
        Section('configuration', 'What differs in the configurations', _differences(runs)),
        Section('environment', 'What differs in the environments', _environments(runs)),
    ]


def _summary(runs: Sequence[Run], out: Path) -> list[Any]:
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
    rows = []
    for run in runs:
        best, loss = run.best(), run.series('loss')[1]
        name = run.metrics[0] if run.metrics else NONE
        page = run.folder / 'report.html'
        rows.append(
            [
                link(page, out, run.name) if page.is_file() else run.name,
                name,
                number(best[name]) if best else NONE,
                f'{run.unit} {best["step"]}' if best else NONE,
                number(run.val[-1].get(name)) if run.val else NONE,
                number(loss[-1]) if loss else NONE,
                number(median(images_per_second(run)[1]), 3),
                duration(run.seconds),
                '{} of {} {}s'.format(*progress(run)),
            ]
        )
    remarks = [Text(f'{run.name}: {r}.', warning=True) for run in runs for r in run.remarks]
    return [Table('The trainings', header, rows), *remarks]


def _by_class(runs: Sequence[Run]) -> list[Any]:
    parts: list[Any] = []
    columns: dict[str, dict[str, Share]] = {}
    for run in runs:
        validation = Validation(run)
        if validation.problem:
            parts.append(Text(f'{run.name}: {validation.problem}'))
        classes, values = by_class_values(validation)
        if values:
            name, main = next(iter(values.items()))
            cells = [share(value) for value in main]
            columns[f'{run.name}: {name}'] = dict(zip(classes, cells, strict=True))
    if columns:
        classes = dict.fromkeys(name for column in columns.values() for name in column)
        absent = Share(NONE, 0.0)
        rows = [[name, *(c.get(name, absent) for c in columns.values())] for name in classes]
        parts.append(Table('Each class in percent, last validation', ['class', *columns], rows))
    return parts


def _differences(runs: Sequence[Run]) -> list[Any]:
    missing = [Text(f'{run.name}: the config was not found.') for run in runs if not run.config]
    known = [dict(flatten(run.config.to_dict() if run.config else {})) for run in runs]
    return [*missing, *_table('Entries that differ', runs, known)]


def _environments(runs: Sequence[Run]) -> list[Any]:
    return _table('Lines that differ', runs, [run.environment for run in runs])


def _table(caption: str, runs: Sequence[Run], known: Sequence[dict[str, str]]) -> list[Any]:
    keys = sorted({key for entries in known for key in entries})
    keys = [key for key in keys if key not in _PRIVATE and not key.endswith('_scope_')]
    rows = [
        [key, *(entries.get(key, NONE) for entries in known)]
        for key in keys
        if len({entries.get(key) for entries in known}) > 1
    ]
    if not rows:
        return [Text('There is no difference.')]
    return [Table(caption, ['name', *(run.name for run in runs)], rows)]
