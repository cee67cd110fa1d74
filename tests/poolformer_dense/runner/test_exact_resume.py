"""A resumed run ends like one that never stopped; the whole matrix is in tests/soak."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from poolformer_dense.config.load import enable_amp
from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import tiny
from tests.poolformer_dense.runner.exactness import differences, killed_and_whole


@pytest.mark.parametrize(
    ('loop', 'workers', 'ranks', 'extras'),
    [
        ('epoch', 0, 1, dict(accumulate=4, ema=True)),
        ('epoch', 2, 1, dict(amp=True)),
        ('iter', 2, 1, dict(accumulate=4, ema=True)),
        ('epoch', 2, 2, dict(accumulate=4, ema=True)),
        ('iter', 0, 2, dict(amp=True)),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(runs, loop, workers, ranks, extras):
    # in the first epoch, at its end, in the second
    stops = [2, 6, 9]
    found = differences(runs, stops, ranks, loop=loop, workers=workers, **extras)
    assert found == {stop: set() for stop in (0, *stops)}


@pytest.mark.parametrize(
    ('name', 'stop', 'amp'), [('retinanet', 3, False), ('fpn', 3, False), ('mask_rcnn', 3, True)]
)
def test_a_stock_config(runs, root, shapes, name, stop, amp):
    """Fused operators, drop path and the toolboxes' data sets, in the loop that each uses."""
    kept = runs / 'kept'
    length = (
        {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 1}
        if name != 'fpn'
        else {'train_cfg.max_iters': 5, 'train_cfg.val_interval': 2}
    )

    def end(folder: Path, **changes: Any) -> dict[str, str]:
        overrides = {'train_dataloader.batch_size': 2, 'log_level': 'WARNING'} | length
        config = tiny.demo_config(root, name, shapes, folder, overrides)
        config.custom_hooks = changes.pop('hooks', [])
        config.update(changes)
        if amp:
            enable_amp(config)
        runner = build_runner(config)
        assert type(runner.train_loop).__name__.startswith('Exact')
        runner.train()
        return tiny.digest(runner)

    keeper = dict(type='KeepEachStep', folder=str(kept))
    whole = tiny.fork(runs / 'a', end, runs / 'whole', hooks=[keeper]).result()
    resumed = tiny.fork(
        runs / 'b', end, runs / 'resumed', resume=True, load_from=str(kept / f'{stop}.pth')
    ).result()
    assert resumed == whole


@pytest.mark.slow
def test_a_killed_tool_goes_on(runs, root, shapes):
    """SIGKILL to tools/train.py after a save within an epoch, then --resume."""
    config = tiny.write_demo(root, 'retinanet', runs)

    def command(folder: Path, *arguments: str) -> list[str]:
        return [
            sys.executable, str(root / 'tools/train.py'), str(config), '--work-dir', str(folder),
            *arguments, '--cfg-options', f'data_root={shapes}/coco', 'train_cfg.max_epochs=2',
            'train_cfg.val_interval=2', 'train_dataloader.batch_size=2',
            'default_hooks.checkpoint.minutes=1e-6', 'default_hooks.checkpoint.max_keep_ckpts=2',
        ]  # fmt: skip

    killed, whole = killed_and_whole(
        runs,
        command(runs / 'whole'),
        command(runs / 'killed'),
        command(runs / 'killed', '--resume'),
    )
    assert killed == whole
