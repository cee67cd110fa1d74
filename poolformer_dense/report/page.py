"""From work directories to one HTML file."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..files import replacing
from ..terminal import printable_lines
from . import sections
from .parts import Section
from .predicted import Predictions, compare_classes
from .workdir import Run, read_run


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of a training, or the comparison of several.

    Args:
        folders: Work directories.
        out: The file; by default ``report.html`` in the work directory, or ``comparison.html``
            in the folder that holds them all.

    Returns:
        The file's path.

    Raises:
        UserError: A folder is not a work directory of a training.
    """
    runs = [read_run(folder) for folder in folders]
    if len(runs) == 1:
        out = out or folders[0] / 'report.html'
        title, content = f'Training report: {runs[0].name}', _report(runs[0], out)
    else:
        out = out or _common_folder(folders) / 'comparison.html'
        _name_apart(runs)
        title, content = f'Comparison of {len(runs)} trainings', _comparison(runs, out)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    text = environment.get_template('page.html.j2').render(
        title=title, sections=content, made=time.strftime('%Y-%m-%d %H:%M')
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        file.write(text.encode())
    return out


def _common_folder(folders: Sequence[Path]) -> Path:
    """Return the folder beside whose folders these are, or the current one if they share none."""
    common = os.path.commonpath([os.path.dirname(os.path.abspath(folder)) for folder in folders])
    relative = os.path.relpath(common)
    if common == os.path.abspath(os.sep):
        return Path()
    return Path(common if relative.startswith(os.pardir) else relative)


def _shown(value: Any) -> Any:
    return printable_lines(value) if type(value) is str else value


def _report(run: Run, out: Path) -> list[Section]:
    predictions = Predictions(run)
    return [
        Section('summary', 'Summary', sections.summary(run)),
        Section('losses', 'Loss and learning rate', sections.losses([run])),
        Section('accuracy', 'Accuracy over time', sections.accuracy([run])),
        Section('classes', 'Accuracy by class', predictions.by_class()),
        Section('precision-recall', 'Precision and recall', predictions.precision_recall()),
        Section('confusion', 'Confusion matrix', predictions.confusions()),
        Section('speed', 'Speed and memory', sections.speed([run])),
        Section('gallery', 'Validation images', predictions.gallery()),
        Section('files', 'Checkpoints and files', sections.file_links(run, out)),
        Section('configuration', 'Configuration', sections.configuration(run)),
        Section('environment', 'Environment', sections.machine(run)),
    ]


def _comparison(runs: Sequence[Run], out: Path) -> list[Section]:
    differing = 'What differs in the configurations', 'What differs in the environments'
    return [
        Section('summary', 'Summary', sections.compare_summaries(runs, out)),
        Section('losses', 'Loss and learning rate', sections.losses(runs)),
        Section('accuracy', 'Accuracy over time', sections.accuracy(runs)),
        Section('classes', 'Accuracy by class', compare_classes(runs)),
        Section('speed', 'Speed and memory', sections.speed(runs)),
        Section('configuration', differing[0], sections.compare_configurations(runs)),
        Section('environment', differing[1], sections.compare_environments(runs)),
    ]


def _name_apart(runs: Sequence[Run]) -> None:
    """Give trainings whose folders have the same name the names of their paths."""
    counts = Counter(run.name for run in runs)
    seen: Counter[str] = Counter()
    for run in runs:
        if counts[run.name] > 1:
            run.name = '/'.join(run.folder.parts[-2:])
        seen[run.name] += 1
        if seen[run.name] > 1:
            run.name = f'{run.name} ({seen[run.name]})'
