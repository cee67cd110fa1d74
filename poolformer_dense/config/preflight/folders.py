"""Whether the run can write where its results go."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ...errors import UserError
from ...files import require_writable
from .plan import Notice, Plan

_REMEDY = 'make room or get the right to write there, or name another folder with '


def check_folders(plan: Plan) -> Iterator[Notice]:
    """Whether files can be written in the work directory and where checkpoints go."""
    hooks = plan.cfg.get('default_hooks') or {}
    checkpoints = (hooks.get('checkpoint') or {}).get('out_dir') if 'train' in plan.splits else None
    places = (
        ('work_dir', plan.cfg.get('work_dir'), '--work-dir'),
        (
            'default_hooks.checkpoint.out_dir',
            checkpoints,
            '--cfg-options default_hooks.checkpoint.out_dir=PATH',
        ),
    )
    for key, folder, option in places:
        if not folder or '://' in str(folder):
            continue
        try:
            require_writable(folder, key, _REMEDY + option)
        except UserError as error:
            yield Notice(logging.ERROR, str(error))
