"""From a name, a URL or a path to a local file whose checksum holds."""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import print_log

from ..weights import RELEASED
from .errors import CheckpointError, first_line

# Tools read this variable and pass its value to `localise`; the model never does.
MIRROR_VARIABLE = 'POOLFORMER_WEIGHTS'
_SHA256 = re.compile(r'[0-9a-f]{64}')
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
        return f'{mirror.rstrip("/")}/{name}'
    path = Path(mirror).expanduser() / name
    if not path.is_file():
        raise CheckpointError(
            f'{source}: {name} is not in the mirror {mirror} that {MIRROR_VARIABLE} names; '
            f'get it from {url}'
        )
    return str(path)


def fetch(source: str | Path) -> Path:
    """Return a local file; one behind a URL is downloaded once to torch.hub's checkpoint folder.

    Of the processes of one machine only the first downloads. A download's checksum is checked: the
    known one, or that recorded in ``FILE.sha256`` when it was first downloaded.

    Args:
        source: A path, an http(s) URL, or a name of `RELEASED`.

    Raises:
        CheckpointError: The file is missing, can't be downloaded, or is not what it was.
    """
    source = str(source)
    released = RELEASED.get(source)
    url = released.url if released else source
    if not is_url(url):
        path = Path(source).expanduser()
        if not path.is_file():
            raise CheckpointError(f'checkpoint {path} does not exist; {_remedy(source)}')
        return path
    path = Path(torch.hub.get_dir()) / 'checkpoints' / _file_name(url)
    if get_local_rank() != 0:
        barrier()
        if not path.is_file():
            raise CheckpointError(f'{url} was not downloaded; the first process says why')
        return path
    try:
        if not path.exists():
            _download(url, path)
        _check_sum(path, released.sha256 if released else None)
    finally:
        barrier()  # also after an error, or the other processes would wait for ever
    return path


def is_url(source: str) -> bool:
    """Whether a source is an http(s) URL."""
    return source.startswith(('http://', 'https://'))


def _file_name(url: str) -> str:
    return Path(urlparse(url).path).name


def _download(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (URLError, OSError) as error:
        raise CheckpointError(
            f'{url} could not be downloaded ({first_line(error)}); fetch it elsewhere, then '
            f'put it at {path} or give its path instead of the URL'
        ) from error


def _check_sum(path: Path, known: str | None) -> None:
    """Compare with the known checksum, or the recorded one; record it if there is neither."""
    found = _sha256(path)
    record = path.with_name(f'{path.name}.sha256')
    in_name = _DIGITS_IN_NAME.search(path.name)
    expected, source = known, 'as released'
    if expected is None and record.is_file():
        recorded = _SHA256.match(record.read_text())
        expected, source = recorded and recorded[0], f'recorded in {record.name}'
    elif expected is None and in_name:
        expected, source = in_name[1], 'in its name'
    if expected and not found.startswith(expected):
        raise CheckpointError(
            f'{path} has sha256 {found}, not {expected} ({source}): it is damaged or another '
            f'file; delete it{" and the record" if "recorded" in source else ""} to download anew'
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
