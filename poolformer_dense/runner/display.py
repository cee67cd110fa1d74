"""A live line at a terminal: where a run is, its loss, its speed and how long it will take."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from torch.utils.data import DataLoader

from ..console import ToolConsole

_WINDOW = 10  # iterations, as mmengine's log lines have
_PAUSE = 0.1  # seconds between two drawings


class LiveLineHook(Hook):
    """Draws the line; leaves one above it for each epoch, or each span between validations.

    It is a context too: the line is there for as long as it lasts, whatever ends the run. No thread
    draws, because the loaders' workers are forked.

    Args:
        console: The tool's, at a terminal.
    """

    priority = 'BELOW_NORMAL'  # after what it tells of is logged, before checkpoints are saved

    def __init__(self, console: ToolConsole) -> None:
        self._console = console
        self._bar = Progress(
            BarColumn(30),
            TextColumn('{task.description}', table_column=Column(no_wrap=True)),
            console=_Terminal(file=console.stream, force_terminal=True, highlight=False),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task('', visible=False)
        self._open = ExitStack()
        self._line = ''  # of what is printed, its last one as long as it is not complete
        self._drawn = 0.0
        # When the epoch began, and its first iteration; None outside a training.
        self._began: tuple[float, int] | None = None

    def __enter__(self) -> None:
        self._open.enter_context(self._bar)
        self._open.enter_context(self._console.live(self._print_above))

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def before_train(self, runner) -> None:
        self._began = time.monotonic(), runner.iter

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        title, done, total = f'epoch {runner.epoch + 1}/{runner.max_epochs}', batch_idx + 1, 0
        if _by_iterations(runner):
            title, done, total = 'training', runner.iter + 1, runner.max_iters
        self._draw(runner, 'train', title, done, runner.train_dataloader, total)

    def after_train_epoch(self, runner) -> None:
        self._leave_line(runner)

    def before_val(self, runner) -> None:
        if self._began is not None and _by_iterations(runner):
            self._leave_line(runner)

    def after_val_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._draw(runner, 'val', 'validation', batch_idx + 1, runner.val_dataloader)

    def after_test_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._draw(runner, 'test', 'test', batch_idx + 1, runner.test_dataloader)

    def _draw(
        self, runner, mode: str, title: str, done: int, loader: DataLoader, total: int = 0
    ) -> None:
        total = total or len(loader)
        if time.monotonic() - self._drawn < _PAUSE and done < total:
            return
        self._drawn = time.monotonic()
        said = _loss_and_rate(runner) if mode == 'train' else []
        times = runner.message_hub.log_scalars.get(f'{mode}/time')
        if times is not None:
            size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
            speed = size * get_world_size() / max(times.mean(_WINDOW), 1e-9)
            left = timedelta(seconds=int(runner.message_hub.get_info('eta', 0)))
            said[1:1] = [f'{left} left', f'{speed:.1f} images/s']
        line = '  '.join([f'{title}  {done}/{total}', *said])
        self._bar.update(
            self._task, description=line, completed=done, total=total, visible=True, refresh=True
        )

    def _leave_line(self, runner) -> None:
        """Say above the live line what was trained since the last time."""
        start, first = self._began or (time.monotonic(), 0)
        iterations = runner.iter - first
        if not iterations:
            return
        self._began = time.monotonic(), runner.iter
        done = f'epoch {runner.epoch + 1}/{runner.max_epochs}'
        if _by_iterations(runner):
            done = f'iteration {runner.iter}/{runner.max_iters}'
        taken = timedelta(seconds=int(time.monotonic() - start))
        self._console.write('  '.join([done, *_loss_and_rate(runner, iterations), f'{taken}\n']))

    def _print_above(self, text: str) -> None:
        *lines, self._line = (self._line + text).split('\n')
        for line in lines:
            self._bar.console.out(line, highlight=False)


class _Terminal(Console):
    """A terminal whose cursor stays: a run that is killed could not bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def _by_iterations(runner) -> bool:
    return isinstance(runner.train_loop, IterBasedTrainLoop)


def _loss_and_rate(runner, window: int = _WINDOW) -> list[str]:
    """Return the mean loss of the last iterations and the learning rate, as far as logged."""
    scalars = runner.message_hub.log_scalars
    told = [f'loss {scalars["train/loss"].mean(window):.3f}'] if 'train/loss' in scalars else []
    return told + ([f'lr {scalars["train/lr"].current():.1e}'] if 'train/lr' in scalars else [])
