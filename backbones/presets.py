"""Every published architecture as one row of one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Arch:
    """The numbers that define a MetaFormer with four stages.

    Attributes:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        layer_scale_init: Initial value of both layer scales of every block.
        mlp_ratio: Hidden channels of the channel MLP over its input channels.
        pool_size: Odd side of the pooling window, in feature pixels.
    """

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    layer_scale_init: float = 1e-5
    mlp_ratio: float = 4.0
    pool_size: int = 3

    def __post_init__(self) -> None:
        for name in ('depths', 'dims'):
            values = tuple(getattr(self, name))
            if len(values) != 4 or not all(isinstance(v, int) and v > 0 for v in values):
                raise ValueError(f'arch.{name} must be four positive integers, got {values!r}')
            object.__setattr__(self, name, values)


# arXiv 2111.11418, Table 1; the layer-scale values are in its section 4.1.
POOLFORMER = {
    's12': Arch(depths=(2, 2, 6, 2), dims=(64, 128, 320, 512)),
    's24': Arch(depths=(4, 4, 12, 4), dims=(64, 128, 320, 512)),
    's36': Arch(depths=(6, 6, 18, 6), dims=(64, 128, 320, 512), layer_scale_init=1e-6),
    'm36': Arch(depths=(6, 6, 18, 6), dims=(96, 192, 384, 768), layer_scale_init=1e-6),
    'm48': Arch(depths=(8, 8, 24, 8), dims=(96, 192, 384, 768), layer_scale_init=1e-6),
}


def resolve_arch(arch: str | Mapping | Arch, presets: Mapping[str, Arch]) -> Arch:
    """Return the architecture that a name or a spec stands for.

    Args:
        arch: A name of ``presets``, or a mapping of `Arch`'s attributes (``depths`` and ``dims``
            at least), or an `Arch`.
        presets: The named architectures of the family.

    Raises:
        ValueError: The name is not in the table, or the spec is incomplete or has unknown entries.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in presets:
            raise ValueError(f'unknown arch {arch!r}; choose from {", ".join(presets)}')
        return presets[arch]
    known = [f.name for f in fields(Arch)]
    if unknown := sorted(set(arch) - set(known)):
        raise ValueError(f'unknown entries {unknown} in arch; it takes {", ".join(known)}')
    if missing := [name for name in ('depths', 'dims') if name not in arch]:
        raise ValueError(f'arch lacks {" and ".join(missing)}; it takes {", ".join(known)}')
    return Arch(**arch)
