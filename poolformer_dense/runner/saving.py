"""The Runner's half that saves: what a checkpoint holds, and how it is written."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import mmengine
from mmengine.dist import is_main_process
from mmengine.runner import Runner, weights_to_cpu
from mmengine.utils import apply_to

from backbones import __version__

from ..files import save_sealed
from .loops import ExactResume
from .ranks import write_on_main
from .state import (
    AccumulatedGradients,
    Position,
    RandomStates,
    RankBuffers,
    Stateful,
    bare_model,
)


class SavingRunner(Runner):
    """mmengine's Runner whose checkpoints are whole and hold all that a resumed run needs."""

    # Of this training, by which its checkpoints are known; None if those resumed from have none.
    run_id: str | None = None
    # Within `saving_together`, what all ranks contribute to a checkpoint.
    _run_state: dict[str, Any] | None = None

    def resumable(self) -> dict[str, Stateful]:
        """Everything that a resumed run needs, by its name in the checkpoint's ``run_state``.

        Beside it, a checkpoint has mmengine's own entries: ``state_dict``, ``optimizer`` (with the
        gradient scaler), ``param_schedulers``, ``message_hub`` (log, best score, files to delete),
        ``meta`` (seed, iteration, config) and ``ema_state_dict`` of an `EMAHook`.
        """
        loop = self.train_loop
        parts: dict[str, Stateful] = dict(
            position=self.position,
            sampler=loop,
            accumulation=AccumulatedGradients(self),
            buffers=RankBuffers(self),
        )
        if loop.quarantine is not None:
            parts['quarantine'] = loop.quarantine
        # The numerical guard, early stopping, and hooks of other projects that can be resumed. Of
        # several of a type the last has its plain name, as in checkpoints that have but one.
        seen: Counter[str] = Counter()
        for hook in reversed(self.hooks):
            if isinstance(hook, Stateful):
                name = type(hook).__name__
                seen[name] += 1
                parts[name if seen[name] == 1 else f'{name}.{seen[name]}'] = hook
        return parts | dict(random=self.random)

    @cached_property
    def position(self) -> Position:
        """Where the training stands."""
        return Position()

    @cached_property
    def random(self) -> RandomStates:
        """The random generators of all ranks."""
        return RandomStates(self)

    @contextmanager
    def saving_together(self) -> Iterator[None]:
        """Within the block all ranks save: their states go into the checkpoint.

        All ranks must enter it and call `save_checkpoint` in it; outside, only the main rank saves,
        as in mmengine, and the file can't be resumed exactly.
        """
        if self._run_state is not None:
            yield
            return
        exact = isinstance(self.train_loop, ExactResume)
        parts = self.resumable() if exact else {}
        self._run_state = {name: part.state_dict() for name, part in parts.items()}
        try:
            yield
        finally:
            self._run_state = None

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Save a checkpoint that is complete and on disk once it has its name.

        Args:
            out_dir: The folder.
            filename: The name in it.
            file_client_args: Not used.
            save_optimizer: Whether to save the optimizer.
            save_param_scheduler: Whether to save the schedules.
            meta: Entries for ``meta``.
            by_epoch: Whether ``meta`` counts an epoch as complete, or else an iteration.
            backend_args: Not used.

        Raises:
            OSError: Outside `saving_together`: it could not be written.
            SaveFailed: Within it, on all ranks: the same.
        """

        def write() -> None:
            checkpoint = self._checkpoint(save_optimizer, save_param_scheduler, meta, by_epoch)
            self.call_hook('before_save_checkpoint', checkpoint=checkpoint)
            mmengine.mkdir_or_exist(out_dir)
            save_sealed(checkpoint, os.path.join(out_dir, filename))

        if self._run_state is not None:
            write_on_main(filename, write)
        elif is_main_process():
            write()

    def _checkpoint(
        self, optimizer: bool, schedulers: bool, meta: dict | None, by_epoch: bool
    ) -> dict[str, Any]:
        """Return what mmengine's Runner saves, and the state of the run."""
        done = dict(epoch=self.epoch + by_epoch, iter=self.iter + (not by_epoch))
        checkpoint = dict(
            meta=done
            | (meta or {})
            | dict(
                cfg=self.cfg.pretty_text,
                seed=self.seed,
                experiment_name=self.experiment_name,
                time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
                run=self.run_id,
                mmengine_version=mmengine.__version__,
                poolformer_dense_version=__version__,
            ),
            state_dict=weights_to_cpu(bare_model(self).state_dict()),
            message_hub=_on_cpu(self.message_hub.state_dict()),
        )
        if hasattr(self.train_dataloader.dataset, 'metainfo'):
            checkpoint['meta']['dataset_meta'] = self.train_dataloader.dataset.metainfo
        if optimizer:
            checkpoint['optimizer'] = _on_cpu(self.optim_wrapper.state_dict())
        if schedulers and self.param_schedulers is not None:
            several = isinstance(self.param_schedulers, dict)
            groups = self.param_schedulers if several else {'': self.param_schedulers}
            states = {name: [s.state_dict() for s in group] for name, group in groups.items()}
            checkpoint['param_schedulers'] = states if several else states['']
        if self._run_state:
            checkpoint['run_state'] = self._run_state
        return checkpoint


def _on_cpu(state: Any) -> Any:
    return apply_to(state, lambda value: hasattr(value, 'cpu'), lambda value: value.cpu())
