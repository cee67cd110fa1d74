"""From each layout to our names and shapes, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

from torch import Tensor

from .layouts import ATTENTION, LAYOUTS, POINTWISE, Layout
from .refusals import CheckpointError, listed

_FIELDS = {
    's': '[0-3]',
    'd': '[1-3]',
    'b': r'\d+',
    'leaf': 'weight|bias|running_mean|running_var|num_batches_tracked',
    'rest': '.+',
    'stage': r'\d+',
    'down': r'\d+',
    'pos': r'\d+',
}
# Where tensors of a backbone may stand in a larger model.
_PREFIXES = ('backbone.', 'poolformer.')
_POSITION = re.compile(r'network\.(\d+)\.pos_embed')
_OUR_POSITION = re.compile(r'position_embeddings\.(\d)\.embedding')


@dataclass
class Conversion:
    """What became of a file's tensors.

    Attributes:
        layout: The layout they had; None for those of another model, which keep their names.
        tensors: The backbone's, by our name, in our shapes.
        names: Their names in the file to ours.
        dropped: Names that belong to another part of the model, as the allow-lists say.
        left: Names that the layout does not have.
    """

    layout: str | None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def detect_layout(keys: Iterable[str]) -> str:
    """Return the layout that explains most of the names of a state dict.

    Raises:
        CheckpointError: No layout explains any.
    """
    bare, prefix = _without_prefix(keys)
    places = _Places.of_theirs(bare)
    scores = {}
    for name, layout in LAYOUTS.items():
        known = sum(_to_ours(key, layout, places) is not None for key in bare)
        scores[name] = (known, bool(layout.prefix) and layout.prefix == prefix)
    best = max(scores, key=lambda name: scores[name])
    if not scores[best][0]:
        raise CheckpointError(
            f'{listed("tensors", list(bare), most=3)}, none named as in a MetaFormer of any known '
            f'layout ({", ".join(LAYOUTS)})'
        )
    return best


def from_layout(state_dict: Mapping[str, Tensor], layout: str | None = None) -> dict[str, Tensor]:
    """Convert a state dict of any known layout to our names and shapes.

    Args:
        state_dict: Tensors by name: of a backbone, a classifier, or a whole detector or segmentor
            whose backbone is under ``backbone.``; the other parts are dropped.
        layout: A name of `LAYOUTS`; found from the names if not given.

    Raises:
        CheckpointError: The layout is unknown, has no place for some tensors, or a tensor does
            not have the dimensions that it needs.
    """
    conversion = convert_names(state_dict, layout)
    if conversion.left:
        raise CheckpointError(
            f'the {conversion.layout} layout does not have {listed("tensors", conversion.left)}'
        )
    return conversion.tensors


def to_layout(state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Convert a backbone's state dict from our names and shapes to another layout.

    Output norms are dropped where the other layout has none; see `dropped_by`.

    Args:
        state_dict: Tensors by our names.
        layout: A name of `LAYOUTS`.

    Raises:
        CheckpointError: The layout is unknown, or can't express some of the tensors.
    """
    target = _layout(layout)
    places = _Places.of_ours(state_dict)
    dropped = dropped_by(state_dict, layout)
    converted, left = {}, []
    for key, tensor in state_dict.items():
        if key in dropped:
            continue
        theirs = _to_theirs(key, target, places)
        if theirs is None:
            left.append(key)
            continue
        if _match(key, POINTWISE):
            _check_pointwise(key, tensor)
            if _is_linear(key, target, state_dict):
                tensor = tensor.flatten(1)  # (O, I, 1, 1) -> (O, I)
        converted[target.prefix + theirs] = tensor
    if left:
        raise CheckpointError(f'the {layout} layout has no name for {listed("tensors", left)}')
    return converted


def dropped_by(state_dict: Mapping[str, Tensor], layout: str) -> list[str]:
    """The names of a state dict of ours that `to_layout` leaves out."""
    return [key for key in state_dict if _match(key, _layout(layout).ours_only)]


def convert_names(
    state_dict: Mapping[str, Tensor], layout: str | None = None, prefix: str | None = None
) -> Conversion:
    """Convert to our names and shapes, and account for every tensor.

    Args:
        state_dict: As for `from_layout`.
        layout: As for `from_layout`.
        prefix: What stands before the backbone's names; found by itself if not given.

    Raises:
        CheckpointError: The layout is unknown, nothing has the prefix, or a
            tensor does not have the dimensions that it needs.
    """
    bare, _ = _without_prefix(state_dict, prefix)
    layout = layout or detect_layout(bare if prefix else state_dict)
    source = _layout(layout)
    places = _Places.of_theirs(bare)
    result = Conversion(layout)
    inside = set(bare.values())
    result.dropped += [key for key in state_dict if key not in inside]
    for key, name in bare.items():
        ours = _to_ours(key, source, places)
        if ours is None:
            (result.dropped if _match(key, source.theirs_only) else result.left).append(name)
            continue
        tensor = state_dict[name]
        if _match(ours, POINTWISE):
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]  # (O, I) -> (O, I, 1, 1)
            _check_pointwise(name, tensor)
        result.tensors[ours] = tensor
        result.names[name] = ours
    return result


class _Places:
    """Where stages and what is between them stand in the official ``network`` list."""

    def __init__(self, embedded: Iterable[int] = ()) -> None:
        order = []
        for s in range(4):
            order += [('down', s)] if s else []
            order += [('pos', s)] if s in embedded else []
            order += [('stage', s)]
        self.place: dict[str, dict[int, int]] = {'down': {}, 'pos': {}, 'stage': {}}
        for place, (kind, s) in enumerate(order):
            self.place[kind][s] = place

    @classmethod
    def of_ours(cls, keys: Iterable[str]) -> _Places:
        return cls({int(m[1]) for key in keys if (m := _OUR_POSITION.fullmatch(key))})

    @classmethod
    def of_theirs(cls, keys: Iterable[str]) -> _Places:
        found = {int(m[1]) for key in keys if (m := _POSITION.fullmatch(key))}
        for embedded in combinations(range(4), len(found)):
            places = cls(embedded)
            if set(places.place['pos'].values()) == found:
                return places
        return cls()

    def fill(self, fields: dict[str, str]) -> dict[str, str]:
        """Add the places of a stage of ours to the fields of a template."""
        s = int(fields.get('s') or fields.get('d') or 0)
        return fields | {kind: str(of[s]) for kind, of in self.place.items() if s in of}

    def stage(self, fields: dict[str, str]) -> dict[str, str] | None:
        """Add the stage that is at a place; None if something else is there."""
        for kind, of in self.place.items():
            if kind in fields:
                stages = [str(s) for s, place in of.items() if place == int(fields[kind])]
                return fields | {'s': stages[0], 'd': stages[0]} if stages else None
        return fields


def _to_theirs(key: str, layout: Layout, places: _Places) -> str | None:
    for ours, theirs in layout.rows:
        if (fields := _fields(ours, key)) is not None:
            return theirs.format(**places.fill(fields))
    return None


def _to_ours(key: str, layout: Layout, places: _Places) -> str | None:
    for ours, theirs in layout.rows:
        fields = _fields(theirs, key)
        if fields is not None and (fields := places.stage(fields)) is not None:
            return ours.format(**fields)
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r'\{(\w+)\}', template)  # text, field, text, ...
    parts[0::2] = map(re.escape, parts[0::2])
    parts[1::2] = (f'(?P<{name}>{_FIELDS[name]})' for name in parts[1::2])
    return re.compile(''.join(parts))


def _fields(template: str, key: str) -> dict[str, str] | None:
    match = _pattern(template).fullmatch(key)
    return match.groupdict() if match else None


def _match(key: str, templates: Iterable[str]) -> bool:
    return any(_fields(template, key) is not None for template in templates)


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise CheckpointError(f'unknown layout {name!r}; choose from {", ".join(LAYOUTS)}')
    return LAYOUTS[name]


def _is_linear(key: str, target: Layout, state_dict: Mapping[str, Tensor]) -> bool:
    if target.linear == 'attention':
        _, s, b, _ = key.split('.', 3)
        return ATTENTION.format(s=s, b=b) in state_dict
    return target.linear == 'all'


def _check_pointwise(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 4 or tensor.shape[2:] != (1, 1):
        raise CheckpointError(
            f'{name} has shape {tuple(tensor.shape)}, neither that of a linear layer (O, I) nor '
            'of a 1x1 convolution (O, I, 1, 1)'
        )


def _without_prefix(keys: Iterable[str], prefix: str | None = None) -> tuple[dict[str, str], str]:
    """The backbone's names without their prefix, each to the given one, and the prefix."""
    names = {key: key for key in keys}
    if all(key.startswith('module.') for key in names):  # from DistributedDataParallel
        names = {key.removeprefix('module.'): key for key in names}
    if prefix is None:
        found = (p for p in _PREFIXES if any(key.startswith(p) for key in names))
        prefix = next(found, '')
    elif prefix:
        prefix = prefix.rstrip('.') + '.'
    bare = {k.removeprefix(prefix): name for k, name in names.items() if k.startswith(prefix)}
    if not bare:
        raise CheckpointError(f'no tensor is named {prefix}*' if prefix else 'there are no tensors')
    return bare, prefix
