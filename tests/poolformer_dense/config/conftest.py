"""Fixtures of the tests of configs and of the checks before a run."""

from __future__ import annotations

import logging

import pytest
from mmengine.logging import MMLogger


class Lines(logging.Handler):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def logged(request: pytest.FixtureRequest) -> list[str]:
    """What mmengine's current logger has been given in this test."""
    handler = Lines()
    MMLogger.get_instance(request.node.nodeid).addHandler(handler)  # now it is the current one
    return handler.lines
