"""The memory through which data loading workers hand over their batches, and what to do without."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

FOLDER = '/dev/shm'
REMEDY = (
    'enlarge it (docker run --shm-size=16g, or --ipc=host; Kubernetes: an emptyDir with medium: '
    'Memory at /dev/shm), or lower num_workers, prefetch_factor or batch_size of the loader; '
    'num_workers=0 does without it'
)


class Room(NamedTuple):
    """Bytes of a file system: how many are free, and how many there are."""

    free: int
    total: int

    def __str__(self) -> str:
        return f'{megabytes(self.free)} of {megabytes(self.total)} free'


def room_for_batches(folder: str = FOLDER) -> Room | None:
    """Return the room for batches in shared memory; None where there is no such folder."""
    if not os.path.isdir(folder):
        return None
    usage = shutil.disk_usage(folder)
    return Room(usage.free, usage.total)


def megabytes(size: float) -> str:
    """Return a number of bytes as people read it: 0.3 MB, 64 MB, 1,024 MB."""
    size /= 1 << 20
    return f'{size:,.0f} MB' if size >= 10 else f'{size:.1f} MB'
