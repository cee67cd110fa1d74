"""Reading a work directory: what mmengine and `ReportHook` left there, of all its sessions."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import UserError
from .validation import SUMMARY

Record = dict[str, Any]
# The figures by which a run is judged, the first that there is.
_MAIN_METRICS = ('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU')
_HEADING = re.compile(r'^(System|Runtime) environment:$')
_ENTRY = re.compile(r'^ {4}(\S.*?): (.*)$')


@dataclass
class Run:
    """A training, from all the sessions that it took.

    Attributes:
        folder: The work directory.
        name: What it is called on the page; the folder's name.
        config: The config of the last session, None if it is missing or can't be read.
        config_text: Its file.
        environment: What mmengine says of the machine, by name.
        train: Records of training, ascending by ``step``, the iteration.
        val: Records of validation, ascending by ``step``: epoch or iteration, see `unit`.
        sessions: Names of the folders that the records are from.
        validation: What the last validation left, None if there is nothing.
        remarks: What is wrong with the folder's files.
    """

    folder: Path
    name: str
    config: Config | None = None
    config_text: str = ''
    environment: dict[str, str] = field(default_factory=dict)
    train: list[Record] = field(default_factory=list)
    val: list[Record] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    validation: dict[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """What validations are counted by."""
        logger = (self.config or {}).get('default_hooks', {}).get('logger') or {}
        return 'epoch' if logger.get('log_metric_by_epoch', True) else 'iteration'

    @cached_property
    def metrics(self) -> list[str]:
        """Names of the validation's figures, the main one first."""
        names = dict.fromkeys(key for record in self.val for key in record)
        names = [n for n in names if n not in ('step', 'time', 'data_time', 'epoch', 'iter')]
        main = [name for name in _MAIN_METRICS if name in names]
        return main[:1] + [name for name in names if name not in main[:1]]

    @property
    def batch(self) -> int | None:
        """Images of an iteration, of all processes together."""
        loader = (self.config or {}).get('train_dataloader') or {}
        images = loader.get('batch_size')
        return images and images * int(self.environment.get('GPU number', 1))

    @property
    def seconds(self) -> float:
        """Time spent on iterations of training, as logged."""
        steps = [0, *(record['step'] for record in self.train)]
        pairs = zip(self.train, itertools.pairwise(steps), strict=True)
        spent = [record.get('time', 0.0) * (end - start) for record, (start, end) in pairs]
        return sum(value for value in spent if math.isfinite(value))

    def series(self, name: str, split: str = 'train') -> tuple[list[float], list[float]]:
        """Return the steps and values of a figure."""
        records = [r for r in getattr(self, split) if isinstance(r.get(name), (int, float))]
        # COCO's evaluation says -1 where there is nothing to find.
        records = [r for r in records if not (split == 'val' and r[name] == -1)]
        return [r['step'] for r in records], [float(r[name]) for r in records]

    def best(self) -> Record | None:
        """Return the validation record with the highest main figure."""
        if not self.metrics:
            return None
        records = [r for r in self.val if math.isfinite(r.get(self.metrics[0], math.nan))]
        return max(records, key=lambda r: r[self.metrics[0]], default=None)


def read_run(folder: Path) -> Run:
    """Read a work directory.

    Raises:
        UserError: There is no such folder, or it is not one of a training.
    """
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; name the work directory of a training')
    folder = folder.resolve()
    run = Run(folder, folder.name)
    sessions = sorted(path.parents[1] for path in folder.glob('*/vis_data/scalars.json'))
    logs = sorted(folder.glob('*/*.log'))
    if not sessions and not logs:
        raise UserError(f'{folder} holds no log of a training: is it a work directory?')
    for session in sessions:
        train, val = _read_records(session / 'vis_data' / 'scalars.json', run.remarks)
        if train or val:
            run.sessions.append(session.name)
            _append(run, train, val)
    used = [folder / name for name in run.sessions] or sessions or [path.parent for path in logs]
    _read_config(run, used[-1] / 'vis_data' / 'config.py')
    for log in sorted(used[-1].glob('*.log'))[:1]:
        run.environment = _read_environment(log)
    run.validation = _read_validation(folder / 'validation' / SUMMARY, run.remarks)
    return run


def _read_records(path: Path, remarks: list[str]) -> tuple[list[Record], list[Record]]:
    train, val = {}, {}
    broken = 0
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            record = json.loads(line)
            step = record['step']
        except (ValueError, KeyError, TypeError):
            broken += bool(line.strip())
            continue
        (train if 'lr' in record or 'iter' in record else val)[step] = record
    if broken:
        remarks.append(f'{path.parts[-3]}: {broken} lines of the log of figures are unreadable')
    return [train[step] for step in sorted(train)], [val[step] for step in sorted(val)]


def _append(run: Run, train: list[Record], val: list[Record]) -> None:
    """Go on from where a session started: what an earlier one did beyond that is undone."""
    if train:
        start = train[0]
        run.train = [record for record in run.train if record['step'] < start['step']]
        position = start.get('epoch', start['step'])
        run.val = [record for record in run.val if record['step'] < position]
    if val:
        run.val = [record for record in run.val if record['step'] < val[0]['step']]
    run.train += train
    run.val += val


def _read_config(run: Run, path: Path) -> None:
    if not path.is_file():
        run.remarks.append(f'{path.parts[-3]}: there is no vis_data/config.py')
        return
    run.config_text = path.read_text(encoding='utf-8', errors='replace')
    try:
        run.config = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # a config is code: anything can be wrong with it
        run.remarks.append(f'{path.parts[-3]}: the config is unreadable ({type(error).__name__})')


def _read_environment(log: Path) -> dict[str, str]:
    """Return what stands under a log's headings "System environment" and "Runtime environment"."""
    found: dict[str, str] = {}
    inside = False
    with log.open(encoding='utf-8', errors='replace') as lines:
        for line in lines:
            if _HEADING.match(line):
                inside = True
            elif inside and line.startswith('----'):
                break
            elif inside and (entry := _ENTRY.match(line)):
                found[entry[1]] = entry[2].strip()
    # Pages of compiler flags, which nobody compares.
    return {k: v for k, v in found.items() if k != 'PyTorch compiling details' and v}


def _read_validation(path: Path, remarks: list[str]) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        remarks.append(f'validation/{path.name} is unreadable ({error})')
        return None


def flatten(node: Any, place: str = '') -> Iterable[tuple[str, str]]:
    """Yield a config's entries by their dotted names."""
    if isinstance(node, dict) and node:
        items = [(key, node[key]) for key in sorted(node, key=str)]
    elif isinstance(node, (list, tuple)) and any(isinstance(child, dict) for child in node):
        items = list(enumerate(node))
    else:
        yield place, repr(node)
        return
    for key, child in items:
        yield from flatten(child, f'{place}.{key}'.lstrip('.'))
