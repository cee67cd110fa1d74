"""Downloading into a file so that a transfer that is cut, killed or restarted resumes.

What tells two versions of the file apart (RFC 9110: the strong ETag, or Last-Modified) is kept
beside it, and a later request asks for the missing bytes on the condition that it is the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

Note = dict[str, Any]
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_CONTENT_RANGE = re.compile(r'bytes (\d+)-\d+/(\d+|\*)')


class TransferError(Exception):
    """A file that could not be downloaded.

    Attributes:
        refused: The server said no, so that another attempt is of no use.
    """

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class _Cut(Exception):
    """The transfer ended early; another attempt may resume it."""


def transfer(
    url: str,
    file: BinaryIO,
    note: Note,
    remember: Callable[[Note], None],
    begin: Callable[[int, int | None], None] = lambda have, total: None,
    advance: Callable[[int], None] = lambda count: None,
    attempts: int = 6,
    backoff: float = 1.0,
) -> None:
    """Append to a file what it lacks.

    Args:
        url: An http(s) address.
        file: Open to read and to append; what it holds came from the same address.
        note: What ``remember`` was last given for this file.
        remember: Keeps a note on the version that follows; called before its first byte is written.
        begin: Told how many bytes are there, and of how many, when a request has been answered.
        advance: Told how many bytes have come.
        attempts: How often in a row nothing new may come.
        backoff: Seconds before the second attempt; doubled each time nothing new has come.

    Raises:
        TransferError: The server refuses or can't be reached; what has come stays.
    """
    failures = 0
    while True:
        before = file.seek(0, 2)
        if before and before == note.get('total'):
            return
        try:
            with _request(url, file, note) as response:
                start, note = _start(response, file, note, remember)
                begin(start, note['total'])
                while chunk := _read(response):
                    file.write(chunk)
                    advance(len(chunk))
            if note['total'] in (None, file.seek(0, 2)):
                return
            raise _Cut(f'the connection was cut after {file.tell():,} of {note["total"]:,} bytes')
        except _Cut as error:
            failures = 0 if file.seek(0, 2) > before else failures + 1
            if failures == attempts:
                raise TransferError(f'{error}, {failures} times in a row') from error
            time.sleep(backoff * 2**failures)


def _request(url: str, file: BinaryIO, note: Note) -> HTTPResponse:
    headers = {'User-Agent': 'poolformer-dense'}
    if have := file.seek(0, 2):
        headers['Range'] = f'bytes={have}-'
        if note.get('version'):
            headers['If-Range'] = note['version']
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:  # no such range: the file is shorter than what we have
            file.truncate(0)
        what = f'the server answers {error.code} {error.reason}'
        if error.code in (408, 416, 425, 429) or error.code >= 500:
            raise _Cut(what) from error
        raise TransferError(what, refused=True) from error
    except (URLError, HTTPException, OSError) as error:
        raise _Cut(f'no answer ({getattr(error, "reason", None) or error!r})') from error


def _start(
    response: HTTPResponse, file: BinaryIO, note: Note, remember: Callable[[Note], None]
) -> tuple[int, Note]:
    """Return the first byte that comes, and the note on its version; empty the file for another."""
    # A weak ETag is not enough to put two pieces together.
    etag = response.headers.get('ETag') or 'W/'
    version = response.headers.get('Last-Modified') if etag.startswith('W/') else etag
    if response.status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get('Content-Range', ''))
        if match is None:
            raise _Cut('the server sent a part without saying which')
        start, total = int(match[1]), match[2]
    else:
        start, total = 0, response.headers.get('Content-Length', '')
    found = {'version': version, 'total': int(total) if total.isdigit() else None}
    if start == 0:
        file.truncate(0)
        remember(found)
    elif start != file.seek(0, 2) or version != note.get('version', version):
        file.truncate(0)
        raise _Cut('the file changed while it was being downloaded')
    return start, found


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (HTTPException, OSError) as error:
        raise _Cut(f'the connection was cut ({error!r})') from error
