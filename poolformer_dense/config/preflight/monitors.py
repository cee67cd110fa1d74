"""Figures by which a run saves, stops or slows down, against those that evaluators report."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..walk import entries_of, evaluators_of, type_name, walk
from .plan import Notice, Plan

_AVERAGE_PRECISION = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
_RECALL = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
_LABEL_FIGURES = {
    'mIoU': ('mIoU', 'mAcc'),
    'mDice': ('mDice', 'mAcc'),
    'mFscore': ('mFscore', 'mPrecision', 'mRecall'),
}
# mmengine knows of these words that more is better.
_GREATER = ('acc', 'top', 'ar@', 'auc', 'precision', 'map', 'mdice', 'miou')


def check_monitors(plan: Plan) -> Iterator[Notice]:
    """Whether each figure that the run watches is reported, and by one evaluator."""
    for split in plan.splits:
        if split != 'train':
            yield from _reported_twice(plan, split)
    watched = list(_watched(plan)) if 'train' in plan.splits else []
    if watched and not any(True for _ in evaluators_of(plan.cfg, 'val')):
        place, name, _ = watched[0]
        text = f'{place}={name!r} has no effect: the config has no val_evaluator'
        yield Notice(logging.WARNING, text)
        return
    reported = [_figures(plan, 'val', node) for _, node in evaluators_of(plan.cfg, 'val')]
    if any(names is None for names in reported):
        return  # a type that is not known here reports what it likes
    names = [name for figures in reported for name in figures or ()]
    for place, name, rule in watched:
        if name == 'auto' or not names:
            continue
        if name not in names:
            known = [n for n in names if not n.endswith('_precision')] or names
            close = _nearest(name, names)
            text = (
                f'{place}={name!r}: val_evaluator does not report it, but {", ".join(known[:8])}'
                f'{", ..." if len(names) > 8 else ""}; --cfg-options {place}={close}'
            )
            yield Notice(logging.ERROR, text)
        elif rule == 'less':
            where = place.rpartition('.')[0]
            text = (
                f'{where}.rule is less, but more {name} is better; --cfg-options '
                f'{where}.rule=greater'
            )
            yield Notice(logging.ERROR, text)
        elif rule is None and not any(word in name.lower() for word in _GREATER):
            where = place.rpartition('.')[0]
            text = (
                f'{place}={name!r}: mmengine does not know whether more of it is better; '
                f'--cfg-options {where}.rule=greater'
            )
            yield Notice(logging.ERROR, text)


def _watched(plan: Plan) -> Iterator[tuple[str, str, str | None]]:
    """Yield the place, the name and the rule of each figure that the run watches."""
    for part in ('default_hooks', 'custom_hooks', 'param_scheduler'):
        for place, node in walk(plan.cfg.get(part), part):
            if not isinstance(node, Mapping):
                continue
            name = type_name(node)
            rules = [rule for _, rule in entries_of(node.get('rule'))]
            for i, (where, figure) in enumerate(entries_of(node.get('save_best'), 'save_best')):
                rule = rules[min(i, len(rules) - 1)] if rules else None
                where = where if where == 'save_best' else f'save_best{where}'
                yield f'{place}.{where}', figure, rule
            if 'EarlyStopping' in name and node.get('monitor'):
                yield f'{place}.monitor', node['monitor'], (rules or [None])[0]
            elif name.startswith('ReduceOnPlateau'):
                yield f'{place}.monitor', node.get('monitor', 'loss'), (rules or ['less'])[0]


def _figures(plan: Plan, split: str, metric: Mapping[str, Any]) -> list[str] | None:
    """Return the names of what a metric reports, None for a type that is not known here."""
    if type_name(plan.cfg.get(f'{split}_evaluator')) == 'MultiDatasetsEvaluator':
        return None  # it puts a prefix of the data set before each
    name = type_name(metric)
    prefix = metric.get('prefix')
    if metric.get('format_only') or name.startswith('Dump'):
        return []
    if name in ('CocoMetric', 'FasterCocoMetric'):
        prefix, names = prefix or 'coco', _coco_figures(plan, split, metric)
    elif name == 'IoUMetric':
        kinds = [kind for _, kind in entries_of(metric.get('iou_metrics', 'mIoU'))]
        figures = [figure for kind in kinds for figure in _LABEL_FIGURES.get(kind, ())]
        names = ['aAcc', *dict.fromkeys(figures)]
    elif name == 'VOCMetric' and _only(metric.get('metric', 'mAP')) == 'mAP':
        thresholds = [t for _, t in entries_of(metric.get('iou_thrs', 0.5))]
        prefix = prefix or 'pascal_voc'
        names = ['mAP', *(f'AP{int(threshold * 100):02d}' for threshold in thresholds)]
    else:
        return None
    return [f'{prefix}/{figure}' if prefix else figure for figure in names]


def _coco_figures(plan: Plan, split: str, metric: Mapping[str, Any]) -> list[str]:
    items = metric.get('metric_items')
    names: list[str] = []
    for _, kind in entries_of(metric.get('metric', 'bbox')):
        if kind == 'proposal_fast':
            names += [f'AR@{n}' for n in metric.get('proposal_nums', (100, 300, 1000))]
        elif kind == 'proposal':
            names += items or _RECALL
        else:
            if metric.get('classwise'):
                names += [f'{c}_precision' for c in _classes(plan, split)]
            names += [f'{kind}_{item}' for item in items or _AVERAGE_PRECISION]
    return list(dict.fromkeys(names))


def _classes(plan: Plan, split: str) -> Iterator[str]:
    for source in plan.sources:
        if any(place.startswith(f'{split}_dataloader') for place in source.places):
            yield from source.classes


def _reported_twice(plan: Plan, split: str) -> Iterator[Notice]:
    """Two metrics with figures of one name: mmengine stops when the evaluation is over."""
    found = [(place, _figures(plan, split, m)) for place, m in evaluators_of(plan.cfg, split)]
    counts = Counter(name for _, names in found for name in names or ())
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        *_, (place, _) = [(place, names) for place, names in found if twice[0] in (names or ())]
        text = (
            f'{split}_evaluator: two evaluators report {twice[0]!r}, which stops the run after the '
            f'last image; give one another prefix, e.g. --cfg-options {place}.prefix=second'
        )
        yield Notice(logging.ERROR, text)


def _nearest(name: str, names: Sequence[str]) -> str:
    """Return the name that was probably meant: same ending, or else similar."""
    last = name.rpartition('/')[2].lower()
    ending = [n for n in names if n.lower().endswith(last)]
    return (ending or difflib.get_close_matches(name, names, 1, 0.0) or list(names))[0]


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
