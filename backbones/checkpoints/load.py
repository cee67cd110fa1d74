"""Loading pretrained weights strictly: everything fits, or nothing is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn

from .files import CheckpointError, read_checkpoint
from .layouts import LAYOUTS, rename

# What a file may lack: an ImageNet classifier was trained without our output norms.
MAY_BE_MISSING = re.compile(r'output_norms\.\d\.(weight|bias)')
# What a file may have over: the classifier, the norm after its pooling, and output norms (of the
# official layout) or whole stages of outputs that were not asked for.
MAY_BE_LEFT = re.compile(
    r'(head|norm)\.(weight|bias)|norm[0246]\.(weight|bias)|output_norms\.\d\.(weight|bias)'
)


def load_pretrained(model: nn.Module, source: str | Path, prefix: str | None = None) -> None:
    """Load a backbone's weights from a path or URL, in any known layout, strictly.

    Args:
        model: The backbone; untouched if anything is wrong.
        source: Path or URL. The weights may be bare, under ``state_dict`` or ``model``, and inside
            a full detector, segmentor or classifier.
        prefix: What stands before the backbone's names; found by itself (none or ``backbone.``)
            if not given.

    Raises:
        CheckpointError: The file can't be read, or names or shapes don't fit; the message lists
            what is missing, left over and of another shape.
    """
    weights = backbone_weights(read_checkpoint(source), source, prefix)
    own = model.state_dict()
    layout, names = _detect_layout(list(own), weights)
    renamed = {ours: weights[theirs] for ours, theirs in names.items() if theirs in weights}

    missing = [k for k in own if k not in renamed and not MAY_BE_MISSING.fullmatch(k)]
    unbuilt = _unbuilt_stages(own, layout)
    known = set(names.values())
    left = [
        k
        for k in weights
        if k not in known and not MAY_BE_LEFT.fullmatch(k) and not unbuilt.match(k)
    ]
    shapes = [
        f'{k} {tuple(renamed[k].shape)} for {tuple(own[k].shape)}'
        for k in renamed
        if renamed[k].shape != own[k].shape
    ]
    if missing or left or shapes:
        raise CheckpointError(
            f'{source} does not fit {type(model).__name__}: {_listed("missing", missing)}; '
            f'{_listed("left over", left)}; {_listed("other shapes", shapes)}. '
            f'Is it of another architecture than the config asks for?'
        )
    model.load_state_dict(renamed, strict=False)
    fresh = [k for k in own if k not in renamed]
    print_log(
        f'loaded {len(renamed)} of {len(own)} tensors of {type(model).__name__} from {source} '
        f'({layout} layout)' + (f'; not in the file: {", ".join(fresh)}' if fresh else ''),
        logger='current',
    )


def backbone_weights(
    checkpoint: object, source: str | Path, prefix: str | None = None
) -> dict[str, Tensor]:
    """Return the backbone's tensors of what a file held, without wrappers and prefixes."""
    for wrapper in ('state_dict', 'model'):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    tensors = checkpoint if isinstance(checkpoint, Mapping) else {}
    tensors = {k: v for k, v in tensors.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f'{source} holds no tensors by name; it is not a checkpoint')
    tensors = {k.removeprefix('module.'): v for k, v in tensors.items()}
    if prefix is None:
        prefix = 'backbone.' if any(k.startswith('backbone.') for k in tensors) else ''
    prefix = prefix and prefix.rstrip('.') + '.'
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _detect_layout(own: list[str], weights: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
    """The layout that names most of the file's tensors, and its name for each of ours."""
    candidates = {'own': {k: k for k in own}}
    candidates |= {layout: rename(own, table) for layout, table in LAYOUTS.items()}
    return max(candidates.items(), key=lambda item: len(set(item[1].values()) & set(weights)))


def _unbuilt_stages(own: Mapping[str, Tensor], layout: str) -> re.Pattern:
    """Names of the stages that the model does not build because no output needs them."""
    built = 1 + max(int(k.split('.')[1]) for k in own if k.startswith('stages.'))
    stages = range(built, 4)
    if layout == 'own':
        names = [rf'(downsamples|stages)\.{s}\.' for s in stages]
    else:
        names = [rf'network\.({2 * s - 1}|{2 * s})\.' for s in stages]
    return re.compile('|'.join(names) or '(?!)')


def _listed(what: str, keys: list[str], most: int = 6) -> str:
    shown = ', '.join(keys[:most]) + (f' and {len(keys) - most} more' if len(keys) > most else '')
    return f'{len(keys)} {what}' + (f' ({shown})' if keys else '')
