"""Text that people read: names out of files and configs never steer a terminal or a page."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# Control and format characters (bidirectional overrides are among them), lone surrogates (bytes of
# a file name that are no text), ends of lines and paragraphs.
_STEERING = ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')
# Scripts and emoji are written with these two.
_JOINERS = '\u200c\u200d'


def printable(text: object) -> str:
    r"""Return a text in one line, with escapes such as ``\x1b`` for what would steer a terminal."""
    text = str(text)
    if text.isprintable():
        return text
    return ''.join(_escape(character) for character in text)


def printable_lines(text: object) -> str:
    """Return a text as `printable` does, but keep its line ends and tabs."""
    text = str(text)
    if text.isprintable():
        return text
    return ''.join(c if c in '\n\t' else _escape(c) for c in text)


def say(text: object, file: TextIO | None = None) -> None:
    """Print lines that may have names in them; standard output is the default."""
    print(printable_lines(text), file=file, flush=True)


class PrintableRecord(logging.LogRecord):
    """A record of a log whose message can be printed."""

    def getMessage(self) -> str:
        return printable_lines(super().getMessage())


def tell(text: object) -> None:
    """Write a line to standard error at once, whatever locks other threads of the process hold."""
    os.write(2, f'{printable(text)}\n'.encode(errors='replace'))


@contextmanager
def printable_logs() -> Iterator[None]:
    """Make what is logged in this context printable, whoever logs it."""
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(PrintableRecord)
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _STEERING or character in _JOINERS:
        return character
    return character.encode('unicode_escape').decode()
