"""Ranks that may have other files agree on what they load.

Nodes of a cluster may share a folder, or each have its own under the same name. Nothing that only
one process can see may decide here: every rank tells what it has, and all judge by that.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.registry import METRICS

from backbones.checkpoints import CheckpointError
from backbones.checkpoints.schemes import local_file
from backbones.checkpoints.seal import stated_checksum

from ..config.arguments import arguments_of
from ..data.label_order import registered_class
from ..errors import UserError
from .changed_config import differences, parse_config
from .ranks import any_rank, by_host, failing_together, from_main, greatest, hosts_without
from .resume import Choice, Saved, choose_checkpoint, last_start, usable

# Parts of a config in which ranks can't differ and train the same weights.
_ALIKE = ('model', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr')


class _Look(NamedTuple):
    """What a rank finds where a checkpoint should be: its checksum, or why there is none."""

    checksum: str | None
    fault: str = ''


def read_together(
    source: str | Path,
    read: Callable[[], Any],
    logger: logging.Logger,
) -> Any:
    """Read a checkpoint on every rank, of the same content; all ranks must call it.

    Where a host lacks the file, the main rank sends what it has read.

    Args:
        source: As for `read_checkpoint`.
        read: Reads it.
        logger: For a line that names the hosts that lack it.

    Raises:
        CheckpointError: The main rank can't read it.
        UserError: The file is another one on some host; or one can't read its own.
    """
    if get_world_size() == 1:
        return read()
    looks = all_gather_object((socket.gethostname(), _look(source)))
    main = looks[0][1]
    missing = list(dict.fromkeys(host for host, look in looks if look.checksum is None))
    if main.checksum is None:
        if all(look.checksum is None for _, look in looks):
            raise CheckpointError(main.fault)
        raise UserError(f'{source} must be where rank 0 is: {_told(looks)}')
    if {look.checksum for _, look in looks} - {main.checksum, None}:
        raise UserError(
            f'{source} is not the same file on all hosts, so the ranks would train different '
            f'weights: {_told(looks)}. Copy the right one over the others, or delete them: rank 0 '
            'sends its own'
        )
    if not missing:
        with failing_together():
            checkpoint = read()
        return checkpoint
    logger.warning(f'{source} is not on {", ".join(missing)}: rank 0 sends its own')
    with failing_together():
        checkpoint = read() if is_main_process() else None
    return from_main(checkpoint)


def _look(source: str | Path) -> _Look:
    try:
        with local_file(source) as path, path.open('rb') as file:
            return _Look(stated_checksum(file))
    except (CheckpointError, OSError) as error:
        return _Look(None, str(error))


def _told(looks: list[tuple[str, _Look]]) -> str:
    return by_host(
        [
            (host, f'checksum {look.checksum[:8]}' if look.checksum else 'not there')
            for host, look in looks
        ]
    )


def check_alike(cfg: Config, resume: bool, load_from: str | None) -> None:
    """Refuse ranks that were started to train in different ways; all ranks must call it.

    Args:
        cfg: Their config, of which model, optimizer, schedules and length count.
        resume: Whether they resume.
        load_from: What they load or resume from, if it is named.

    Raises:
        UserError: Their configs differ in that, or only some of them resume or load.
    """
    if get_world_size() == 1:
        return
    text = cfg.pretty_text
    main = from_main(text)
    start = ('resume' if resume else 'load') if load_from or resume else 'begin'
    told = [start + (' from a named checkpoint' if load_from else '')]
    if text != main:
        found = differences(parse_config(main), parse_config(text))
        places = [d.place for d in found if d.place.partition('.')[0] in _ALIKE]
    else:
        places = []
    for place in sorted({place for own in all_gather_object(places) for place in own}):
        told.append(f'{place}={_entry(cfg, place)!r}')
    facts = all_gather_object((socket.gethostname(), ', '.join(told)))
    if len({fact for _, fact in facts}) > 1:
        raise UserError(
            f'the ranks are not started alike, so they would train different weights: '
            f'{by_host(facts)}. Give all nodes the same config and the same arguments'
        )


def _entry(cfg: Config, place: str) -> Any:
    node: Any = cfg
    for key in place.split('.'):
        try:
            node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return node


def choose_together(
    folder: str, automatic: bool, logger: logging.Logger, read: Callable[[Path], Any]
) -> tuple[Choice, frozenset[str]]:
    """Agree on the checkpoint that a run continues from; all ranks must call it.

    mmengine takes what ``last_checkpoint`` names, on each rank. Here the main rank looks for all,
    and the others say what they have where they don't share its folder. A run that was restarted
    after a failure continues from what it had saved, even if its command line says to begin with
    something else. That it is one, the ids tell of the launchers that tools/launch.sh started, one
    a node, which `note_start` has left there; or torchrun on any node, if another script started
    it.

    Args:
        folder: The work directory.
        automatic: Whether the run resumes and no checkpoint is named.
        logger: For what was passed over, and for hosts that don't share the folder.
        read: As for `choose_checkpoint`.

    Returns:
        The checkpoint, if there is one, and the ids of the launchers.

    Raises:
        UserError: The run is to resume, and none of its checkpoints can be used, there are only an
            earlier run's, or hosts that don't share the folder have others than the main rank.
    """
    launches = frozenset(filter(None, all_gather_object(os.environ.get('LAUNCH_ID'))))
    failures = greatest(int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')))
    apart = hosts_without(folder)
    if apart:
        logger.warning(
            f'{folder} is not shared: {", ".join(apart)} can not see what rank 0 saves there on '
            f'{from_main(socket.gethostname())}. Those files alone count'
        )
    start = last_start(folder)
    known = start is not None and bool(launches & start.launches)
    restarted = any_rank(known) if launches else failures > 0
    if not (automatic or restarted):
        return Choice(), launches
    choice, of = from_main((choose_checkpoint(folder, read), folder) if is_main_process() else None)
    if choice.path is not None and Path(choice.path).parent == Path(of):
        choice = choice._replace(path=str(Path(folder, Path(choice.path).name)))
    if choice.error and automatic:
        raise UserError(choice.error)
    if apart:
        _check_others(folder, choice, automatic or known)
    for line in choice.skipped:
        logger.warning(f'Skipped checkpoint {line}')
    return choice, launches


def _check_others(folder: str, choice: Choice, counts: bool) -> None:
    """Refuse to go on from what rank 0 has where another host has something else or more.

    Args:
        folder: The work directory.
        choice: What rank 0 has.
        counts: Whether what this rank has may be of this run.
    """
    newest = next(iter(usable(folder)[0]), None) if counts else None
    hosts = all_gather_object((socket.gethostname(), newest))
    ahead = [
        saved
        for _, saved in hosts[1:]
        if saved is not None
        and (
            choice.path is None
            or (
                choice.iteration is not None
                and (saved.run != choice.run or saved.iteration > choice.iteration)
            )
        )
    ]
    if ahead:
        raise UserError(
            f'{folder} is not shared, and rank 0 does not have what other hosts have: '
            f'{by_host([(host, _described(saved)) for host, saved in hosts])}. Share the folder, '
            'copy the checkpoint to resume from to the host of rank 0, or delete those of the '
            'others'
        )


def _described(saved: Saved | None) -> str:
    return f'{saved.path.name} (iteration {saved.iteration})' if saved else 'no checkpoint'


def collecting_anywhere(evaluator: Any, logger: logging.Logger) -> Any:
    """Make metrics collect the ranks' results over the network where they can't over files.

    mmengine's way by default is files in the working directory, or in ``collect_dir``. All ranks
    must call it.

    Args:
        evaluator: The config of one or more.
        logger: For a line that says so.

    Raises:
        UserError: A metric can collect in no other way, and hosts don't share that folder.
    """
    if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        return {**evaluator, 'metrics': collecting_anywhere(evaluator['metrics'], logger)}
    if isinstance(evaluator, (list, tuple)):
        return [collecting_anywhere(metric, logger) for metric in evaluator]
    as_config = isinstance(evaluator, Mapping)
    get = evaluator.get if as_config else partial(getattr, evaluator)
    if get_world_size() == 1 or get('collect_device', 'cpu') != 'cpu':
        return evaluator
    folder = get('collect_dir', None) or '.'
    apart = ', '.join(hosts_without(folder))
    if not apart:
        return evaluator
    kind = registered_class(evaluator, METRICS) if as_config else type(evaluator)
    name = getattr(kind, '__name__', str(evaluator))
    taken = arguments_of(kind) if as_config and kind is not None else None
    if taken is None or not ('collect_device' in taken.names or taken.others == 'used'):
        raise UserError(
            f'{name} collects results over files in '
            f'{os.path.abspath(folder)}, which is not shared with {apart}: start in a folder that '
            "is, or give a metric that takes collect_device='gpu'"
        )
    logger.info(
        f'{os.path.abspath(folder)} is not shared with {apart}: {name} collects results over the '
        'network'
    )
    rest = {key: value for key, value in evaluator.items() if key != 'collect_dir'}
    return rest | dict(collect_device='gpu')
