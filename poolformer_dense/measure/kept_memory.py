"""What a computation keeps in memory for its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def kept_for_backward(module: nn.Module) -> Iterator[Callable[[], int]]:
    """Count the bytes that what is computed in this context keeps for backward.

    Each storage counts once and as a whole; the module's parameters and buffers do not count.

    Args:
        module: The one that computes.

    Yields:
        A function that returns the bytes kept so far.
    """
    own = {t.untyped_storage().data_ptr() for t in module.state_dict().values()}
    # Holding the storages keeps their addresses from being used again.
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(s.nbytes() for s in kept.values())
