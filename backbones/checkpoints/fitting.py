"""Loading weights strictly: everything fits, or nothing is touched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from .conversion import Conversion, convert_names
from .reading import read_checkpoint
from .refusals import CheckpointError, listed

# What every MetaFormer of ours has, and where it may stand in a model.
_OURS = 'downsamples.0.conv.weight'
_PLACES = ('', 'backbone.')
# A file may have norms of outputs that the model does not ask for: the release's RetinaNet does.
# The file of a bare backbone may lack norms: ImageNet classifiers were trained without them.
_OUTPUT_NORM = r'(backbone\.)?output_norms\.\d\.(weight|bias)'


@dataclass
class Fit:
    """How the tensors of a file fit a model.

    Attributes:
        tensors: What the model loads, by its own names and in its shapes.
        names: Each tensor of the file: its name there to its name in the model. What has no place
            in the model keeps its name, or gets the one of our layout.
        fresh: Names of the model's tensors that keep their values, where that is allowed: the file
            lacks them or has them in another shape.
        unused: Names in the file of what is not loaded, where that is allowed.
        layout: The layout of the backbone in the file; None if the model has no MetaFormer.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str]
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    layout: str | None = None


def load_weights(
    model: nn.Module,
    checkpoint: str | Path | Mapping[str, Any],
    new_heads: bool = False,
    prefix: str | None = None,
    source: str | Path | None = None,
) -> Fit:
    """Load weights into a model, strictly, and log what was loaded.

    Args:
        model: As for `fit`; untouched if anything is wrong.
        checkpoint: A source as for `read_checkpoint`, or what that returned.
        new_heads: As for `fit`.
        prefix: As for `fit`.
        source: Where a checkpoint comes from that was read before, for messages.

    Raises:
        CheckpointError: The file can't be read or does not fit.
    """
    if isinstance(checkpoint, Mapping):
        read = checkpoint
    else:
        source, read = checkpoint, read_checkpoint(checkpoint)
    found = fit(read, model, new_heads, prefix, source)
    model.load_state_dict(found.tensors, strict=False)
    print_log(
        f'loaded {len(found.tensors)} of {len(model.state_dict())} tensors of '
        f'{type(model).__name__} from {source or "the checkpoint"}'
        + (f' ({found.layout} layout)' if found.layout else '')
        + (f'; starting afresh: {", ".join(found.fresh)}' if found.fresh else '')
        + (f'; not used: {listed("tensors", found.unused)}' if found.unused else ''),
        'current',
    )
    return found


def fit(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    new_heads: bool = False,
    prefix: str | None = None,
    source: str | Path | None = None,
) -> Fit:
    """Bring the tensors of a file under a model's own names and in its shapes, if all fit.

    A bare MetaFormer takes the weights of a backbone, a classifier, or a whole detector or
    segmentor, in any known layout. A whole detector or segmentor with a MetaFormer takes another
    one whose ``backbone.*`` is in any known layout. Any other model must have the same names.

    Args:
        checkpoint: What `read_checkpoint` returned, or tensors by their names.
        model: What they are for; it is not changed.
        new_heads: Leave out tensors outside of backbone and neck that have another shape.
        prefix: What stands before the backbone's names in the file, for a bare MetaFormer; found
            from the names if not given.
        source: Where they come from, for messages.

    Raises:
        CheckpointError: Something is missing, left over, of another shape, or NaN or infinite where
            the model's own is finite; all are listed.
    """
    problem = f'{source or "the checkpoint"} does not fit {type(model).__name__}'
    weights = weights_of(checkpoint, source)
    own = model.state_dict()
    place = next((p for p in _PLACES if p + _OURS in own), None)
    try:
        file = _under_our_names(weights, place, prefix)
    except CheckpointError as error:
        raise CheckpointError(f'{problem}: {error}') from error
    tensors = {k: v for k, v in file.tensors.items() if k in own}
    missing = [k for k in own if k not in tensors]
    other = [k for k, v in tensors.items() if v.shape != own[k].shape]
    fresh = []
    if place == '':
        fresh = [k for k in missing if re.fullmatch(_OUTPUT_NORM, k)]
    elif place and new_heads:
        fresh = [k for k in other if not k.startswith((place, 'neck.'))]
    spare = re.compile('|'.join(_spare_names(own, place)) or '(?!)')
    over = {theirs: ours for theirs, ours in file.names.items() if ours not in own}
    unused = [theirs for theirs, ours in over.items() if spare.fullmatch(ours)]
    missing = [k for k in missing if k not in fresh]
    left = file.left + [theirs for theirs in over if theirs not in unused]
    shapes = [
        f'{k} {tuple(tensors[k].shape)} for {tuple(own[k].shape)}' for k in other if k not in fresh
    ]
    if missing or left or shapes:
        raise CheckpointError(
            f'{problem}: {listed("missing", missing)}; {listed("left over", left)}; '
            f'{listed("other shapes", shapes)}. Is it of another architecture or another config?'
        )
    tensors = {k: v for k, v in tensors.items() if k not in fresh}
    broken = [k for k, v in tensors.items() if not _is_finite(v) and _is_finite(own[k])]
    if broken:
        raise CheckpointError(
            f'{source or "the checkpoint"} was not loaded: {listed("NaN or infinite", broken)}. '
            'The training that wrote it diverged; take an earlier checkpoint'
        )
    return Fit(
        tensors,
        {k: k for k in file.dropped} | file.names,
        fresh,
        file.dropped + unused,
        file.layout,
    )


def weights_of(checkpoint: object, source: str | Path | None = None) -> dict[str, Tensor]:
    """Return the tensors of what a file held, by name, without wrappers.

    Args:
        checkpoint: What `read_checkpoint` returned.
        source: Where it comes from, for messages.

    Raises:
        CheckpointError: There are no tensors.
    """
    for wrapper in ('state_dict', 'model'):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    tensors = checkpoint if isinstance(checkpoint, Mapping) else {}
    tensors = {k: v for k, v in tensors.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(
            f'{source or "the checkpoint"} holds no tensors by name; it is not a checkpoint'
        )
    if all(key.startswith('module.') for key in tensors):  # from DistributedDataParallel
        tensors = {key.removeprefix('module.'): tensor for key, tensor in tensors.items()}
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # types of 8 bits know little arithmetic
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def reorder_optimizer(
    state: Mapping[str, Any], names: Iterable[str], model: nn.Module
) -> dict[str, Any]:
    """Bring an optimizer's state, kept by position, into the order of a model's parameters.

    Args:
        state: The state dict of an optimizer with one group of parameters.
        names: Names in the model of the saved tensors, in the order of the saved model:
            ``Fit.names.values()``.
        model: The model whose parameters the optimizer now has.

    Raises:
        CheckpointError: The state has several groups or another number of parameters.
    """
    parameters = dict(model.named_parameters())
    order = [name for name in names if name in parameters or re.fullmatch(_OUTPUT_NORM, name)]
    groups = state['param_groups']
    if len(groups) != 1 or len(groups[0]['params']) != len(order):
        raise CheckpointError(
            'the optimizer state of the checkpoint belongs to another code base and does not have '
            'one group with its parameters; start from the weights with --cfg-options load_from='
        )
    place = {name: groups[0]['params'][i] for i, name in enumerate(order)}
    moved = {}
    for i, (name, parameter) in enumerate(parameters.items()):
        if entry := state['state'].get(place[name]):
            moved[i] = {
                k: v.view_as(parameter) if isinstance(v, Tensor) and v.ndim else v
                for k, v in entry.items()
            }
    return {
        **state,
        'state': moved,
        'param_groups': [groups[0] | {'params': list(range(len(parameters)))}],
    }


def _under_our_names(
    weights: Mapping[str, Tensor], place: str | None, prefix: str | None
) -> Conversion:
    """Give tensors the names that a model with a MetaFormer at this place has."""
    if place is None:
        return Conversion(None, dict(weights), {k: k for k in weights})
    if place == '':
        return convert_names(weights, prefix=prefix)
    inside = {k.removeprefix(place): v for k, v in weights.items() if k.startswith(place)}
    if not inside:
        raise CheckpointError(
            f'it is not of a detector or segmentor: nothing in it is named {place}*; weights of a '
            'classifier go to model.backbone.init_cfg'
        )
    backbone = convert_names(inside)
    names = {k: k for k in weights if not k.startswith(place)}
    names |= {place + theirs: place + ours for theirs, ours in backbone.names.items()}
    tensors = {place + ours: tensor for ours, tensor in backbone.tensors.items()}
    return Conversion(
        backbone.layout,
        {ours: tensors.get(ours, weights[theirs]) for theirs, ours in names.items()},
        {theirs: names[theirs] for theirs in weights if theirs in names},  # in the file's order
        left=[place + theirs for theirs in backbone.dropped + backbone.left],
    )


def _spare_names(own: Mapping[str, Tensor], place: str | None) -> list[str]:
    """Patterns of what a file may have and a model with a MetaFormer may lack."""
    if place is None:
        return []
    if place:
        return [_OUTPUT_NORM]
    # Stages that the model does not build because no output needs them.
    built = 1 + max(int(k.split('.')[1]) for k in own if k.startswith('stages.'))
    return [_OUTPUT_NORM, rf'(downsamples|position_embeddings|stages)\.[{built}-9]\..+']
