"""The Slurm scripts, with an srun that records what it is told and starts the tasks here."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

# Slurm's own commands, as far as the scripts and the launcher need them.
SRUN = """#!{python}
import json, os, subprocess, sys
options = [a for a in sys.argv[1:] if a.startswith('-')][:{options}]
command = sys.argv[1 + len(options):]
with open({record!r}, 'w') as file:
    json.dump(dict(options=options, command=command), file)
tasks = int(os.environ['TASKS'])
tell = dict(SLURM_NTASKS=str(tasks), SLURM_NODELIST='here[1-2]')
running = [
    subprocess.Popen(
        command, env=os.environ | tell | dict(SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
    )
    for i in range(tasks)
]
sys.exit(max((task.wait() for task in running), default=0))
"""
SCONTROL = """#!/bin/sh
[ "$*" = 'show hostname here[1-2]' ] && printf '127.0.0.1\\nelsewhere\\n'
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture
def slurm(run, root, shapes, tmp_path):
    """Call a script with `tasks` tasks; returns what was printed and what srun was told."""
    if shutil.which('bash') is None:
        pytest.skip('there is no bash')

    def call(script, *arguments, tasks=1, options=7, **variables):
        commands = tmp_path / 'bin'
        commands.mkdir(exist_ok=True)
        record = tmp_path / 'srun.json'
        fake = SRUN.format(python=sys.executable, options=options, record=str(record))
        for name, text in (('srun', fake), ('scontrol', SCONTROL)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        # The fixture puts the environment's own commands first; there is no srun among them.
        done = run(
            script, *arguments, cwd=tmp_path,
            env={
                'PATH': f'{commands}:{Path(sys.executable).parent}:/usr/bin:/bin',
                'TASKS': str(tasks), 'PORT': str(_free_port()), **variables,
            },
        )  # fmt: skip
        return done, json.loads(record.read_text()) if record.exists() else None

    return call


@pytest.fixture
def training(root, shapes):
    """A config and the overrides of a training of two iterations."""
    config = root / 'configs/demo/retinanet_poolformer_s12.py'
    overrides = [
        '--cfg-options', f'data_root={shapes}/coco', 'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
    ]  # fmt: skip
    return config, overrides


@pytest.mark.parametrize('script', ['slurm_train.sh', 'slurm_test.sh'])
@pytest.mark.parametrize('arguments', [[], ['partition', 'job']])
def test_missing_arguments_print_the_usage(slurm, script, arguments):
    done, told = slurm(script, *arguments)
    assert (done.returncode, told) == (2, None)
    assert f'Usage: tools/{script} PARTITION JOB_NAME CONFIG' in done.stderr


def test_a_test_needs_a_checkpoint(slurm):
    done, told = slurm('slurm_test.sh', 'partition', 'job', 'config.py')
    assert (done.returncode, told) == (2, None)


def test_srun_gets_the_ecosystems_variables(slurm):
    done, told = slurm(
        'slurm_train.sh', 'gpus', 'a job', 'nowhere.py', 'work', '--amp',
        options=9, GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='3',
        SRUN_ARGS='--exclusive --mem=9G',
    )  # fmt: skip
    assert told['options'] == [
        '--partition=gpus', '--job-name=a job', '--gres=gpu:4', '--ntasks=16',
        '--ntasks-per-node=4', '--cpus-per-task=3', '--kill-on-bad-exit=1', '--exclusive',
        '--mem=9G',
    ]  # fmt: skip
    assert told['command'][1] == '-u'
    assert Path(told['command'][2]).name == 'train.py'
    assert told['command'][3:] == [
        'nowhere.py',
        '--work-dir',
        'work',
        '--amp',
        '--launcher',
        'slurm',
    ]
    # The tool ran, and its exit code is the script's.
    assert done.returncode == 2
    assert 'error: config nowhere.py does not exist' in done.stderr


@pytest.mark.parametrize(
    ('gpus', 'tasks', 'per_node'), [(None, '8', '8'), ('2', '2', '2'), ('32', '32', '8')]
)
def test_defaults(slurm, gpus, tasks, per_node):
    _, told = slurm('slurm_train.sh', 'p', 'j', 'c.py', tasks=0, **({'GPUS': gpus} if gpus else {}))
    assert told['options'][2:6] == [
        f'--gres=gpu:{per_node}', f'--ntasks={tasks}', f'--ntasks-per-node={per_node}',
        '--cpus-per-task=5',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('script', 'given', 'passed'),
    [
        ('slurm_train.sh', ['c.py'], ['c.py']),
        ('slurm_train.sh', ['c.py', '--resume', 'a b.pth'], ['c.py', '--resume', 'a b.pth']),
        ('slurm_train.sh', ['c.py', 'a b', '--amp'], ['c.py', '--work-dir', 'a b', '--amp']),
        ('slurm_test.sh', ['c.py', 'c.pth', '--out', 'x'], ['c.py', 'c.pth', '--out', 'x']),
    ],
)
def test_arguments_of_the_tool(slurm, script, given, passed):
    _, told = slurm(script, 'p', 'j', *given, tasks=0)
    assert told['command'][3:] == [*passed, '--launcher', 'slurm']


def test_one_task_trains(slurm, training, tmp_path):
    config, overrides = training
    done, _ = slurm('slurm_train.sh', 'p', 'j', config, tmp_path / 'w', *overrides, GPUS='1')
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'w/epoch_1.pth').exists()


@pytest.mark.slow
def test_two_tasks_train_and_test_as_one_job(slurm, training, tmp_path):
    config, overrides = training
    given = [config, tmp_path / 'w', *overrides]
    done, _ = slurm('slurm_train.sh', 'p', 'j', *given, tasks=2, GPUS='2')
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout + done.stderr
    # 8 images in batches of 2 x 2, reported by one of the two.
    assert printed.count('Batch: 2 CPU processes x 2 images = 4.') == 1
    assert (tmp_path / 'w/epoch_1.pth').exists()
    assert 'Epoch(val) [1][2/2]' in printed
    given = [config, tmp_path / 'w/epoch_1.pth', '--work-dir', tmp_path / 't', *overrides]
    done, _ = slurm('slurm_test.sh', 'p', 'j', *given, tasks=2, GPUS='2')
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'Epoch(test) [2/2]' in done.stdout + done.stderr
