"""Resuming with another config: what differs, which of the two is used, and what can't be resumed.

mmengine restores the optimizer with its groups' rates and the schedules from the checkpoint,
whatever the config says; all else is as the config says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mmengine.dist import is_main_process
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import INF

from ..config.config_text import is_plain, parse_config
from ..config.walk import entries_of
from ..errors import UserError

if TYPE_CHECKING:
    from .runner import DenseRunner

# What of a config makes a training; the rest are names, places and plain variables.
_PARTS = (
    'model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr',
    'randomness', 'val_dataloader', 'val_cfg', 'val_evaluator', 'default_hooks', 'custom_hooks',
)  # fmt: skip
_WITHOUT_EFFECT = (
    'init_cfg', 'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'timeout',
)  # fmt: skip
# Of these the checkpoint's are used.
_RESTORED = (
    'param_scheduler',
    'optim_wrapper.optimizer',
    'optim_wrapper.paramwise_cfg',
    'optim_wrapper.constructor',
    'auto_scale_lr',
    'randomness.seed',
)
_ABSENT = 'none'
_MOST_ROWS, _WIDTH = 20, 36
_REMEDY = (
    'resume with the config that the checkpoint was trained with, or start from its weights: '
    '--cfg-options load_from=PATH in place of --resume'
)


class Difference(NamedTuple):
    """An entry of which two configs have different values.

    Attributes:
        place: Where it stands, with dots for depth.
        then: The checkpoint's value.
        now: The config's.
    """

    place: str
    then: Any
    now: Any

    @property
    def used(self) -> str:
        """Which of the two a resumed run uses."""
        restored = any(f'{self.place}.'.startswith(f'{root}.') for root in _RESTORED)
        return 'checkpoint' if restored else 'config'


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Compare two configs in what makes a training."""
    found: list[Difference] = []
    for part in _PARTS:
        found += _differences(then.get(part, _ABSENT), now.get(part, _ABSENT), part)
    return found


def _differences(then: Any, now: Any, place: str) -> Iterator[Difference]:
    if then == now or place.rpartition('.')[2] in _WITHOUT_EFFECT or {*map(repr, (then, now))} <= {
        repr(_ABSENT), 'None', '{}', '[]',
    }:  # fmt: skip
        return
    both = isinstance(then, dict) and isinstance(now, dict)
    if both and (then.get('type') == now.get('type') or place.startswith('optim_wrapper')):
        for key in then | now:
            yield from _differences(then.get(key, _ABSENT), now.get(key, _ABSENT), f'{place}.{key}')
    elif (
        isinstance(then, list)
        and isinstance(now, list)
        and len(then) == len(now)
        and all(isinstance(entry, dict) for entry in then + now)
    ):
        for i, pair in enumerate(zip(then, now, strict=True)):
            yield from _differences(*pair, f'{place}.{i}')
    else:
        yield Difference(place, then, now)


def compare_with_checkpoint(runner: DenseRunner, checkpoint: Mapping[str, Any]) -> list[Difference]:
    """Return in what a run's config differs from that of the checkpoint that it resumes from.

    Args:
        runner: The run, its optimizer and schedules built.
        checkpoint: Its config is in ``meta``; without it there is nothing to compare.

    Raises:
        UserError: The optimizer, its groups of parameters or the schedules are others: the
            checkpoint's state does not fit them.
    """
    text = checkpoint.get('meta', {}).get('cfg')
    then, now = parse_config(text), {}
    # What is restored gets into the config that the run writes, which is code.
    then = then if is_plain(then) else {}
    if then and text != runner.cfg.pretty_text:
        now = parse_config(runner.cfg.pretty_text)
    found = differences(then, now) if now else []
    changed = {difference.place: difference for difference in found}
    if kind := changed.get('optim_wrapper.optimizer.type'):
        was, is_now = _names(kind.then), _names(kind.now)
        if was != is_now:
            raise UserError(f'{kind.place} is {is_now}, the checkpoint has {was}: {_REMEDY}')
    _check_groups(runner, checkpoint)
    _check_schedules(runner, checkpoint, then, now)
    return found


def _check_groups(runner: DenseRunner, checkpoint: Mapping[str, Any]) -> None:
    saved = checkpoint['optimizer'].get('param_groups')
    if not isinstance(runner.optim_wrapper, OptimWrapper) or not saved:
        return
    groups = runner.optim_wrapper.optimizer.param_groups
    was, is_now = ([len(group['params']) for group in each] for each in (saved, groups))
    if was != is_now:
        raise UserError(
            f'optim_wrapper: the config gives {sum(is_now)} parameters in {len(is_now)} groups to '
            f'the optimizer, the checkpoint has {sum(was)} in {len(was)} (paramwise_cfg, or what '
            f'of the model is frozen): {_REMEDY}'
        )


def _check_schedules(
    runner: DenseRunner,
    checkpoint: Mapping[str, Any],
    then: Mapping[str, Any],
    now: Mapping[str, Any],
) -> None:
    saved, schedules = checkpoint.get('param_schedulers'), runner.param_schedulers
    if now:
        was, is_now = _names(then.get('param_scheduler')), _names(now.get('param_scheduler'))
    elif isinstance(saved, list) and isinstance(schedules, list):
        was, is_now = str(len(saved)), str(len(schedules))
    else:
        return
    if was != is_now:
        raise UserError(f'param_scheduler is {is_now}, the checkpoint has {was}: {_REMEDY}')


def _names(node: Any) -> str:
    """The types of one or several nodes, without their scopes."""
    nodes = [entry for _, entry in entries_of(node) if entry != _ABSENT]
    types = [entry.get('type', '?') if isinstance(entry, dict) else entry for entry in nodes]
    return ', '.join(str(kind).rpartition('.')[2].strip("'>") for kind in types) or 'none'


def use_what_is_restored(runner: DenseRunner, found: Sequence[Difference]) -> None:
    """Say what differs and what is used, and make the run's config say what is used.

    What is dumped, logged and saved from here on is that config.

    Args:
        runner: The run, which has resumed.
        found: Of `compare_with_checkpoint`.
    """
    if not found:
        return
    rows = [('key', 'checkpoint', 'config', 'used')]
    rows += [(d.place, _short(d.then), _short(d.now), d.used) for d in found[:_MOST_ROWS]]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if len(found) > _MOST_ROWS:
        lines.append(f'and {len(found) - _MOST_ROWS} more, of which the config is used')
    lines += _end_of_schedule(runner)
    text = '\n  '.join(lines)
    runner.logger.warning(f'The config differs from that of the checkpoint:\n  {text}')
    restored = [difference for difference in found if difference.used == 'checkpoint']
    for difference in restored:
        *above, last = difference.place.split('.')
        node: Any = runner.cfg
        for key in above:
            node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
        if difference.then == _ABSENT:
            node.pop(last)
        else:
            node[last] = difference.then
    if restored:
        runner.message_hub.update_info('cfg', runner.cfg.pretty_text)
    if restored and is_main_process():
        runner.dump_config()
        try:
            runner.visualizer.get_backend('LocalVisBackend').add_config(runner.cfg)
        except KeyError:
            return  # nothing local was to be written


def _short(value: Any) -> str:
    text = _ABSENT if value == _ABSENT else repr(value)
    return text if len(text) <= _WIDTH else f'{text[: _WIDTH - 3]}...'


def _end_of_schedule(runner: DenseRunner) -> list[str]:
    """A line if the schedules that were restored end before or after the training."""
    loop, schedules = runner.train_loop, runner.param_schedulers
    if not isinstance(schedules, list) or not schedules:
        return []
    by_epoch = bool(getattr(loop, 'max_epochs', None))
    length = len(loop.dataloader) if by_epoch else 1
    ends = [_end(schedule) * (length if schedule.by_epoch else 1) for schedule in schedules]
    end, total = max(ends), loop.max_iters
    if not math.isfinite(end) or end == total:
        return []

    def point(iteration: float) -> str:
        whole = by_epoch and iteration % length == 0
        return f'epoch {iteration / length:g}' if whole else f'iteration {iteration:g}'

    if end < total:
        return [
            f"The checkpoint's schedule ends at {point(end)}, the training at {point(total)}: in "
            'between the learning rate stays as the schedule leaves it.'
        ]
    return [f"The training ends at {point(total)}, before the checkpoint's schedule: {point(end)}."]


def _end(schedule: Any) -> float:
    """When a schedule changes its value last, in its own unit; infinite if it never ends."""
    if schedule.end < INF:
        return float(schedule.end)
    return float(max(getattr(schedule, 'milestones', None) or [math.inf]))
