"""The checkpoint that a run resumes from."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.dist import broadcast_object_list, is_main_process

from backbones.checkpoints import CheckpointError, is_url, read_checkpoint, read_outline

from ..errors import UserError
from ..files import replacing

# Says which of a folder's checkpoints were there before its last training began.
_START = 'last_start'
_NAME = re.compile(r'(epoch|iter)_\d+\.pth')


class _Candidate(NamedTuple):
    saved_at: float
    iteration: int
    path: Path


def saved_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints of a work directory that a run may resume from, by name."""
    folder = Path(folder)
    pointed = _pointed(folder)
    folders = {folder} | ({pointed.parent} if pointed else set())
    found = {
        path for f in folders if f.is_dir() for path in f.iterdir() if _NAME.fullmatch(path.name)
    }
    return sorted(found | ({pointed} if pointed else set()))


def newest_intact(
    folder: str | os.PathLike,
    since: float = 0.0,
    read: Callable[[Path], Any] = read_checkpoint,
) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint of a work directory that is intact.

    ``last_checkpoint`` adds the folder and the file that it names; what is newest, the
    checkpoints themselves say. From the newest on, they are read until one is intact.

    Args:
        folder: The work directory.
        since: Leave out those saved before, in seconds since 1970.
        read: Reads a checkpoint, to see whether it can be; the last one is the one found.

    Returns:
        The path, None if there is not one; and a line for each that was skipped.

    Raises:
        UserError: There are checkpoints, and none of them can be used.
    """
    paths = saved_checkpoints(folder)
    candidates, faults = _candidates(paths)
    for candidate in sorted(candidates, reverse=True):
        if candidate.saved_at < since:
            break
        fault = _damage(candidate.path, read)
        if fault is None:
            return candidate.path, faults
        faults.append(f'{candidate.path}: {fault}')
    if faults and len(faults) == len(paths):
        raise UserError(
            f'no checkpoint in {folder} can be resumed from ({"; ".join(faults)}); name another '
            'with --resume PATH, or move these away to start from iteration 0'
        )
    return None, faults


def last_save(folder: str | os.PathLike) -> float:
    """The latest time of saving, in seconds since 1970, among a work directory's checkpoints."""
    candidates, _ = _candidates(saved_checkpoints(folder))
    return max((candidate.saved_at for candidate in candidates), default=0.0)


def checkpoint_to_resume(
    folder: str, automatic: bool, logger: logging.Logger, read: Callable[[Path], Any]
) -> str | None:
    """Return the checkpoint that a run continues from; None leaves it to its config.

    mmengine takes what ``last_checkpoint`` names, whatever is there. Here one rank looks for all.
    A run that torchrun restarted after a failure continues from what it had saved, even if its
    command line says to begin with something else; ``LAUNCH_TIME`` (seconds since 1970), which
    tools/launch.sh sets, tells its checkpoints from those of an earlier run in the same folder.
    So does what `note_start` left there.

    Args:
        folder: The work directory.
        automatic: Whether the run resumes and no checkpoint is named.
        logger: For what was passed over.
        read: As for `newest_intact`.

    Raises:
        UserError: The run is to resume, and none of its checkpoints can be used, or there are only
            an earlier run's.
    """
    restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')) > 0
    if not automatic and not restarted:
        return None
    since = 0.0 if automatic else float(os.environ.get('LAUNCH_TIME', '0'))
    answers = [_answer(folder, automatic, since, read) if is_main_process() else (None, [], None)]
    broadcast_object_list(answers)
    path, skipped, error = answers[0]
    if error and automatic:
        raise UserError(error)
    for line in skipped:
        logger.warning(f'Skipped checkpoint {line}')
    return path


def note_start(folder: str, source: str | None, logger: logging.Logger) -> None:
    """Note that a training begins in a folder which may hold another run's checkpoints.

    From now on those are not its own: to resume it never takes them.

    Args:
        folder: The work directory.
        source: The checkpoint that the command line told it to resume from, if it did.
        logger: For a warning that the folder holds them.
    """
    note = Path(folder, _START)
    earlier, _ = _candidates(saved_checkpoints(folder))
    if not earlier:
        note.unlink(missing_ok=True)
        return
    newest = max(earlier)
    if source is None:
        logger.warning(
            f'{folder} holds checkpoints of another training, up to {newest.path.name} (iteration '
            f'{newest.iteration}). This one does not resume it, and replaces files of the same '
            f'name. --resume will continue this one; --resume {newest.path} the other'
        )
    elif Path(source).exists():
        source = os.path.abspath(source)
    with replacing(note) as file:
        file.write(json.dumps(dict(before=newest.saved_at, resumed_from=source)).encode())


def _last_start(folder: Path) -> tuple[float, str | None]:
    """When the last checkpoint before the last start was saved, and where that resumed from."""
    try:
        note = json.loads((folder / _START).read_text())
        before, source = float(note['before']), note['resumed_from']
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0, None
    own = folder / Path(source or '').name
    return before, str(own) if source and not Path(source).exists() and own.is_file() else source


def _answer(
    folder: str, automatic: bool, since: float, read: Callable[[Path], Any]
) -> tuple[str | None, list[str], str | None]:
    before, source = _last_start(Path(folder))
    since = max(since, math.nextafter(before, math.inf))
    try:
        path, skipped = newest_intact(folder, since, read)
    except UserError as error:
        return None, [], str(error)
    if path is None and automatic and source:
        return source, skipped, None
    earlier, _ = _candidates(saved_checkpoints(folder)) if before else ([], [])
    if path is None and automatic and earlier:
        only_earlier = (
            f'the training that began last in {folder} has saved no checkpoint; those there are '
            f'of an earlier one: continue that with --resume {max(earlier).path}, or begin again '
            'without --resume'
        )
        return None, skipped, only_earlier
    return (str(path) if path else None), skipped, None


def _pointed(folder: Path) -> Path | None:
    """What ``last_checkpoint`` names; a folder that was copied or moved has its own files."""
    pointer = folder / 'last_checkpoint'
    name = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if not name or '\0' in name or is_url(name):
        return None
    own = folder / Path(name).name
    return own if own.exists() else Path(name)


def _candidates(paths: list[Path]) -> tuple[list[_Candidate], list[str]]:
    """Look at what the checkpoints say of themselves; and a line for each that can't be used."""
    candidates, faults = [], []
    for path in paths:
        try:
            checkpoint = read_outline(path)
            if not isinstance(checkpoint, dict) or not {'meta', 'optimizer'} <= set(checkpoint):
                faults.append(f'{path}: it holds only weights')
                continue
            meta = checkpoint['meta']
            saved_at = float(meta.get('saved_at', path.stat().st_mtime))
            candidates.append(_Candidate(saved_at, int(meta.get('iter', 0)), path))
        except CheckpointError as error:
            faults.append(f'{path}: {error.__cause__ or error}')
        except (AttributeError, TypeError, ValueError):
            faults.append(f'{path}: damaged')
    return candidates, faults


def _damage(path: Path, read: Callable[[Path], Any]) -> str | None:
    try:
        read(path)
    except CheckpointError as error:
        return str(error.__cause__ or error)
    return None if _records_are_whole(path) else 'damaged'


def _records_are_whole(path: Path) -> bool:
    """Compare the checksums that a zip has of its parts, if the file has none of the whole."""
    if not zipfile.is_zipfile(path):
        return True
    with zipfile.ZipFile(path) as archive:
        return bool(archive.comment) or archive.testzip() is None
