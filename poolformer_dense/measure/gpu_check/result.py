"""What a stage is told, and what it finds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Setting:
    """How stages run.

    Attributes:
        dry: On a CPU, with tiny shapes: every code path that there is one for, and no figures.
        out: The folder of the results.
    """

    dry: bool
    out: Path

    @property
    def device(self) -> str:
        return 'cpu' if self.dry else 'cuda'

    @property
    def backend(self) -> str:
        """Ours; Triton's interpreter would take minutes, and the kernels' own stages use it."""
        return 'auto' if self.dry else 'triton'

    def pick(self, real: Any, dry: Any) -> Any:
        """Return what a GPU gets, or the smaller thing of a dry run."""
        return dry if self.dry else real


@dataclass
class StageResult:
    """Attributes: the stage; rows of a table; what was left out and why; whether all was right."""

    stage: str
    dry: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        """Add a row; a later one may have other columns."""
        self.rows.append(row)

    def check(self, right: bool, what: str) -> None:
        """Note what is not as it must be."""
        if not right:
            self.failed.append(what)

    def write(self, folder: Path) -> None:
        """Write it as JSON, named by the stage."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{self.stage}.json').write_text(json.dumps(asdict(self), indent=2) + '\n')

    def show(self, console: Console) -> None:
        """Print a table, then what is missing and what failed."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        title = f'{self.stage} (dry: times mean nothing)' if self.dry else self.stage
        table = Table(*columns, title=title)
        for row in self.rows:
            table.add_row(*(_text(row.get(column, '')) for column in columns))
        console.print(table)
        for line in self.missing:
            console.print(f'missing: {line}', soft_wrap=True, markup=False)
        for line in self.failed:
            console.print(f'FAILED: {line}', soft_wrap=True, markup=False)


def median_milliseconds(run: Callable[[], object], setting: Setting, repeats: int = 20) -> float:
    """The median time of a call, by events on a GPU."""
    run()
    times = []
    for _ in range(setting.pick(repeats, 1)):
        if setting.dry:
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
            continue
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last))
    return sorted(times)[len(times) // 2]


def _text(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
