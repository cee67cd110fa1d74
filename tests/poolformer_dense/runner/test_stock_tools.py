"""The same run without any tool of ours: by mmengine's registry, and by mmdet's tools/train.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import mmdet
import pytest
import torch

from tests.poolformer_dense.runner import tiny

BY_REGISTRY = """
import sys
from mmengine.config import Config
from mmengine.registry import RUNNERS

cfg = Config.fromfile(sys.argv[1])
cfg.work_dir = sys.argv[3]
RUNNERS.build(cfg).train()
"""
STOCK_TOOL = Path(mmdet.__file__).parent / '.mim/tools/train.py'


@pytest.fixture
def config(runs, root, shapes) -> Path:
    """A stock config with a small model and the paths of the drawn shapes, as a file."""
    overrides = {
        'train_cfg.max_epochs': 2,
        'train_cfg.val_interval': 2,
        'train_dataloader.batch_size': 2,
        'default_hooks.checkpoint.minutes': 1e-6,
        'default_hooks.checkpoint.max_keep_ckpts': 2,
    }
    cfg = tiny.demo_config(root, 'retinanet', shapes, runs / 'config', overrides)
    path = runs / 'retinanet.py'
    cfg.dump(path)
    return path


@pytest.mark.skipif(not STOCK_TOOL.exists(), reason='mmdet is installed without its tools')
def test_a_killed_run_is_resumed_by_mmdets_own_tool(runs, root, config):
    environment = os.environ | {'PYTHONPATH': str(root)}
    script = runs / 'train.py'
    script.write_text(BY_REGISTRY)

    def command(program: Path, folder: str, *arguments: str) -> list[str]:
        return [sys.executable, str(program), str(config), '--work-dir', folder, *arguments]

    options = dict(cwd=runs, env=environment, timeout=300)
    subprocess.run(command(script, 'whole'), check=True, **options)
    with subprocess.Popen(command(script, 'killed'), cwd=runs, env=environment) as process:
        deadline = time.monotonic() + 200
        while not (runs / 'killed/iter_2.pth').exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.kill()
    assert not (runs / 'killed/epoch_2.pth').exists()
    subprocess.run(command(STOCK_TOOL, 'killed', '--resume'), check=True, **options)
    ends = []
    for folder in ('whole', 'killed'):
        checkpoint = torch.load(runs / folder / 'epoch_2.pth', weights_only=False)
        parts = ('state_dict', 'optimizer', 'param_schedulers', 'run_state')
        ends.append({part: tiny.checksum(checkpoint[part]) for part in parts})
    assert ends[0] == ends[1]
    log = ''.join(path.read_text() for path in sorted((runs / 'killed').glob('*/*.log')))
    assert 'its steps are guarded by NumericalGuardHook' in log
    assert 'Resuming from' in log
