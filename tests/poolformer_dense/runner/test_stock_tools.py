"""The same run without any tool of ours: by mmengine's registry, and by mmdet's tools/train.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mmdet
import pytest

from tests.poolformer_dense.runner import tiny
from tests.poolformer_dense.runner.exactness import killed_and_whole

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

    killed, whole = killed_and_whole(
        runs,
        command(script, 'whole'),
        command(script, 'killed'),
        command(STOCK_TOOL, 'killed', '--resume'),
        env=environment,
    )
    assert killed == whole
    log = ''.join(path.read_text() for path in sorted((runs / 'killed').glob('*/*.log')))
    assert 'its steps are guarded by NumericalGuardHook' in log
    assert 'Resuming from' in log
