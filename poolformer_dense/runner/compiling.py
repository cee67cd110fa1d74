"""torch.compile for the parts of a detector or segmentor whose graphs are whole."""

from __future__ import annotations

from typing import Any

from torch import nn

_PARTS = ('backbone', 'neck')


def compile_parts(model: nn.Module, **options: Any) -> list[str]:
    """Compile the backbone and the neck in place, each for itself, for images of any size.

    Heads stay as they are: what they compute depends on how many objects there are. Names of
    weights don't change. The first images of a kind take the time of the compilation.

    Args:
        model: A detector or segmentor.
        options: For ``torch.compile``; sizes are dynamic unless they say otherwise.

    Returns:
        The names of the parts; none if the model has no such parts.
    """
    parts = {name: getattr(model, name, None) for name in _PARTS}
    found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    for part in found.values():
        part.compile(**{'dynamic': True, **options})
    return list(found)
