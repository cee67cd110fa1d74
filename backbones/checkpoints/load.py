"""Loading pretrained weights strictly: everything fits, or nothing is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn

from .convert import convert
from .errors import CheckpointError, listed
from .files import read_checkpoint

# What a file may lack, and may have for stages that are not outputs of the model: ImageNet
# classifiers were trained without our output norms, and the release's RetinaNet has an unused one.
# What else a file may have over is `Layout.theirs_only`.
OUTPUT_NORM = re.compile(r'output_norms\.\d\.(weight|bias)')


def load_pretrained(model: nn.Module, source: str | Path, prefix: str | None = None) -> None:
    """Load a backbone's weights, in any known layout, strictly.

    Args:
        model: The backbone; untouched if anything is wrong.
        source: A path, a URL, or the name of released weights (`weights.RELEASED`). The weights
            may be bare, under ``state_dict`` or ``model``, and inside a full detector, segmentor
            or classifier.
        prefix: What stands before the backbone's names; found by itself if not given.

    Raises:
        CheckpointError: The file can't be read, or names or shapes don't fit; the message lists
            what is missing, left over and of another shape.
    """
    weights = backbone_weights(read_checkpoint(source), source)
    try:
        file = convert(weights, prefix=prefix)
    except CheckpointError as error:
        raise CheckpointError(f'{source} does not fit {type(model).__name__}: {error}') from error
    own = model.state_dict()
    optional = re.compile(f'{OUTPUT_NORM.pattern}|{_unbuilt_stages(own)}')
    missing = [k for k in own if k not in file.tensors and not OUTPUT_NORM.fullmatch(k)]
    left = file.left + [
        file.names[k] for k in file.tensors if k not in own and not optional.fullmatch(k)
    ]
    fitting = {k: v for k, v in file.tensors.items() if k in own}
    shapes = [
        f'{k} {tuple(v.shape)} for {tuple(own[k].shape)}'
        for k, v in fitting.items()
        if v.shape != own[k].shape
    ]
    if missing or left or shapes:
        raise CheckpointError(
            f'{source} does not fit {type(model).__name__}: {listed("missing", missing)}; '
            f'{listed("left over", left)}; {listed("other shapes", shapes)}. '
            f'Is it of another architecture than the config asks for?'
        )
    model.load_state_dict(fitting, strict=False)
    fresh = [k for k in own if k not in fitting]
    unused = file.dropped + [file.names[k] for k in file.tensors if k not in own]
    print_log(
        f'loaded {len(fitting)} of {len(own)} tensors of {type(model).__name__} from {source} '
        f'({file.layout} layout)'
        + (f'; not in the file: {", ".join(fresh)}' if fresh else '')
        + (f'; not used: {listed("tensors", unused)}' if unused else ''),
        logger='current',
    )


def backbone_weights(checkpoint: object, source: str | Path) -> dict[str, Tensor]:
    """Return the tensors of what a file held, by name, without wrappers.

    Args:
        checkpoint: What `read_checkpoint` returned.
        source: Where it is from, for the message.

    Raises:
        CheckpointError: There are no tensors.
    """
    for wrapper in ('state_dict', 'model'):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    tensors = checkpoint if isinstance(checkpoint, Mapping) else {}
    tensors = {k: v for k, v in tensors.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f'{source} holds no tensors by name; it is not a checkpoint')
    return tensors


def _unbuilt_stages(own: Mapping[str, Tensor]) -> str:
    """A pattern of the stages that the model does not build because no output needs them."""
    built = 1 + max(int(k.split('.')[1]) for k in own if k.startswith('stages.'))
    return rf'(downsamples|position_embeddings|stages)\.[{built}-9]\..+'
