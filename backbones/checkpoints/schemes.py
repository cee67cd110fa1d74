"""The schemes that mmengine has for checkpoints, read by `fetch` and `read_checkpoint`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mmengine.runner import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from ..weights import RELEASED
from .fetching import fetch, is_url
from .refusals import CheckpointError


@contextlib.contextmanager
def local_file(source: str | Path) -> Iterator[Path]:
    """Give a local file for a source of any scheme; see `read_checkpoint`.

    Raises:
        CheckpointError: The scheme has no such name or is another one, or the file is missing.
    """
    source = str(source)
    scheme, _, name = source.partition('://')
    if not name or is_url(source) or source in RELEASED:
        yield fetch(source)
    else:
        yield fetch(_address(scheme, name, source))


def _address(scheme: str, name: str, source: str) -> str:
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
            'download it (from an object store e.g. with `aws s3 cp`) and give its path'
        )
    if name not in known:
        raise CheckpointError(f'{source}: {scheme}:// has no {name}; give a path or a URL')
    return str(known[name])
