"""A small RetinaNet on drawn images, trained as people do, over one host or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backbones.checkpoints import read_checkpoint
from tests.cluster.gate import Gate
from tests.cluster.hosts import ROOT, Host, Job, wait_until
from tests.poolformer_dense.runner import tiny

STEPS = 8
GATE = 5  # one iteration after a checkpoint


class Detector:
    """The config of a training of `STEPS` iterations on the 8 images of the fixture `shapes`.

    Args:
        folder: For the config, and for the gate's files.
        shapes: Of the fixture of that name.
        ranks: Processes, and epochs.
        gate: Whether all ranks wait before iteration `GATE`.
    """

    def __init__(self, folder: Path, shapes: Path, ranks: int = 2, gate: bool = False) -> None:
        self.gate = folder / 'gate'
        self.ranks = ranks
        self.gate.mkdir(parents=True)
        hooks = [dict(type=Gate.__name__, folder=str(self.gate), iteration=GATE)] if gate else []
        overrides: dict[str, Any] = {
            'custom_imports.imports': [
                'backbones', 'poolformer_dense.runner', 'poolformer_dense.report.hook',
                Gate.__module__,
            ],
            'custom_hooks': hooks,
            'default_hooks.report': None,
            'default_hooks.logger.interval': 1,
            'default_hooks.checkpoint.max_keep_ckpts': -1,
            'visualizer.vis_backends': [dict(type='LocalVisBackend')],
            'train_cfg.max_epochs': ranks, 'train_cfg.val_interval': ranks,
            'train_dataloader.batch_size': 1, 'train_dataloader.num_workers': 0,
            'val_dataloader.num_workers': 0, 'test_dataloader.num_workers': 0,
            'model.test_cfg.score_thr': 0.0,
        }  # fmt: skip
        cfg = tiny.demo_config(ROOT, 'retinanet', shapes, folder, overrides)
        self.path = folder / 'detector.py'
        cfg.dump(self.path)

    def train(
        self, hosts: Sequence[Host], work_dir: Path, *arguments: object, **variables: object
    ) -> list[Job]:
        """Start tools/dist_train.sh on each host, as docs/clusters.md says.

        Args:
            hosts: The first is the master.
            work_dir: As the hosts see it.
            arguments: Of tools/train.py.
            variables: As for `launch`.
        """
        command = [ROOT / 'tools/dist_train.sh', self.path, self.ranks // len(hosts)]
        return launch(hosts, [*command, '--work-dir', work_dir, *arguments], **variables)

    @property
    def arrived(self) -> bool:
        """Whether every rank is at the gate, or was."""
        return len(list(self.gate.glob('arrived*'))) == self.ranks

    def wait_for_gate(self, hosts: Sequence[Host]) -> None:
        """Wait until every rank has arrived at the gate."""
        jobs = [host.jobs[-1] for host in hosts]

        def arrived() -> bool:
            assert not any(job.ended for job in jobs), '\n'.join(job.said[-3000:] for job in jobs)
            return self.arrived

        wait_until(arrived, 'all ranks at the gate')

    def open_gate(self) -> None:
        """Let the ranks through."""
        (self.gate / 'open').touch()


def launch(
    hosts: Sequence[Host],
    command: Sequence[object],
    only: Sequence[int] | None = None,
    **variables: object,
) -> list[Job]:
    """Start one of the launch scripts on each host.

    Args:
        hosts: The first is the master.
        command: The script and its arguments.
        only: The numbers of the hosts on which to start it, if not on all.
        variables: For the environment.
    """
    variables = dict(NNODES=len(hosts), MASTER_ADDR=hosts[0].address) | variables
    numbers = range(len(hosts)) if only is None else only
    return [hosts[n].start(*command, NODE_RANK=n, **variables) for n in numbers]


def finished(jobs: Sequence[Job], code: int = 0) -> None:
    """Wait until all jobs have ended with an exit code.

    Raises:
        AssertionError: One ended with another.
    """
    for job in jobs:
        assert job.wait() == code, job.said[-5000:]


def outcome(work_dir: Path) -> dict[str, str]:
    """Checksums of what a training left: weights, optimizer, and where it ended."""
    checkpoint = read_checkpoint(work_dir / Path((work_dir / 'last_checkpoint').read_text()).name)
    return {
        'weights': tiny.checksum(checkpoint['state_dict']),
        'optimizer': tiny.checksum(checkpoint['optimizer']),
        'iteration': str(checkpoint['meta']['iter']),
    }
