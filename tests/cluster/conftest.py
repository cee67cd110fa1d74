"""Fixtures of `make cluster-test`: hosts, and what an undisturbed training ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import hosts as machines
from tests.cluster.hosts import Host
from tests.cluster.training import Detector, finished


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope='session')
def _namespaces() -> None:
    if reason := machines.missing(machines.PACKAGES):
        pytest.skip(reason)


@pytest.fixture
def hosts(_namespaces: None, tmp_path: Path) -> Iterator[list[Host]]:
    """Two hosts, on which nothing may be left at the end of a test."""
    with machines.cluster(tmp_path, ['alpha', 'beta']) as pair:
        yield pair
        for host in pair:
            for job in host.jobs:
                print(f'--- {host.name}, {job.log.name}\n{job.said[-5000:]}')
        machines.nothing_left(pair)


@pytest.fixture(scope='session')
def undisturbed(
    _namespaces: None, shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The work directory of a training of so many ranks on one host."""
    known: dict[int, Path] = {}

    def train(ranks: int) -> Path:
        if ranks not in known:
            folder = tmp_path_factory.mktemp(f'undisturbed{ranks}')
            detector = Detector(folder / 'config', shapes, ranks)
            with machines.cluster(folder, ['single']) as single:
                finished(detector.train(single, folder / 'run'))
            known[ranks] = folder / 'run'
        return known[ranks]

    return train
