"""How each code base names the parameters of a PoolFormer: tables, no logic beyond filling them.

A table pairs our name with the other's, without the trailing ``.weight`` or ``.bias``. ``{s}`` is
the stage (0 to 3), ``{b}`` the block in it; ``{2s}`` and ``{2s-1}`` are the places of stage s and
of the downsampling before it in the official ``network``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# sail-sg/poolformer v1.0; mmpretrain and the mmseg zoo use the same names under `backbone.`.
OFFICIAL = {
    'downsamples.0.conv': 'patch_embed.proj',
    'downsamples.{s}.conv': 'network.{2s-1}.proj',
    'stages.{s}.{b}.norm1': 'network.{2s}.{b}.norm1',
    'stages.{s}.{b}.norm2': 'network.{2s}.{b}.norm2',
    'stages.{s}.{b}.mlp.fc1': 'network.{2s}.{b}.mlp.fc1',
    'stages.{s}.{b}.mlp.fc2': 'network.{2s}.{b}.mlp.fc2',
    'stages.{s}.{b}.layer_scale1.scale': 'network.{2s}.{b}.layer_scale_1',
    'stages.{s}.{b}.layer_scale2.scale': 'network.{2s}.{b}.layer_scale_2',
    'output_norms.{s}': 'norm{2s}',
}

LAYOUTS = {'official': OFFICIAL}


def rename(own_keys: Iterable[str], table: dict[str, str]) -> dict[str, str]:
    """Map each of our state-dict keys to its name in another layout.

    Raises:
        KeyError: The table has no row for a key.
    """
    return {key: _rename_one(key, table) for key in own_keys}


def _rename_one(key: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        pattern = re.escape(ours).replace(r'\{s\}', r'(?P<s>\d)').replace(r'\{b\}', r'(?P<b>\d+)')
        if match := re.fullmatch(pattern + r'(?P<leaf>\.weight|\.bias|)', key):
            place = match.groupdict()
            stage = int(place.get('s', 0))
            fields = {**place, '2s': 2 * stage, '2s-1': 2 * stage - 1}
            return theirs.format(**fields) + place['leaf']
    raise KeyError(f'no row for {key!r}')
