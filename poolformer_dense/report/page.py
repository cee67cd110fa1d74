"""From work directories to one HTML file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import jinja2

from ..files import replacing
from .comparison import comparison_sections, name_apart
from .sections import run_sections
from .workdir import read_run


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of a training, or the comparison of several.

    Args:
        folders: Work directories.
        out: The file; by default ``report.html`` in the work directory, or ``comparison.html``
            in the current folder.

    Returns:
        The file's path.

    Raises:
        UserError: A folder is not a work directory of a training.
    """
    runs = [read_run(folder) for folder in folders]
    if len(runs) == 1:
        out = out or folders[0] / 'report.html'
        title, sections = f'Training report: {runs[0].name}', run_sections(runs[0], out)
    else:
        out = out or Path('comparison.html')
        name_apart(runs)
        title, sections = f'Comparison of {len(runs)} trainings', comparison_sections(runs, out)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template('page.html.j2').render(
        title=title, sections=sections, made=time.strftime('%Y-%m-%d %H:%M')
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        file.write(text.encode())
    return out
