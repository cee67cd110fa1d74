"""Losses that do not fit the classes and channels of their heads."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS

from ..decode_heads import DecodeHead, argument, class_of, decode_heads
from ..walk import type_name, walk
from .plan import Notice, Plan

# Heads with a way of their own to call losses, which get a channel for each class all the same.
_BY_CHANNEL = ('DDRHead', 'EncHead', 'OCRHead', 'PIDHead')


def check_losses(plan: Plan) -> Iterator[Notice]:
    """Whether each loss can train the output of its head: channels, weights, a softmax of one."""
    for head in decode_heads(plan.cfg):
        if problem := _channels_problem(head):
            yield Notice(logging.ERROR, problem)
            continue
        notices = (_loss_notice(plan, head, place, loss) for place, loss in head.losses)
        if first := next(filter(None, notices), None):
            yield first
    for place, node in walk(plan.cfg.get('model'), 'model'):
        if isinstance(node, Mapping) and (problem := _detector_problem(place, node)):
            yield Notice(logging.ERROR, problem)


def _channels_problem(head: DecodeHead) -> str:
    place, classes, channels = head.place, head.num_classes, head.channels
    if channels not in (1, classes):
        return (
            f'{place}.out_channels={channels}, but num_classes={classes}: leave out_channels out, '
            f'e.g. --cfg-options {place}.out_channels=None'
        )
    if channels == 1 and classes > 2:
        return (
            f'{place}.out_channels=1 tells two classes apart, but num_classes={classes}: '
            f'--cfg-options {place}.out_channels=None'
        )
    return ''


def _loss_notice(
    plan: Plan, head: DecodeHead, place: str, loss: Mapping[str, Any]
) -> Notice | None:
    kind = class_of(plan.cfg, loss)
    own = isinstance(kind, type) and kind.__module__.startswith('mmseg.')
    if not own and torch.cuda.is_available():
        return None  # it may know GPUs alone
    sigmoid = own and bool(argument(kind, loss, 'use_sigmoid'))
    known = own and (head.plain or head.kind.__name__ in _BY_CHANNEL)
    if known and (problem := _weights_problem(head, place, loss, sigmoid)):
        return Notice(logging.ERROR, problem)
    # mmseg's FocalLoss has other rules for the CPU.
    if not head.plain or (type_name(loss) == 'FocalLoss' and torch.cuda.is_available()):
        failure = ''
        constant = head.channels == 1 and own and type_name(loss) == 'CrossEntropyLoss'
    else:
        failure, constant = _try_loss(plan, head, loss)
    if head.channels == 1 and not sigmoid and (failure or constant):
        said = 'out_channels' if head.node.get('out_channels') == 1 else 'num_classes'
        return Notice(
            logging.ERROR,
            f'{place} ({type_name(loss)}): a softmax over one output channel ({head.place}.{said}'
            '=1) is always 1 and learns nothing; with background and one class, set num_classes=2 '
            f'and out_channels=1 with a sigmoid (--cfg-options {place}.use_sigmoid=True), or '
            'num_classes=2 alone',
        )
    if failure and not _try_loss(plan, head, loss, ignored=False)[0]:
        return Notice(
            logging.WARNING,
            f'{place} ({type_name(loss)}) fails at the first pixel that is ignored '
            f'({head.place}.ignore_index={head.ignore_index}): {failure}',
        )
    if failure:
        return Notice(
            logging.ERROR,
            f'{place} ({type_name(loss)}) fails for the {head.num_classes} classes and '
            f'{head.channels} output channels of {head.place}: {failure}',
        )
    return None


def _weights_problem(head: DecodeHead, place: str, loss: Mapping[str, Any], sigmoid: bool) -> str:
    from mmseg.models.losses.utils import get_class_weight

    weights = loss.get('class_weight')
    try:
        weights = get_class_weight(weights)
    except (OSError, TypeError, ValueError) as error:
        return f'{place}.class_weight={weights}: {error}'
    if weights is None or not hasattr(weights, '__len__'):
        return ''
    # mmseg's binary cross entropy multiplies them with the last dimension, the width.
    single = sigmoid and type_name(loss) == 'CrossEntropyLoss'
    expected = 1 if single else head.channels
    if len(weights) == expected:
        return ''
    reason = f'{head.place} has {head.channels} output channels'
    if single:
        reason = 'with use_sigmoid=True mmseg takes one, for the positive pixels'
    return f'{place}.class_weight has {len(weights)} weights, but {reason}; give {expected}'


def _try_loss(
    plan: Plan, head: DecodeHead, loss: Mapping[str, Any], ignored: bool = True
) -> tuple[str, bool]:
    """Compute a loss of noise; return what it raises, and whether it is without gradient."""
    height, width = 3, head.num_classes + 2
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, head.channels, height, width, generator=generator).requires_grad_()
    labels = torch.arange(2 * height * width).reshape(2, height, width) % head.num_classes
    if ignored and head.ignore_index is not None:
        labels[0, 0, 0] = head.ignore_index
    with (
        MODELS.switch_scope_and_registry(plan.cfg.default_scope) as registry,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        try:
            built = registry.build(dict(loss))
            built(logits, labels, weight=None, ignore_index=head.ignore_index).sum().backward()
        except Exception as error:  # whatever a loss, maybe the user's own, may raise
            return f'{type(error).__name__}: {" ".join(str(error).split())}', False
    return '', logits.grad is None or not logits.grad.any()


def _detector_problem(place: str, node: Mapping[str, Any]) -> str:
    """Say what is wrong with the weights of a detection head's classes."""
    loss = node.get('loss_cls')
    if loss is None or type_name(loss) != 'CrossEntropyLoss':
        return ''
    weights = loss.get('class_weight')
    counts = [node.get(f'num_{kind}classes') for kind in ('', 'things_', 'stuff_')]
    classes = sum(count for count in counts if isinstance(count, int))
    if not isinstance(weights, Sequence) or isinstance(weights, str) or not classes:
        return ''
    sigmoid = loss.get('use_sigmoid')
    if len(weights) == classes + (not sigmoid) or (sigmoid and len(weights) == 1):
        return ''
    background = '' if sigmoid else ' and the background, which comes last'
    return (
        f'{place}.loss_cls.class_weight has {len(weights)} weights, but {place} has {classes} '
        f'classes{background}; give {classes + (not sigmoid)}'
    )
