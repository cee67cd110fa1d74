"""Every Python tool parses its arguments before it imports what takes seconds."""

from __future__ import annotations

import importlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted((ROOT / 'tools').glob('*.py'))
HEAVY = {'backbones', 'cv2', 'mmcv', 'mmdet', 'mmseg', 'matplotlib', 'torch', 'transformers'}
ANSWERS = {'--help': 0, '--no-such-option': 2}


@pytest.mark.parametrize('argument', ANSWERS)
@pytest.mark.parametrize('tool', TOOLS, ids=lambda path: path.stem)
def test_the_parser_answers_before_heavy_imports(tool, argument):
    command = [sys.executable, '-X', 'importtime', tool, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ANSWERS[argument], done.stderr
    assert 'usage: ' in (done.stderr if done.returncode else done.stdout)
    imported = set(re.findall(r'^import time:.*\| +([\w.]+)$', done.stderr, re.MULTILINE))
    assert 'argparse' in imported
    assert not imported & HEAVY


def test_a_missing_config_is_told_before_heavy_imports():
    command = [sys.executable, '-X', 'importtime', ROOT / 'tools/train.py', 'nowhere.py']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'error: config nowhere.py does not exist' in done.stderr
    assert not re.search(r'\| +torch$', done.stderr, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize('argument', ANSWERS)
@pytest.mark.parametrize('tool', TOOLS, ids=lambda path: path.stem)
def test_the_parser_answers_at_once(tool, argument):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, tool, argument], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_choices_written_in_commands_are_the_librarys():
    from backbones.checkpoints import LAYOUTS
    from poolformer_dense.measure.benchmark import PEERS, TASKS, TOLERANCE
    from poolformer_dense.measure.evaluation_time import Content

    def written(command):
        return vars(importlib.import_module(f'poolformer_dense.commands.{command}'))

    assert written('convert_checkpoint')['LAYOUT_NAMES'] == tuple(LAYOUTS)
    benchmark = written('benchmark')
    assert benchmark['CONTESTANTS'] == (*PEERS, 'compile')
    assert (benchmark['TASKS'], benchmark['DTYPES']) == (TASKS, tuple(TOLERANCE))
    evaluation = written('benchmark_evaluation')
    assert evaluation['IMAGES'] == Content.images
    assert evaluation['DETECTIONS'] == Content.detections


@pytest.mark.parametrize(('given', 'spins'), [({}, '100000'), ({'GOMP_SPINCOUNT': '7'}, '7')])
def test_threads_of_a_tool_spin_for_a_short_time(root, given, spins):
    main = 'from poolformer_dense.cli import run_tool\nrun_tool(lambda: __import__("torch"))'
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('GOMP_', 'OMP_'))}
    done = subprocess.run(
        [sys.executable, '-c', main], cwd=root, capture_output=True, text=True, check=True,
        env={**kept, **given, 'OMP_DISPLAY_ENV': 'verbose'},
    )  # fmt: skip
    if 'GOMP_SPINCOUNT' not in done.stderr:
        pytest.skip("torch's OpenMP is not GNU's")
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
