"""Downloading the archives of data sets, which may take hours; see `transfer` for resuming."""

from __future__ import annotations

import hashlib
import json
from typing import BinaryIO

from rich.filesize import decimal

from backbones.checkpoints.transfer import Note, TransferError, transfer

from ..errors import UserError
from .inside import OpenFolder
from .progress import byte_bar

_CHUNK = 1 << 20


def download(url: str, folder: OpenFolder, name: str, md5: str, backoff: float = 1.0) -> None:
    """Download a file; it has its name only when it is whole and its checksum holds.

    Until then it is ``NAME.part``, beside ``NAME.part.json`` with a note on its version. A later
    call resumes.

    Args:
        url: An http(s) address.
        folder: Where to write.
        name: The name of the finished file.
        md5: Its checksum, in hexadecimal; empty if unknown.
        backoff: Seconds before the second attempt; doubled each time nothing new has come.

    Raises:
        UserError: The server refuses or can't be reached, the disk is full, or the checksum is
            another; what was downloaded is deleted in the last case, kept in the others.
    """
    if not url.startswith(('http://', 'https://')):
        raise UserError(f'{url} is not an http(s) address')

    def remember(note: Note) -> None:
        with folder.replace(f'{name}.part.json') as file:
            file.write(json.dumps(note).encode())

    def begin(have: int, total: int | None) -> None:
        if total is not None and total - have > folder.free():
            raise UserError(
                f'{name} needs {decimal(total - have)} more, and {folder.path} has '
                f'{decimal(folder.free())} free: make room, or give another --root'
            )
        update(completed=have, total=total)

    with folder.append(f'{name}.part') as part, byte_bar(name) as update:
        try:
            transfer(
                url, part, _note(folder, name), remember, begin,
                lambda count: update(advance=count), backoff=backoff,
            )  # fmt: skip
        except TransferError as error:
            again = '' if error.refused else 'run the same command again to resume, or '
            raise UserError(
                f'{url}: {error}; {again}take the file from elsewhere with --mirror or --from'
            ) from error
        part.seek(0)
        found = md5_of(part, f'{name}: checksum')
    if md5 and found != md5:
        discard_part(folder, name)
        raise UserError(
            f'{url}: what came has md5 {found}, not {md5}, and was deleted. Run the same command '
            'again to download it from the start; if that ends the same way, the server has '
            'another file: take it from elsewhere with --mirror or --from'
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


def _note(folder: OpenFolder, name: str) -> Note:
    if folder.size(f'{name}.part.json') is None:
        return {}
    with folder.read(f'{name}.part.json') as file:
        note: Note = json.load(file)
    return note
