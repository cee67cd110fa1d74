"""The checkpoint that a run resumes from."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from mmengine.dist import broadcast_object_list, is_main_process

from backbones.checkpoints import CheckpointError, is_url, read_checkpoint

from ..errors import UserError

_NAME = re.compile(r'(epoch|iter)_\d+\.pth')


class _Found(NamedTuple):
    path: Path
    fault: str | None = None
    saved_at: float = 0.0
    iteration: int = 0


def saved_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints of a work directory that a run may resume from, by name."""
    folder = Path(folder)
    pointed = _pointed(folder)
    folders = {folder} | ({pointed.parent} if pointed else set())
    found = {
        path for f in folders if f.is_dir() for path in f.iterdir() if _NAME.fullmatch(path.name)
    }
    return sorted(found | ({pointed} if pointed else set()))


def newest_intact(folder: str | os.PathLike, since: float = 0.0) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint of a work directory that is intact.

    ``last_checkpoint`` adds the folder and the file that it names; what is newest, the
    checkpoints themselves say.

    Args:
        folder: The work directory.
        since: Leave out those saved before, in seconds since 1970.

    Returns:
        The path, None if there is not one; and a line for each that was skipped.

    Raises:
        UserError: There are checkpoints, and none of them can be used.
    """
    found = [_examine(path) for path in saved_checkpoints(folder)]
    faulty = [f'{each.path}: {each.fault}' for each in found if each.fault]
    usable = [each for each in found if not each.fault and each.saved_at >= since]
    if usable:
        return max(usable, key=lambda each: (each.saved_at, each.iteration)).path, faulty
    if faulty and len(faulty) == len(found):
        raise UserError(
            f'no checkpoint in {folder} can be resumed from ({"; ".join(faulty)}); name another '
            'with --resume PATH, or move these away to start from iteration 0'
        )
    return None, faulty


def checkpoint_to_resume(folder: str, automatic: bool, logger: logging.Logger) -> str | None:
    """Return the checkpoint that a run continues from; None leaves it to its config.

    mmengine takes what ``last_checkpoint`` names, whatever is there. Here one rank looks for all.
    A run that torchrun restarted after a failure continues from what it had saved, even if its
    command line says to begin with something else; ``LAUNCH_TIME`` (seconds since 1970), which
    tools/launch.sh sets, tells its checkpoints from those of an earlier run in the same folder.

    Args:
        folder: The work directory.
        automatic: Whether the run resumes and no checkpoint is named.
        logger: For what was passed over.

    Raises:
        UserError: The run is to resume, and none of its checkpoints can be used.
    """
    restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')) > 0
    if not automatic and not restarted:
        return None
    since = 0.0 if automatic else float(os.environ.get('LAUNCH_TIME', '0'))
    answers = [_answer(folder, since) if is_main_process() else (None, [], None)]
    broadcast_object_list(answers)
    path, skipped, error = answers[0]
    if error and automatic:
        raise UserError(error)
    for line in skipped:
        logger.warning(f'Skipped checkpoint {line}')
    return path


def _answer(folder: str, since: float) -> tuple[str | None, list[str], str | None]:
    try:
        path, skipped = newest_intact(folder, since)
    except UserError as error:
        return None, [], str(error)
    return (str(path) if path else None), skipped, None


def _pointed(folder: Path) -> Path | None:
    """What ``last_checkpoint`` names; a folder that was copied or moved has its own files."""
    pointer = folder / 'last_checkpoint'
    name = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if not name or '\0' in name or is_url(name):
        return None
    own = folder / Path(name).name
    return own if own.exists() else Path(name)


def _examine(path: Path) -> _Found:
    try:
        checkpoint = read_checkpoint(path, map_location='meta')
        if not _records_are_whole(path):
            return _Found(path, 'damaged')
    except CheckpointError as error:
        return _Found(path, str(error.__cause__ or error))
    if not isinstance(checkpoint, dict) or not {'meta', 'optimizer'} <= set(checkpoint):
        return _Found(path, 'it holds only weights')
    meta = checkpoint['meta']
    return _Found(path, None, meta.get('saved_at', path.stat().st_mtime), meta.get('iter', 0))


def _records_are_whole(path: Path) -> bool:
    """Compare the checksums that a zip has of its parts, if the file has none of the whole."""
    if not zipfile.is_zipfile(path):
        return True
    with zipfile.ZipFile(path) as archive:
        return bool(archive.comment) or archive.testzip() is None
