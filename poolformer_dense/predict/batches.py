"""Images in batches of one size each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from .media import Frame
from .network import Network, Prepared, Raw

# Images that wait for others of their size, in batches.
_WAITING = 4


def in_batches(
    network: Network, frames: Iterable[Frame], batch_size: int
) -> Iterator[tuple[Frame, Raw]]:
    """Predict frames in batches of one size each; yield them in their order.

    At most 4 batches are read before the oldest frame that has no prediction yet.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    waiting: dict[int, tuple[Frame, Prepared]] = {}
    done: dict[int, tuple[Frame, Raw]] = {}

    def forward(size: tuple[int, ...]) -> None:
        numbers = groups.pop(size)
        group = [waiting.pop(number) for number in numbers]
        found = network.forward([prepared for _, prepared in group])
        for number, (frame, _), each in zip(numbers, group, found, strict=True):
            done[number] = frame, each

    first = 0
    for number, frame in enumerate(frames):
        prepared = network.prepare(frame.image)
        waiting[number] = frame, prepared
        groups[prepared.size].append(number)
        if len(groups[prepared.size]) == batch_size:
            forward(prepared.size)
        elif len(waiting) + len(done) >= _WAITING * batch_size:
            forward(waiting[first][1].size)
        while first in done:
            yield done.pop(first)
            first += 1
    for size in list(groups):
        forward(size)
    for _, each in sorted(done.items()):
        yield each
