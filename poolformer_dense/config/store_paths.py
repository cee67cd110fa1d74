"""Object stores, wherever a config may name one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.fileio.backends import PetrelBackend, backends, prefix_to_backends

from ..object_stores import in_store, store_refusal
from .walk import walk

# Clients that nobody outside has; mmengine's old name of the first is ceph.
_CLIENTS = ('petrel', 'ceph')
_NEVER_BY_CLIENTS = ('work_dir', 'out_dir', 'save_dir', 'load_from', 'checkpoint')
# What goes to a server, which may have such a store.
_OF_SERVERS = ('tracking_uri', 'artifact_location', 'init_kwargs')


def refuse_stores(cfg: Config | Mapping[str, Any]) -> None:
    """Refuse a config that reads from or writes to an object store.

    To read data, a client that the user has registered with mmengine is let be.

    Raises:
        UserError: The first such place, and the remedy.
    """
    for place, child in walk(cfg):
        *above, key = place.split('.')
        if isinstance(child, Mapping) and child.get('backend') in _CLIENTS:
            if backends.get(child['backend'], PetrelBackend) is PetrelBackend:
                raise store_refusal(f'{place}.backend', child['backend'])
        elif in_store(child) and not {key, *above} & {*_OF_SERVERS}:
            scheme = child.strip().partition('://')[0].rpartition(':')[2]
            own = prefix_to_backends.get(scheme, PetrelBackend) is not PetrelBackend
            if not own or key in _NEVER_BY_CLIENTS:
                raise store_refusal(place, child)
