"""The checkpoint of a work directory that a run resumes from.

Each training has an id of its own, which its checkpoints carry in ``meta.run``. The file
``last_start`` of the folder names the one that began there last; iterations order the checkpoints
of one training. No clock is asked, and of what differs by process nothing but what all tell.
"""

from __future__ import annotations

import json
import os
import re
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from backbones.checkpoints import CheckpointError, is_url, read_checkpoint, read_outline

from ..errors import UserError
from ..files import replacing

_START = 'last_start'
_NAME = re.compile(r'(epoch|iter)_\d+\.pth')


class Saved(NamedTuple):
    """A checkpoint in a folder: how far it got, its file, and the id of its training.

    Those that mmengine or an earlier version of ours saved have no id, and count as one training.
    """

    iteration: int
    path: Path
    run: str | None


class Start(NamedTuple):
    """What is known of the training that began last in a folder.

    Attributes:
        run: Its id.
        source: The checkpoint that the command line told it to resume from, if it did.
        launches: The ids of the launchers that started its processes, one a node.
    """

    run: str | None
    source: str | None = None
    launches: frozenset[str] = frozenset()


class Choice(NamedTuple):
    """What `choose_checkpoint` has found.

    Attributes:
        path: The checkpoint; None if there is none.
        run: The id of its training.
        iteration: How far it got; None for one outside the folder.
        skipped: A line for each that can't be used.
        error: Why the run can't resume, in one line.
    """

    path: str | None = None
    run: str | None = None
    iteration: int | None = None
    skipped: Sequence[str] = ()
    error: str | None = None


def new_run() -> str:
    """Draw an id for a training."""
    return uuid.uuid4().hex[:16]


def saved_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints of a work directory that a run may resume from, by name."""
    folder = Path(folder)
    pointed = _pointed(folder)
    folders = {folder} | ({pointed.parent} if pointed else set())
    found = {
        path for f in folders if f.is_dir() for path in f.iterdir() if _NAME.fullmatch(path.name)
    }
    return sorted(found | ({pointed} if pointed else set()))


def usable(folder: str | os.PathLike) -> tuple[list[Saved], list[str]]:
    """Look at what the checkpoints of a folder say of themselves.

    Returns:
        Those that say all that a run needs, the furthest first; and a line for each other.
    """
    found, faults = [], []
    for path in saved_checkpoints(folder):
        try:
            checkpoint = read_outline(path)
        except CheckpointError as error:
            faults.append(f'{path}: {error.__cause__ or error}')
            continue
        fault = malformed(checkpoint)
        if fault is None:
            meta = checkpoint['meta']
            found.append(Saved(meta['iter'], path, meta.get('run')))
        else:
            faults.append(f'{path}: {fault}')
    return sorted(found, key=lambda saved: (saved.iteration, saved.path), reverse=True), faults


def newest_intact(
    folder: str | os.PathLike,
    start: Start | None = None,
    read: Callable[[Path], Any] = read_checkpoint,
) -> tuple[Saved | None, list[str]]:
    """Find the checkpoint of a work directory that got furthest and is intact.

    ``last_checkpoint`` adds the folder and the file that it names; how far each got, the
    checkpoints themselves say. From the furthest on, they are read until one is intact.

    Args:
        folder: The work directory.
        start: Leave out those of another training than this.
        read: Reads a checkpoint, to see whether it can be; the last one is the one found.

    Returns:
        The checkpoint, None if there is not one; and a line for each that was skipped.

    Raises:
        UserError: There are checkpoints, and none of them can be used.
    """
    candidates, faults = usable(folder)
    for candidate in candidates:
        if start is not None and candidate.run != start.run:
            continue
        fault = _damage(candidate.path, read)
        if fault is None:
            return candidate, faults
        faults.append(f'{candidate.path}: {fault}')
        candidates = [other for other in candidates if other is not candidate]
    if faults and not candidates:
        raise UserError(
            f'no checkpoint in {folder} can be resumed from ({"; ".join(faults)}); name another '
            'with --resume PATH, or move these away to start from iteration 0'
        )
    return None, faults


def choose_checkpoint(folder: str, read: Callable[[Path], Any]) -> Choice:
    """Find what a run that resumes continues from: of the training that began last, no other.

    Args:
        folder: The work directory.
        read: As for `newest_intact`.
    """
    start = last_start(folder)
    try:
        saved, skipped = newest_intact(folder, start, read)
    except UserError as error:
        return Choice(error=str(error))
    if saved is not None:
        return Choice(str(saved.path), saved.run, saved.iteration, skipped)
    if start is None:
        return Choice(skipped=skipped)
    if start.source:
        return Choice(start.source, start.run, None, skipped)
    others, _ = usable(folder)
    if not others:
        return Choice(skipped=skipped)
    unusable = f' that can be used ({"; ".join(skipped)})' if skipped else ''
    return Choice(
        error=f'the training that began last in {folder} has saved no checkpoint{unusable}; those '
        f'there are of an earlier one: continue that with --resume {others[0].path}, or begin '
        'again without --resume'
    )


def note_start(folder: str, start: Start) -> None:
    """Note which training runs in a folder that may hold another one's checkpoints.

    From now on those are not its own: to resume it never takes them.

    Raises:
        UserError: The note could not be written.
    """
    source = start.source
    if source and Path(source).exists():
        source = os.path.abspath(source)
    note = dict(run=start.run, resumed_from=source, launches=sorted(start.launches))
    try:
        with replacing(Path(folder, _START)) as file:
            file.write(json.dumps(note).encode())
    except OSError as error:
        raise UserError(
            f'{Path(folder, _START)} can not be written ({error.strerror}); make room, or give '
            'another folder with --work-dir'
        ) from error


def others_in(folder: str) -> str | None:
    """Return a warning, for a training that begins anew, of the checkpoints that a folder holds."""
    earlier, _ = usable(folder)
    if not earlier:
        return None
    newest = earlier[0]
    return (
        f'{folder} holds checkpoints of another training, up to {newest.path.name} (iteration '
        f'{newest.iteration}). This one does not resume it, and replaces files of the same '
        f'name. --resume will continue this one; --resume {newest.path} the other'
    )


def last_start(folder: str | os.PathLike) -> Start | None:
    """Return what `note_start` has noted; None if nothing that can be read."""
    try:
        note = json.loads(Path(folder, _START).read_text())
        run, source, launches = note['run'], note['resumed_from'], note['launches']
    except (OSError, ValueError, KeyError, TypeError):
        return None
    texts = [run, *([] if source is None else [source])]
    texts += launches if isinstance(launches, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        return None
    own = Path(folder, Path(source or '').name)
    moved = source and not is_url(source) and not Path(source).exists() and own.is_file()
    return Start(run, str(own) if moved else source, frozenset(launches))


def malformed(checkpoint: Any) -> str | None:
    """Return what of a checkpoint is not as a run needs it to resume, or None.

    Of tensors only that they are there is asked: an outline is enough.
    """
    if not isinstance(checkpoint, Mapping) or not {'meta', 'optimizer'} <= checkpoint.keys():
        return 'it holds only weights'
    for key in ('meta', 'optimizer', 'message_hub', 'state_dict'):
        if not isinstance(checkpoint.get(key), Mapping):
            return _wrong(key, checkpoint.get(key))
    meta, hub = checkpoint['meta'], checkpoint['message_hub']
    for key in ('iter', 'epoch'):
        if type(meta.get(key)) is not int or meta[key] < 0:
            return _wrong(f'meta.{key}', meta.get(key))
    if not isinstance(meta.get('run'), (str, type(None))):
        return _wrong('meta.run', meta['run'])
    if type(meta.get('seed')) not in (int, type(None)):
        return _wrong('meta.seed', meta['seed'])
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub.get(key), Mapping):
            return _wrong(f'message_hub.{key}', hub.get(key))
    groups = checkpoint['optimizer'].get('param_groups', [])
    if not isinstance(groups, list) or not all(
        isinstance(group, Mapping) and isinstance(group.get('params'), list) for group in groups
    ):
        return _wrong('optimizer.param_groups', groups)
    schedules = checkpoint.get('param_schedulers', [])
    several = isinstance(schedules, Mapping)
    for states in schedules.values() if several else [schedules]:
        if not isinstance(states, list) or not all(isinstance(s, Mapping) for s in states):
            return _wrong('param_schedulers', schedules)
    return _malformed_state(checkpoint.get('run_state') or {})


def _malformed_state(state: Any) -> str | None:
    if not isinstance(state, Mapping):
        return _wrong('run_state', state)
    if not state or 'samples_per_step' in state:  # see `state.upgrade`
        return None
    for name, part in state.items():
        if not isinstance(part, Mapping):
            return _wrong(f'run_state.{name}', part)
    position = state.get('position', {})
    for key in ('epoch', 'batch', 'samples_per_step'):
        if type(position.get(key)) is not int or position[key] < 0:
            return _wrong(f'run_state.position.{key}', position.get(key))
    for name in ('random', 'sampler'):
        ranks = state.get(name, {}).get('ranks')
        if not isinstance(ranks, list) or not ranks:
            return _wrong(f'run_state.{name}.ranks', ranks)
    return None


def _wrong(place: str, value: Any) -> str:
    text = repr(value)
    return f'its {place} is {text if len(text) < 40 else type(value).__name__}'


def _pointed(folder: Path) -> Path | None:
    """What ``last_checkpoint`` names; a folder that was copied or moved has its own files."""
    pointer = folder / 'last_checkpoint'
    name = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if not name or '\0' in name or is_url(name):
        return None
    own = folder / Path(name).name
    return own if own.exists() else Path(name)


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
