"""200 SIGKILLs: nothing that was committed is lost, and the end is the same to the bit."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from backbones.checkpoints import seal_holds
from poolformer_dense import files
from poolformer_dense.runner.resume import newest_intact
from tests.poolformer_dense.runner import launching, tiny

# Of a save: the first bytes, each later write, the checksum, the fsync, the rename, what follows.
PLACES = ('_Sealing.write', '_Sealing.close', 'os.fsync', 'os.replace', '_sync_folder')
OPTIONS = dict(
    ema=True, steps=24, resume=True,
    checkpoint=dict(type='AtomicCheckpointHook', minutes=0, max_keep_ckpts=1),
)  # fmt: skip
LOOPS = {'epoch': dict(loop='epoch'), 'iter': dict(loop='iter')}


def train(folder: Path, **options) -> dict[str, str]:
    runner = tiny.tiny_runner(folder, **OPTIONS | options)
    # A save every three steps, so that there are many to be killed in.
    if runner.train_loop.__class__.__name__.endswith('EpochBasedTrainLoop'):
        runner.register_hook(_SaveNow())
    runner.train()
    return tiny.digest(runner)


class _SaveNow(tiny.Hook):
    priority = 'LOWEST'

    def after_train_iter(self, runner, *_, **__) -> None:
        if (runner.iter + 1) % 3 == 0:
            [hook] = [h for h in runner.hooks if type(h).__name__ == 'AtomicCheckpointHook']
            hook.save_now(runner, runner.iter + 1)


def train_to_be_killed(folder: Path, place: str, count: int, tell: int, **options) -> None:
    """Train; stop at the `count`-th visit of a place in a save, and say so."""
    owner = files
    *outer, name = place.split('.')
    for part in outer:
        owner = getattr(owner, part)
    original, visits = getattr(owner, name), iter(range(1, 10**9))

    def stopping(*arguments):
        if next(visits) == count:
            os.write(tell, b'.')
            signal.pause()
        return original(*arguments)

    setattr(owner, name, stopping)
    train(folder, **options)


def committed(folder: Path) -> int:
    """The iteration of the newest checkpoint; each file with a checkpoint's name is whole."""
    for path in folder.glob('*.pth'):
        assert seal_holds(path) is True, path
    saved, passed_over = newest_intact(folder)
    assert not passed_over
    return saved.iteration if saved else 0


def left_over(folder: Path) -> set[str]:
    """Checkpoints other than the last one, and what begins with a dot."""
    names = {p.name for p in folder.iterdir() if p.suffix == '.pth' or p.name.startswith('.')}
    return names - {Path((folder / 'last_checkpoint').read_text()).name}


@pytest.mark.parametrize('loop', LOOPS)
def test_kills_in_forked_runs(runs, tally, loop):
    kills_in_saves(runs, tally, loop, kills=90, inside=45, runs_count=15)


def kills_in_saves(runs: Path, tally, loop: str, kills: int, inside: int, runs_count: int) -> None:
    draw = random.Random(f'{loop}{kills}')
    options = LOOPS[loop]
    if loop == 'iter':
        options = options | dict(checkpoint=OPTIONS['checkpoint'] | dict(interval=3))
    begin = time.monotonic()
    whole = tiny.fork(runs / 'whole.result', train, runs / 'whole', **options).result()
    duration = time.monotonic() - begin
    plan = ['save'] * inside + ['anywhere'] * (kills - inside)
    draw.shuffle(plan)
    done = dict(save=0, anywhere=0)
    number, per_run = 0, -(-kills // runs_count)
    while plan:
        number += 1
        folder, before = runs / f'run{number}', 0
        for kind in [plan.pop() for _ in range(min(per_run, len(plan)))]:
            killed = _kill_once(runs, folder, kind, draw, duration, options)
            done[kind] += killed
            if not killed:
                plan.append(kind)  # it had ended before
            now = committed(folder) if folder.exists() else 0
            assert now >= before, f'{folder}: a checkpoint of iteration {before} is lost'
            before = now
        result = tiny.fork(runs / 'result', train, folder, **options).result()
        # A run that had ended draws and logs nothing more.
        assert {
            k: result[k] for k in ('weights', 'optimizer', 'schedulers', 'ema', 'iteration')
        } == {k: whole[k] for k in ('weights', 'optimizer', 'schedulers', 'ema', 'iteration')}, (
            folder
        )
        assert left_over(folder) == set(), folder
    tally(
        f'{loop} loop: {sum(done.values())} SIGKILLs, {done["save"]} of them in a save, '
        f'{number} runs bit-equal'
    )
    assert done['save'] >= inside
    assert sum(done.values()) >= kills


def _kill_once(
    runs: Path, folder: Path, kind: str, draw: random.Random, duration: float, options: dict
) -> bool:
    """Start or resume a run and kill it; say whether it still ran."""
    if kind == 'save':
        listen, tell = os.pipe()
        place = draw.choice(PLACES)
        count = draw.randrange(1, 25 if 'write' in place else 3)
        child = tiny.fork(
            runs / 'result', train_to_be_killed, folder, place, count, tell, **options
        )
        os.close(tell)
        ready, _, _ = select.select([listen], [], [], launching.DEADLINE)
        assert ready
        inside = os.read(listen, 1) == b'.'  # nothing if it ended before
        os.close(listen)
        if not inside:
            child.wait()
            return False
        os.kill(child.pid, signal.SIGKILL)
        return child.wait() == -signal.SIGKILL
    child = tiny.fork(runs / 'result', train, folder, **options)
    watch = os.pidfd_open(child.pid)
    select.select([watch], [], [], draw.uniform(0, duration))
    os.close(watch)
    os.kill(child.pid, signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


class TestThroughTheTool:
    """tools/train.py on a stock config, made small by overrides."""

    def start(self, root: Path, shapes: Path, folder: Path) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        config = tiny.write_demo(root, 'retinanet', folder)
        config.write_text(f"{config.read_text()}\ncustom_hooks = [dict(type='EMAHook')]\n")
        options = [
            f'data_root={shapes}/coco', 'train_cfg.max_epochs=4', 'train_cfg.val_interval=2',
            'train_dataloader.batch_size=2', 'train_dataloader.num_workers=2',
            'default_hooks.logger.interval=1', 'randomness.seed=3',
        ]  # fmt: skip
        with open(folder.with_suffix('.log'), 'a') as log:
            return subprocess.Popen(
                [
                    sys.executable, str(root / 'tools/train.py'),
                    str(config), '--work-dir', str(folder),
                    '--resume', '--cfg-options', *options,
                ],
                stdout=log, stderr=log, env=os.environ | {'OMP_NUM_THREADS': '1'},
                cwd=folder.parent,
            )  # fmt: skip

    def test_kills(self, root, shapes, tmp_path, tally):
        self.kills(root, shapes, tmp_path, tally, kills=20, inside=8)

    def kills(self, root, shapes, tmp_path, tally, kills: int, inside: int) -> None:
        draw = random.Random(kills)
        whole = tmp_path / 'whole'
        process = self.start(root, shapes, whole)
        assert process.wait(600) == 0, whole.with_suffix('.log').read_text()[-3000:]
        expected = self.end(whole)
        plan = ['save'] * inside + ['step'] * (kills - inside)
        draw.shuffle(plan)
        number = done = 0
        while plan:
            number += 1
            folder, before = tmp_path / f'run{number}', 0
            for _ in range(4):
                if plan and self.kill_once(root, shapes, folder, plan[-1], draw):
                    plan.pop()
                    done += 1
                now = committed(folder) if folder.exists() else 0
                assert now >= before, f'{folder}: a checkpoint of iteration {before} is lost'
                before = now
            process = self.start(root, shapes, folder)
            assert process.wait(600) == 0, folder.with_suffix('.log').read_text()[-3000:]
            assert self.end(folder) == expected, folder
            assert left_over(folder) == set(), folder
        assert done == kills
        tally(
            f'tools/train.py: {done} SIGKILLs, {inside} of them in a save, {number} runs bit-equal'
        )

    def kill_once(
        self, root: Path, shapes: Path, folder: Path, kind: str, draw: random.Random
    ) -> bool:
        """Start or resume a run and kill it; say whether it was caught in what was wanted."""
        process = self.start(root, shapes, folder)
        log, steps = folder.with_suffix('.log'), draw.randrange(1, 4)
        seen = log.read_text().count('Epoch(train)')

        def reached() -> bool:
            if process.poll() is not None:
                return True
            if kind == 'save':
                return bool(list(folder.glob('.*.saving')))
            return log.read_text().count('Epoch(train)') >= seen + steps

        launching.wait_for(reached)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            return False
        # The rename may have come between the look and the kill.
        return kind == 'step' or bool(list(folder.glob('.*.saving')))

    def end(self, folder: Path) -> dict[str, str]:
        checkpoint = torch.load((folder / 'last_checkpoint').read_text(), weights_only=False)
        parts = ('state_dict', 'optimizer', 'ema_state_dict', 'param_schedulers')
        return {part: tiny.checksum(checkpoint[part]) for part in parts}
