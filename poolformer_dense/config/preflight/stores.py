"""Object stores in what a run reads and writes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ...object_stores import store_refusal
from ..store_paths import stores_in
from .plan import Notice, Plan


def check_stores(plan: Plan) -> Iterator[Notice]:
    """Whether a path of the run is in an object store."""
    for place, value in stores_in(plan.cfg):
        yield Notice(logging.ERROR, str(store_refusal(place, value)))
