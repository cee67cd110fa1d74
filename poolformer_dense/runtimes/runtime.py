"""Exported files as functions from images to named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .outputs import Array

# From images (B, 3, H, W), uint8, RGB, to an export's outputs by name.
Run = Callable[[Array], Mapping[str, Array]]
