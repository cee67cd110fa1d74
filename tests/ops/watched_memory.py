"""What Triton's interpreter can't notice: addresses in no tensor, programs in each other's way.

On a GPU the programs of a launch run at once and in no order. The interpreter runs them one after
the other, so a race has the right result there, and compute-sanitizer looks for races in shared
memory alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder


class Access(NamedTuple):
    """What a load or a store of a program touches; a load has no values."""

    program: int
    addresses: np.ndarray
    size: int
    values: np.ndarray | None


class WatchedMemory:
    """An observer of launches, as of `common.observed`, that holds each to the rules of a GPU.

    Raises:
        AssertionError: A program touches what is in none of the kernel's tensors, reads what
            another one writes or what it has written itself, writes another value to an address,
            or uses atomics. What the threads of one program do to each other is not seen.
    """

    def __init__(self) -> None:
        self._accesses: list[Access] = []

    def __call__(self, kernel: Any, arguments: tuple[Any, ...], run: Callable[[], None]) -> None:
        self._accesses = []
        run()
        name = kernel.fn.__name__
        _check_bounds(name, self._accesses, [a for a in arguments if isinstance(a, Tensor)])
        _check_order(name, self._accesses)

    def methods(self) -> dict[str, Callable[..., Any]]:
        """Of the interpreter's builder, by which this learns of loads and stores."""
        load = InterpreterBuilder.create_masked_load
        store = InterpreterBuilder.create_masked_store

        def create_masked_load(builder: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
            self._note(builder, ptrs, mask)
            return load(builder, ptrs, mask, *rest)

        def create_masked_store(builder: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._note(builder, ptrs, mask, value)
            return store(builder, ptrs, value, mask, *rest)

        def create_atomic_rmw(*_: Any) -> None:
            raise AssertionError('atomics give other bits each time')

        watched = (create_masked_load, create_masked_store, create_atomic_rmw)
        return {f.__name__: f for f in watched}

    def _note(self, builder: Any, ptrs: Any, mask: Any, value: Any = None) -> None:
        chosen = np.broadcast_to(mask.data.astype(bool), ptrs.data.shape)
        addresses = ptrs.data[chosen].astype(np.int64)
        values = None
        if value is not None:
            values = np.broadcast_to(value.data, chosen.shape)[chosen].astype(np.float64)
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        self._accesses.append(Access(builder.grid_idx[0], addresses, size, values))


def _check_bounds(name: str, accesses: list[Access], tensors: list[Tensor]) -> None:
    for access in accesses:
        inside = np.zeros(len(access.addresses), bool)
        for tensor in tensors:
            start = tensor.data_ptr()
            end = start + tensor.numel() * tensor.element_size() - access.size
            inside |= (start <= access.addresses) & (access.addresses <= end)
        assert inside.all(), f'{name}: program {access.program} is outside of all tensors'


def _check_order(name: str, accesses: list[Access]) -> None:
    def numbers(chosen: list[int], what: Callable[[int], int]) -> np.ndarray:
        sizes = [len(accesses[i].addresses) for i in chosen]
        return np.repeat([what(i) for i in chosen], sizes)

    stores = [i for i, a in enumerate(accesses) if a.values is not None]
    assert stores, f'{name}: nothing is written'
    loads = [i for i, a in enumerate(accesses) if a.values is None]
    values = np.concatenate([accesses[i].values for i in stores])
    addresses, one, which = np.unique(
        np.concatenate([accesses[i].addresses for i in stores]),
        return_index=True,
        return_inverse=True,
    )
    same = np.isclose(values, values[one][which], rtol=0, atol=0, equal_nan=True)
    assert same.all(), f'{name}: an address gets two values'
    programs, since = numbers(stores, lambda i: accesses[i].program), numbers(stores, lambda i: i)
    first, last, begun = (np.full(len(addresses), n) for n in (programs.max(), 0, len(accesses)))
    np.minimum.at(first, which, programs)
    np.maximum.at(last, which, programs)
    np.minimum.at(begun, which, since)

    read = np.concatenate([np.empty(0, np.int64), *(accesses[i].addresses for i in loads)])
    found = np.searchsorted(addresses, read).clip(max=len(addresses) - 1)
    hit = addresses[found] == read
    found, reader = found[hit], numbers(loads, lambda i: accesses[i].program)[hit]
    alone = (first[found] == reader) & (last[found] == reader)
    assert alone.all(), f'{name}: a program reads what another one writes'
    early = numbers(loads, lambda i: i)[hit] < begun[found]
    assert early.all(), f'{name}: a program reads what it has written'
