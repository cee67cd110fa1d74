"""Downloading a file that may take hours: cut, killed or restarted, it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rich.filesize import decimal

from ..errors import UserError
from .inside import OpenFolder
from .progress import byte_bar

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 6  # in a row that bring nothing new
_CONTENT_RANGE = re.compile(r'bytes (\d+)-\d+/(\d+|\*)')


class _Cut(Exception):
    """The transfer ended early; another attempt may go on."""


def download(url: str, folder: OpenFolder, name: str, md5: str, backoff: float = 1.0) -> None:
    """Download a file; it has its name only when it is whole and its checksum holds.

    Until then it is ``NAME.part``, beside ``NAME.part.json`` with what tells the server's version
    of the file (RFC 9110: the strong ETag, or Last-Modified). A later call asks for the bytes that
    are missing, on the condition that the version is the same, or else starts anew.

    Args:
        url: An http(s) address.
        folder: Where to write.
        name: The name of the finished file.
        md5: Its checksum, in hexadecimal.
        backoff: Seconds before the second attempt; doubled each time nothing new has come.

    Raises:
        UserError: The server refuses or can't be reached, the disk is full, or the checksum is
            another; what was downloaded is deleted in the last case, kept in the others.
    """
    if not url.startswith(('http://', 'https://')):
        raise UserError(f'{url} is not an http(s) address')
    failures = 0
    with folder.append(f'{name}.part') as file, byte_bar(name) as update:
        while True:
            before = file.seek(0, 2)
            try:
                _transfer(url, folder, name, file, update)
                break
            except _Cut as error:
                failures = 0 if file.seek(0, 2) > before else failures + 1
                if failures == _ATTEMPTS:
                    raise UserError(
                        f'{url}: {error}, {failures} times in a row. Run the same command again to '
                        'go on from here, or take the file from elsewhere with --mirror or --from'
                    ) from error
                time.sleep(backoff * 2**failures)
        file.seek(0)
        found = md5_of(file, f'{name}: checksum')
    if found != md5:
        discard_part(folder, name)
        raise UserError(
            f'{url}: what came has md5 {found}, not {md5}, and was deleted. Run the same command '
            'again to download it anew; if that ends the same way, the server has another file: '
            'take it from elsewhere with --mirror or --from'
        )
    folder.rename(f'{name}.part', name)
    folder.remove(f'{name}.part.json')


def md5_of(file: BinaryIO, title: str) -> str:
    """Return the md5 of an open file, in hexadecimal, under a progress bar of this title."""
    digest = hashlib.md5(usedforsecurity=False)
    start = file.tell()
    total = file.seek(0, 2) - start
    file.seek(start)
    with byte_bar(title, total) as update:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            update(advance=len(chunk))
    return digest.hexdigest()


def discard_part(folder: OpenFolder, name: str) -> None:
    """Delete what is left of an unfinished download."""
    folder.remove(f'{name}.part')
    folder.remove(f'{name}.part.json')


def _transfer(
    url: str, folder: OpenFolder, name: str, file: BinaryIO, update: Callable[..., None]
) -> None:
    """Make one request and append what comes; return when the file has all its bytes."""
    have = file.seek(0, 2)
    known = _read_version(folder, name) if have else {}
    if have and have == known.get('total'):
        return
    headers = {'User-Agent': 'poolformer-dense'}
    if have:
        headers['Range'] = f'bytes={have}-'
        if known.get('version'):
            headers['If-Range'] = known['version']
    with _request(url, headers, file) as response:
        version = _version(response)
        start, total = _extent(response)
        if start and (start != have or version != known.get('version', version)):
            file.truncate(0)
            raise _Cut('the file changed while it was being downloaded')
        if not start:
            file.truncate(0)
            with folder.replace(f'{name}.part.json') as note:
                note.write(json.dumps({'version': version, 'total': total}).encode())
        if total is not None and total - start > folder.free():
            raise UserError(
                f'{name} needs {decimal(total - start)} more, and {folder.path} has '
                f'{decimal(folder.free())} free: make room, or give another --root'
            )
        update(completed=start, total=total)
        while chunk := _read(response):
            file.write(chunk)
            update(advance=len(chunk))
    if total is not None and file.seek(0, 2) != total:
        raise _Cut(f'the connection was cut after {decimal(file.tell())} of {decimal(total)}')


def _request(url: str, headers: dict[str, str], file: BinaryIO) -> HTTPResponse:
    try:
        return urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # no such range: the file is shorter than what we have
            file.truncate(0)
        if error.code in (408, 416, 425, 429) or error.code >= 500:
            raise _Cut(f'the server answers {error.code} {error.reason}') from error
        raise UserError(
            f'{url}: the server answers {error.code} {error.reason}; take the file from elsewhere '
            'with --mirror or --from'
        ) from error
    except (URLError, HTTPException, OSError) as error:
        raise _Cut(f'no answer ({getattr(error, "reason", None) or error!r})') from error


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (HTTPException, OSError) as error:
        raise _Cut(f'the connection was cut ({error!r})') from error


def _version(response: HTTPResponse) -> str | None:
    """What If-Range takes: a weak ETag is not enough to put two pieces together."""
    etag = response.headers.get('ETag')
    if etag and not etag.startswith('W/'):
        return etag
    return response.headers.get('Last-Modified')


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """The first byte that comes, and the bytes of the whole file if the server tells."""
    if response.status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get('Content-Range', ''))
        if match is None:
            raise _Cut('the server sent a part without saying which')
        return int(match[1]), None if match[2] == '*' else int(match[2])
    length = response.headers.get('Content-Length', '')
    return 0, int(length) if length.isdigit() else None


def _read_version(folder: OpenFolder, name: str) -> dict:
    if folder.size(f'{name}.part.json') is None:
        return {}
    with folder.read(f'{name}.part.json') as note:
        return json.load(note)
