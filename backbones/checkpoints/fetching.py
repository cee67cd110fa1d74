"""From a name, a URL or a path to a local file whose checksum holds."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import os
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import print_log

from ..weights import RELEASED
from .refusals import CheckpointError, first_line
from .transfer import Note, TransferError, transfer

# Tools read this variable and pass its value to `localise`; the model never does.
MIRROR_VARIABLE = 'POOLFORMER_WEIGHTS'
_SHA256 = re.compile(r'[0-9a-f]{64}')
_ATTEMPTS = 3  # to reach a server, in a row
# OpenMMLab and torch.hub end a file's name with the first digits of its checksum.
_DIGITS_IN_NAME = re.compile(r'-([0-9a-f]{8})\.\w+$')


def localise(source: str | Path, mirror: str | None) -> str:
    """Return where a released file is in a mirror.

    Args:
        source: What a config or a command names as a checkpoint.
        mirror: A folder, or the URL of one, with the released files under their own names; None
            or empty for no mirror.

    Returns:
        The file in the mirror if ``source`` is a name of `RELEASED` or a URL; otherwise, and
        without a mirror, ``source`` as it is.

    Raises:
        CheckpointError: The mirror is a folder and does not have the file.
    """
    source = str(source)
    url = RELEASED[source].url if source in RELEASED else source
    if not mirror or not is_url(url):
        return source
    name = _file_name(url)
    if is_url(mirror):
        known = RELEASED[source].sha256 if source in RELEASED else _split_sum(url)[1]
        return f'{mirror.rstrip("/")}/{name}' + (f'#sha256={known}' if known else '')
    path = Path(mirror).expanduser() / name
    if not path.is_file():
        raise CheckpointError(
            f'{source}: {name} is not in the mirror {mirror} that {MIRROR_VARIABLE} names; '
            f'get it from {url}'
        )
    return str(path)


def fetch(source: str | Path) -> Path:
    """Return a local file; one behind a URL is downloaded once to torch.hub's checkpoint folder.

    There each URL has a folder of its own, with the URL beside the file. A file that torch.hub or
    an earlier version put there under its name alone is used if its checksum is known and fits.

    Of the processes of one machine only the first downloads. A download's checksum is checked each
    time: the one given or known, that recorded in ``FILE.sha256`` when it was first downloaded, or
    the digits in its name. A download of another checksum does not get its place.

    Args:
        source: A path, an http(s) URL, which may end with ``#sha256=`` and 64 hexadecimal digits,
            or a name of `RELEASED`.

    Raises:
        CheckpointError: The file is missing, can't be downloaded, or is not what it was.
    """
    source = str(source)
    released = RELEASED.get(source)
    url = released.url if released else source
    known = released.sha256 if released else None
    if not is_url(url):
        path = Path(source).expanduser()
        if not path.is_file():
            raise CheckpointError(f'checkpoint {path} does not exist; {_remedy(source)}')
        return path
    url, given = _split_sum(url)
    known = given or known
    path = _place(url)
    if get_local_rank() != 0:
        barrier()
        if (there := _cached(path, known)) is None:
            raise CheckpointError(f'{url} was not downloaded; the first process says why')
        return there
    try:
        there = _cached(path, known)
        if there is None:
            _download(url, path, known)
        elif there == path:
            _check_sum(path, path, known)
    finally:
        barrier()  # also after an error, or the other processes would wait for ever
    return there or path


def is_url(source: str) -> bool:
    """Whether a source is an http(s) URL."""
    return source.startswith(('http://', 'https://'))


def _file_name(url: str) -> str:
    name = Path(urlparse(url).path).name
    if name in ('', '..') or not url.isprintable():
        raise CheckpointError(f'{url} does not end with the name of a file')
    return name


def _place(url: str) -> Path:
    """Return where a download is kept: files of one name have as many places as URLs."""
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    return Path(torch.hub.get_dir()) / 'checkpoints' / key / _file_name(url)


def _cached(path: Path, known: str | None) -> Path | None:
    """Return the file that is there for a URL, or one under its name alone that is the same."""
    if path.is_file():
        return path
    plain = path.parents[1] / path.name
    in_name = _DIGITS_IN_NAME.search(path.name)
    expected = known or (in_name and in_name[1])
    same = expected and plain.is_file() and _sha256(plain).startswith(expected)
    return plain if same else None


def _split_sum(url: str) -> tuple[str, str | None]:
    """Return a URL without the checksum that the user gave, and the checksum."""
    url, _, fragment = url.partition('#')
    if not fragment:
        return url, None
    digits = fragment.removeprefix('sha256=').lower()
    if not fragment.startswith('sha256=') or not _SHA256.fullmatch(digits):
        raise CheckpointError(f'{url}#{fragment}: after # comes sha256= and 64 hexadecimal digits')
    return url, digits


def _download(url: str, path: Path, known: str | None) -> None:
    part, note = (path.with_name(f'{path.name}.{end}') for end in ('part', 'part.json'))

    def remember(found: Note) -> None:
        note.write_text(json.dumps(found))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('a+b') as file:
            # Another job may be downloading the same file; this one waits for it.
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                return
            before = json.loads(note.read_text()) if note.is_file() else {}
            transfer(url, file, before, remember, attempts=_ATTEMPTS)
            file.flush()
            _check_sum(part, path, known)
            path.with_name(f'{path.name}.url').write_text(f'{_without_password(url)}\n')
            os.replace(part, path)
            note.unlink(missing_ok=True)
    except (TransferError, OSError) as error:
        if part.is_file() and not part.stat().st_size:
            _remove(part, note)
        raise CheckpointError(
            f'{url} could not be downloaded ({first_line(error)}); try again to resume, or fetch '
            f'it elsewhere and put it at {path} or give its path instead of the URL'
        ) from error
    except CheckpointError:
        _remove(part, note)
        raise


def _without_password(url: str) -> str:
    parts = urlparse(url)
    return parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _check_sum(file: Path, path: Path, known: str | None) -> None:
    """Compare with the known checksum, or the recorded one; record it if there is neither.

    Args:
        file: Where the file is.
        path: Where it belongs.
        known: Its checksum, if it is known.
    """
    found = _sha256(file)
    record = path.with_name(f'{path.name}.sha256')
    in_name = _DIGITS_IN_NAME.search(path.name)
    expected, source = known, 'as released or given'
    if expected is None and record.is_file():
        recorded = _SHA256.match(record.read_text())
        expected, source = recorded and recorded[0], f'recorded in {record.name}'
    elif expected is None and in_name:
        expected, source = in_name[1], 'in its name'
    if expected and not found.startswith(expected):
        raise CheckpointError(
            f'{path} has sha256 {found}, not {expected} ({source}): it is damaged or another '
            f'file; delete it{" and the record" if "recorded" in source else ""} to download '
            'it again'
        )
    if known is None and not record.is_file():
        try:
            record.write_text(f'{found}  {path.name}\n')  # as sha256sum --check reads it
        except OSError as error:
            print_log(f'{record} not written: {first_line(error)}', 'current')


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _remedy(source: str) -> str:
    close = difflib.get_close_matches(source, RELEASED, n=1)
    hint = f' (did you mean {close[0]}?)' if close else ''
    return f'give the path or the URL of a checkpoint, or a name of released weights{hint}'
