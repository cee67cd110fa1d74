"""Every checkpoint that mmengine reads goes through `backbones.checkpoints`, wherever it is."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.fileio import get_local_path
from mmengine.runner import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from mmengine.runner.checkpoint import CheckpointLoader

from backbones.checkpoints import CheckpointError, is_url, read_checkpoint
from backbones.weights import RELEASED


@contextmanager
def safe_reading(unsafe: bool = False) -> Iterator[None]:
    """Within the block mmengine reads checkpoints of every scheme by `read_any`.

    Without it mmengine falls back to the unrestricted unpickler for what the restricted one
    refuses.

    Args:
        unsafe: Run what the files hold.
    """
    before = dict(CheckpointLoader._schemes)
    reader = functools.wraps(read_any)(functools.partial(read_any, unsafe=unsafe))
    for scheme in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(scheme, reader, force=True)
    try:
        yield
    finally:
        for scheme, loader in before.items():
            CheckpointLoader.register_scheme(scheme, loader, force=True)


def read_any(source: str, map_location: Any = None, unsafe: bool = False) -> Any:
    """Read a checkpoint from a path, a URL or a name of one of mmengine's schemes.

    Args:
        source: As `read_checkpoint` takes it, or ``torchvision://``, ``open-mmlab://`` or
            ``mmcls://`` with a name, or ``s3://`` with a path.
        map_location: As for `torch.load`.
        unsafe: Run what the file holds.

    Raises:
        CheckpointError: The scheme has no such name or is another one, or the file is refused.
    """
    scheme, _, name = source.partition('://')
    if not name or is_url(source) or source in RELEASED:
        return read_checkpoint(source, map_location, unsafe)
    if scheme.endswith(('s3', 'petrel')):
        with get_local_path(source, backend_args={'backend': 'petrel'}) as path:
            return read_checkpoint(path, map_location, unsafe)
    checkpoint = read_checkpoint(_find(scheme, name, source), map_location, unsafe)
    if scheme == 'mmcls':
        weights = checkpoint.get('state_dict', checkpoint)
        prefix = 'backbone.'
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        checkpoint = {'state_dict': weights}
    return checkpoint


def _find(scheme: str, name: str, source: str) -> str:
    """Return the URL of a name in one of mmengine's lists."""
    if scheme in ('torchvision', 'modelzoo'):
        known = get_torchvision_models()
    elif scheme in ('open-mmlab', 'openmmlab'):
        known = get_external_models()
        name = get_deprecated_model_names().get(name, name)
    elif scheme == 'mmcls':
        known = get_mmcls_models()
    else:
        raise CheckpointError(
            f'{source}: files of {scheme}:// are not read, as they could not be checked first; '
            'download it and give its path'
        )
    if name not in known:
        raise CheckpointError(f'{source}: {scheme}:// has no {name}; give a path or a URL')
    return known[name]
