"""What the checks are given, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mmengine.config import Config

from ...data.source import Source
from ..datasets import named_sources


@dataclass(frozen=True)
class Plan:
    """What a run is about to use.

    Attributes:
        cfg: The config, overrides merged; its toolbox must be importable.
        splits: Which of train, val and test the run uses.
        unsafe_load: Leave checkpoints alone: to look into them would run the code they hold.
    """

    cfg: Config
    splits: Sequence[str]
    unsafe_load: bool = False

    @cached_property
    def named(self) -> tuple[list[Source], list[str]]:
        """The data sets of the splits, and the places of those of a type not known here.

        Raises:
            UserError: Their files are not there.
        """
        return named_sources(self.cfg, self.splits)

    @property
    def sources(self) -> list[Source]:
        """The data sets of the splits that can be looked into."""
        return self.named[0]


class Notice(NamedTuple):
    """What a check has to say: an error stops the run, anything less is a line of the log."""

    level: int  # of the standard library's logging
    text: str
