"""Learning rates of parts: names in ``paramwise_cfg`` that no parameter has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def idle_keys(optim_wrapper: Any, parameters: Iterable[str]) -> Iterator[str]:
    """Yield a line for each key of ``paramwise_cfg.custom_keys`` that is in no parameter's name.

    Args:
        optim_wrapper: The config of an optimizer's wrapper.
        parameters: The names of the model's parameters.
    """
    paramwise = optim_wrapper.get('paramwise_cfg') if isinstance(optim_wrapper, Mapping) else None
    keys = (paramwise or {}).get('custom_keys') or {}
    names = [*parameters]
    parts = {'.'.join(name.split('.')[:n]) for name in names for n in range(1, name.count('.') + 1)}
    for key in keys:
        if any(key in name for name in names):
            continue
        near = difflib.get_close_matches(key, sorted(parts), 1)
        hint = f'; is it {near[0]!r}?' if near else ''
        yield (
            f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} is in no name of a parameter and '
            f'changes nothing{hint}'
        )
