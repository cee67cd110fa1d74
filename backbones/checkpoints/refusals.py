"""What goes wrong with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence


class CheckpointError(ValueError):
    """A checkpoint that can't be read or doesn't fit the model."""


class Refused(Exception):
    """Why a file is not read, and what to do about it; `read_checkpoint` adds the file's name."""


def damaged(what: str) -> Refused:
    """The refusal of a file that is not as it was written."""
    return Refused(
        f'{what}: it is truncated, damaged or not written by torch.save; copy or download it again'
    )


def forged(what: str) -> Refused:
    """The refusal of a file that torch.save would not have written."""
    return Refused(
        f'{what}, which torch.save never writes; get it from a source that you trust, or save it '
        'again with torch.save'
    )


def holds_code(what: str) -> Refused:
    """The refusal of a file that would have to be run to be read."""
    return Refused(
        f'it holds {what}: objects other than tensors and plain data are never run; if you trust '
        'whoever made it, convert it with tools/convert_checkpoint.py --unsafe-load'
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's name if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def listed(what: str, names: Sequence[str], most: int = 6) -> str:
    """Count names and show the first of them on one line, e.g. ``2 missing (a, b)``."""
    shown = ', '.join(names[:most]) + (
        f' and {len(names) - most} more' if len(names) > most else ''
    )
    return f'{len(names)} {what}' + (f' ({shown})' if names else '')
