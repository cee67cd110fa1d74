"""The long tests of `make soak`, and the table of what they did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.poolformer_dense.runner.conftest import runs, warmed

__all__ = ['runs', 'warmed']

TABLE = Path('build/soak.md')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.soak)


@pytest.fixture
def tally(record_property: Callable[[str, str], None]) -> Callable[[str], None]:
    """Say in the table what a test did, in figures."""
    return lambda done: record_property('done', done)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report for name in ('passed', 'failed') for report in terminalreporter.stats.get(name, [])
    ]
    rows = [
        f'| {report.nodeid.split("::", 1)[1]} | {done} | {report.outcome} '
        f'| {report.duration:.0f} s |'
        for report in reports
        for name, done in getattr(report, 'user_properties', [])
        if name == 'done'
    ]
    if not rows:
        return
    lines = ['| test | what it did | outcome | time |', '|---|---|---|---|', *sorted(rows)]
    terminalreporter.section('soak')
    for line in lines:
        terminalreporter.line(line)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text('\n'.join(lines) + '\n')
    terminalreporter.line(f'written to {TABLE}')
