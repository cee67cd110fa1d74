"""What goes wrong with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence


class CheckpointError(ValueError):
    """A checkpoint that can't be read or doesn't fit the model."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's name if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def listed(what: str, names: Sequence[str], most: int = 6) -> str:
    """Count names and show the first of them on one line, e.g. ``2 missing (a, b)``."""
    shown = ', '.join(names[:most]) + (
        f' and {len(names) - most} more' if len(names) > most else ''
    )
    return f'{len(names)} {what}' + (f' ({shown})' if names else '')
