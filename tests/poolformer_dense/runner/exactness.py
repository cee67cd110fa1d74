"""Whether a run that is stopped and resumed ends like one that is not, to the bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from poolformer_dense.runner.checkpoint_hook import AtomicCheckpointHook
from tests.poolformer_dense.runner import launching, tiny

STEPS = 12


@HOOKS.register_module()
class KeepEachStep(Hook):
    """Saves after each iteration, as a stop there would, and keeps a copy.

    Args:
        folder: For the copies, ``1.pth`` and so on.
    """

    priority = 'LOWEST'

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        step = runner.iter + 1
        [saver] = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
        assert saver.save_now(runner, step)
        if is_main_process():
            self.folder.mkdir(exist_ok=True)
            shutil.copy(saver.last_ckpt, self.folder / f'{step}.pth')


def train(folder: Path, **options: Any) -> dict[str, str]:
    """Run the tiny run; return what it ended with."""
    runner = tiny.tiny_runner(folder, **options)
    runner.train()
    end = tiny.digest(runner)
    if not is_main_process():
        del end['logged']  # the checkpoint has the log of the main process alone
    return end


def ends(folder: Path, ranks: int, **options: Any) -> list[dict[str, str]]:
    """Run it in as many processes; return what each ended with."""
    if ranks > 1:
        options |= dict(ranks=ranks, launcher='pytorch')
    path = folder.with_name(f'{folder.name}_ends')
    children = tiny.fork_ranks(ranks, path, train, folder, **options)
    return [child.result() for child in children]


def differences(folder: Path, stops: list[int], ranks: int, **options: Any) -> dict[int, set[str]]:
    """Stop a run after each of the given steps and resume it.

    Args:
        folder: For the runs.
        stops: Iterations.
        ranks: Processes.
        options: Of the run.

    Returns:
        For each stop the parts of the end that differ from the uninterrupted run's; 0 stands for
        a run that saves at each step but never stops.
    """
    options = dict(steps=STEPS) | options
    expected = ends(folder / 'whole', ranks, **options)
    kept = folder / 'kept'
    keeper = dict(type='KeepEachStep', folder=str(kept))
    found = {0: ends(folder / 'saving', ranks, hooks=[keeper], **options)}
    for stop in stops:
        found[stop] = ends(
            folder / f'from{stop}', ranks, resume=True, load_from=kept / f'{stop}.pth', **options
        )
    return {
        stop: {
            part
            for theirs, ours in zip(expected, end, strict=True)
            for part in theirs
            if theirs[part] != ours[part]
        }
        for stop, end in found.items()
    }


def killed_and_whole(
    folder: Path, whole: list[str], killed: list[str], resumed: list[str], **options: Any
) -> list[dict[str, str]]:
    """Run a command that trains into ``whole``, and one that is killed after a save, and resumed.

    Args:
        folder: Where they run; it gets their work directories ``whole`` and ``killed``.
        whole: Trains two epochs of four iterations, and saves after each iteration.
        killed: The same; it gets SIGKILL in its first epoch.
        resumed: Resumes it.
        options: For `subprocess`.

    Returns:
        Checksums of what both ended with.
    """
    options |= dict(cwd=folder)
    subprocess.run(whole, check=True, timeout=300, **options)
    with subprocess.Popen(killed, **options) as process:
        launching.wait_for((folder / 'killed/iter_2.pth').exists, process, seconds=300)
        process.kill()
    assert not (folder / 'killed/epoch_2.pth').exists()
    subprocess.run(resumed, check=True, timeout=300, **options)
    ends = []
    for name in ('killed', 'whole'):
        checkpoint = torch.load(folder / name / 'epoch_2.pth', weights_only=False)
        parts = ('state_dict', 'optimizer', 'param_schedulers', 'run_state')
        ends.append({part: tiny.checksum(checkpoint[part]) for part in parts})
    return ends
