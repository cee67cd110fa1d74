"""Loading whole detectors and segmentors strictly, whatever names their backbone has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from backbones.checkpoints import CheckpointError, convert, listed

PREFIX = 'backbone.'
# Norms of outputs that the model does not ask for; the release's RetinaNet carries one.
_UNUSED_NORMS = re.compile(r'backbone\.output_norms\.\d\.(weight|bias)')


@dataclass
class Fit:
    tensors: dict[str, Tensor]
    names: dict[str, str]
    fresh: list[str]


def own_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the names of a detector's tensors to ours, in their order.

    Args:
        weights: The tensors of a whole detector or segmentor, ``backbone.*`` in any known layout.

    Raises:
        CheckpointError: There is no backbone, or it is of no known layout.
    """
    backbone = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}
    if not backbone:
        raise CheckpointError(
            'the checkpoint is not of a detector or segmentor: nothing in it is named backbone.*; '
            'weights of a classifier go to model.backbone.init_cfg'
        )
    ours = {f'{PREFIX}{v}': f'{PREFIX}{k}' for k, v in convert(backbone).names.items()}
    return {k: ours.get(k, k) for k in weights}


def fit(weights: Mapping[str, Tensor], model: nn.Module, new_heads: bool) -> Fit:
    """Return a checkpoint's tensors under the model's own names and in its shapes, if they fit.

    Args:
        weights: As for `own_names`.
        model: What they are for.
        new_heads: Leave out tensors outside the backbone and the neck that have another shape.

    Raises:
        CheckpointError: Something is missing, left over or of another shape.
    """
    own = model.state_dict()
    from backbones import MetaFormer

    if not isinstance(getattr(model, 'backbone', None), MetaFormer):
        missing = [k for k in own if k not in weights]
        left = [k for k in weights if k not in own]
        shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
        if missing or left or shapes:
            raise CheckpointError(
                f'the checkpoint does not fit {type(model).__name__}: {listed("missing", missing)}; '
                f'{listed("left over", left)}; {listed("other shapes", shapes)}. '
                'Is it of another config?'
            )
        return Fit(dict(weights), {k: k for k in weights}, [])
    names = own_names(weights)
    backbone = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}
    fitted = {f'{PREFIX}{k}': v for k, v in convert(backbone).tensors.items()}
    fitted |= {names[k]: v for k, v in weights.items() if names[k] not in fitted}
    fitted = {k: v for k, v in fitted.items() if k in own or not _UNUSED_NORMS.fullmatch(k)}
    other = [k for k in fitted if k in own and fitted[k].shape != own[k].shape]
    fresh = [k for k in other if new_heads and not k.startswith((PREFIX, 'neck.'))]
    missing = [k for k in own if k not in fitted]
    left = [k for k in fitted if k not in own]
    shapes = [k for k in other if k not in fresh]
    if missing or left or shapes:
        raise CheckpointError(
            f'the checkpoint does not fit {type(model).__name__}: {listed("missing", missing)}; '
            f'{listed("left over", left)}; {listed("other shapes", shapes)}. '
            'Is it of another config?'
        )
    loaded = {k: v for k, v in fitted.items() if k not in fresh}
    print_log(
        f'loaded {len(loaded)} of {len(own)} tensors of {type(model).__name__}'
        + (f'; of another shape, so starting afresh: {", ".join(fresh)}' if fresh else ''),
        'current',
    )
    return Fit(loaded, names, fresh)


def reorder_optimizer(
    state: Mapping[str, Any], saved: Iterable[str], model: nn.Module
) -> dict[str, Any]:
    """Bring an optimizer's state, kept by position, into the order of our parameters.

    Args:
        state: The state dict of an optimizer with one group of parameters.
        saved: Our names of the saved tensors, in the order of the saved model.
        model: The model whose parameters the optimizer now has.

    Raises:
        CheckpointError: The state has several groups or another number of parameters.
    """
    parameters = dict(model.named_parameters())
    order = [name for name in saved if name in parameters or _UNUSED_NORMS.fullmatch(name)]
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
