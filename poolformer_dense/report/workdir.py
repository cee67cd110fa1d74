"""Reading a work directory: what mmengine and `ReportHook` left there, of all its sessions."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.config_text import parse_config
from ..errors import UserError
from .validation import SUMMARY, read_summary

Record = dict[str, Any]
# The figures by which a run is judged, the first that there is.
_MAIN_METRICS = ('coco/bbox_mAP', 'coco/segm_mAP', 'pascal_voc/mAP', 'mIoU')
# Figures that mmdet counts from 0 to 1, and those that are in percent as they are logged.
_SHARE = re.compile(r'(^|[/_])m?A[PR]($|[_@\d])|_precision$')
_PERCENT = re.compile(r'(^|[/_])[am]?(IoU|Acc|Dice|Fscore|Precision|Recall)$')
_HEADING = re.compile(r'^(System|Runtime) environment:$')
_ENTRY = re.compile(r'^ {4}(\S.*?): (.*)$')


@dataclass
class Run:
    """A training, from all the sessions that it took.

    Attributes:
        folder: The work directory.
        name: What it is called on the page; the folder's name.
        config: The config of the last session, empty if it is missing or can't be read.
        config_text: Its file.
        environment: What mmengine says of the machine, by name.
        train: Records of training, ascending by ``step``, the iteration.
        val: Records of validation, ascending by ``step``: epoch or iteration, see `unit`. AP and
            what is measured like it are in percent.
        sessions: Names of the folders that the records are from.
        validation: What the last validation left, None if there is nothing.
        remarks: What is wrong with the folder's files.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ''
    environment: dict[str, str] = field(default_factory=dict)
    train: list[Record] = field(default_factory=list)
    val: list[Record] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    validation: dict[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)

    def setting(self, place: str) -> Any:
        """Return what the config has at a dotted place, None if there is no such place."""
        node: Any = self.config
        for part in place.split('.'):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    @property
    def unit(self) -> str:
        """What validations are counted by."""
        by_iteration = self.setting('default_hooks.logger.log_metric_by_epoch') is False
        return 'iteration' if by_iteration else 'epoch'

    @cached_property
    def metrics(self) -> list[str]:
        """Names of the validation's figures, the main one first."""
        told = dict.fromkeys(key for record in self.val for key in record)
        names = [n for n in told if n not in ('step', 'time', 'data_time', 'epoch', 'iter')]
        main = [name for name in _MAIN_METRICS if name in names][:1]
        return main + [name for name in names if name not in main]

    def in_percent(self, name: str) -> bool:
        """Whether a figure of the validation is a percentage."""
        return bool(_SHARE.search(name) or _PERCENT.search(name))

    @property
    def batch(self) -> int | None:
        """Images of an iteration, of all processes together."""
        images = self.setting('train_dataloader.batch_size')
        processes = self.environment.get('GPU number', '1')
        known = isinstance(images, int) and processes.isdecimal()
        return images * int(processes[:6]) if known else None

    @property
    def seconds(self) -> float:
        """Time spent on iterations of training, as logged."""
        steps = [0, *(record['step'] for record in self.train)]
        pairs = zip(self.train, itertools.pairwise(steps), strict=True)
        spent = [record.get('time', 0.0) * (end - start) for record, (start, end) in pairs]
        return sum(value for value in spent if math.isfinite(value))

    @property
    def progress(self) -> tuple[int, int | str, str]:
        """How far it came, how far it was to go, and the unit of both."""
        last = self.train[-1] if self.train else {}
        epochs = self.setting('train_cfg.max_epochs')
        if epochs:
            return last.get('epoch', 0), epochs, 'epoch'
        return last.get('step', 0), self.setting('train_cfg.max_iters') or '?', 'iteration'

    def series(self, name: str, split: str = 'train') -> tuple[list[float], list[float]]:
        """Return the steps and values of a figure."""
        records = self.train if split == 'train' else self.val
        records = [r for r in records if isinstance(r.get(name), (int, float))]
        # COCO's evaluation says -1 where there is nothing to find.
        records = [r for r in records if not (split == 'val' and r[name] == -1)]
        return [r['step'] for r in records], [float(r[name]) for r in records]

    def images_per_second(self) -> tuple[list[float], list[float]]:
        """Return iterations and the images trained a second at each."""
        steps, times = self.series('time')
        batch = self.batch or math.nan
        return steps, [batch / t if t > 0 else math.nan for t in times]

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
        _append_session(run, session)
    _count_in_percent(run.val)
    used = [folder / name for name in run.sessions] or sessions or [path.parent for path in logs]
    _read_config(run, used[-1] / 'vis_data' / 'config.py')
    for log in sorted(used[-1].glob('*.log'))[:1]:
        run.environment = _read_environment(log)
    try:
        run.validation = read_summary(folder / 'validation')
    except ValueError as error:
        run.remarks.append(f'validation/{SUMMARY} is unreadable ({error})')
    return run


def _append_session(run: Run, session: Path) -> None:
    """Append a session's records; what earlier ones did beyond its first step is undone."""
    train: dict[int, Record] = {}
    val: dict[int, Record] = {}
    broken = 0
    text = (session / 'vis_data' / 'scalars.json').read_text(encoding='utf-8', errors='replace')
    for line in filter(str.strip, text.splitlines()):
        try:
            record = {k: v for k, v in json.loads(line).items() if _is_figure(v)}
            (train if 'lr' in record or 'iter' in record else val)[record['step']] = record
        except (ValueError, KeyError, AttributeError, RecursionError):
            broken += 1
    if broken:
        run.remarks.append(f'{session.name}: {broken} lines of the log of figures are unreadable')
    if train:
        start = train[min(train)]
        run.train = [record for record in run.train if record['step'] < start['step']]
        position = start.get('epoch', start['step'])
        run.val = [record for record in run.val if record['step'] < position]
    if val:
        run.val = [record for record in run.val if record['step'] < min(val)]
    if train or val:
        run.sessions.append(session.name)
    run.train += [train[step] for step in sorted(train)]
    run.val += [val[step] for step in sorted(val)]


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and (isinstance(value, float) or abs(value) < 2**63)


def _count_in_percent(records: list[Record]) -> None:
    for name in {name for record in records for name in record if _SHARE.search(name)}:
        found = [r for r in records if isinstance(r.get(name), (int, float))]
        # An evaluator of somebody else's may have done so; -1 says that there is nothing to find.
        if max((r[name] for r in found if math.isfinite(r[name])), default=0) <= 1:
            for record in found:
                record[name] = record[name] if record[name] == -1 else 100 * record[name]


def _read_config(run: Run, path: Path) -> None:
    if not path.is_file():
        run.remarks.append(f'{path.parts[-3]}: there is no vis_data/config.py')
        return
    run.config_text = path.read_text(encoding='utf-8', errors='replace')
    run.config = parse_config(run.config_text)
    if run.config_text.strip() and not run.config:
        run.remarks.append(f'{path.parts[-3]}: the config is unreadable')


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
