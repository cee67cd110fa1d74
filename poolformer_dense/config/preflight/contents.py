"""What a data set holds, as far as its images need not be opened."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

from ...data.audit import Audit, audit
from ...data.faults import is_error, short_name
from ...errors import first_process
from ..walk import datasets_of
from .plan import Notice, Plan


def check_annotations(plan: Plan) -> Iterator[Notice]:
    """What an audit finds without opening images; it reads annotation files whole."""
    tool = f'tools/verify_data.py {plan.cfg.filename}'
    if not first_process():  # one process is enough
        return
    results, unread = audit(plan.sources, quick=True)
    for place in [*plan.named[1], *unread]:
        yield Notice(logging.WARNING, f'{place}: not verified, the type is not known here')
    yield from _nothing_to_learn(plan, results)
    for result in results:
        errors = [found for found in result.faults if is_error(found)]
        if errors:
            kinds: dict[str, str] = {}
            for found in errors:
                kinds.setdefault(found.kind, f'{found.kind}: {found}')
            text = (
                f'{result.path} ({short_name(result.source.places)}) has errors: {len(errors)}, '
                f'first {"; ".join(list(kinds.values())[:3])}. For the whole table and a cleaned '
                f'file, run {tool}'
            )
            yield Notice(logging.ERROR, text)
        elif result.faults:
            counts = Counter(found.kind for found in result.faults)
            # What concerns the data as a whole is said, not counted.
            whole = {found.kind: found.detail for found in result.faults if not found.entry}
            listed = ', '.join(
                f'{count} x {kind}' + (f' ({whole[kind]})' if count == 1 and kind in whole else '')
                for kind, count in counts.items()
            )
            text = f'{result.path}: warnings: {listed}. For the table: {tool}'
            yield Notice(logging.WARNING, text)


def _nothing_to_learn(plan: Plan, results: Sequence[Audit]) -> Iterator[Notice]:
    """A training set without any object; a member of a concatenation may well have none."""
    training = [place for place, _ in datasets_of(plan.cfg, 'train')]
    bare = [
        (found.where, found.detail)
        for result in results
        for found in result.faults
        if found.kind == 'nothing to learn'
    ]
    if 'train' in plan.splits and training and len(bare) == len(training):
        yield Notice(logging.ERROR, '{}: {}'.format(*bare[0]))
