"""Object stores, which are refused: mmengine's client of them is another company's own."""

from __future__ import annotations

import re
from typing import Any

from .errors import UserError

# mmengine takes cluster:s3://bucket/name as well.
_ADDRESS = re.compile(
    r'(?:[^/:]*:)?(?:s3[an]?|petrel|ceph|gs|gcs|hdfs|oss|obs|cos|abfss?|adl|wasbs?|az|swift|minio)://',
    re.IGNORECASE,
)
_REMEDY = (
    'object stores are neither read nor written, because nobody could test it; mount the bucket '
    'and give its path, or copy before and after the run, e.g. with `aws s3 cp --recursive`'
)


def in_store(value: Any) -> bool:
    """Whether a value is the address of something in an object store."""
    return isinstance(value, str) and _ADDRESS.match(value.strip()) is not None


def store_refusal(place: str, value: Any) -> UserError:
    """Return the error for an address, or a client of object stores, at a place."""
    return UserError(f'{place}={value}: {_REMEDY}')
