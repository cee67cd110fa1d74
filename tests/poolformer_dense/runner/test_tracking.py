"""A resumed training continues its runs at W&B and MLflow.

The logic is tested with stand-ins for both packages, and with the packages where they are there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from mmengine.runner import Runner

from poolformer_dense.runner.tracking import TrackingHook
from tests.poolformer_dense.runner import tiny

CHECKPOINT = dict(type='AtomicCheckpointHook', minutes=0)


def _train(
    folder: Path, kind: str, epochs: int = 1, resume: bool = False, **options: Any
) -> Runner:
    cfg = tiny.tiny_config(
        folder, steps=6 * epochs, resume=resume, load_from=options.pop('load_from', None),
        checkpoint=CHECKPOINT,
    )  # fmt: skip
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type=kind, **options)])
    runner = tiny.build_runner(cfg)
    runner.train()
    return runner


class _Wandb(types.ModuleType):
    """What mmengine calls of wandb."""

    class Settings:
        pass

    def __init__(self) -> None:
        super().__init__('wandb')
        self.begun: list[dict[str, Any]] = []
        self.figures: list[dict[str, Any]] = []
        self.config = types.SimpleNamespace(update=lambda *_, **__: None)

    def init(self, **options: Any) -> None:
        self.begun.append(options)
        self.run = types.SimpleNamespace(
            id=options.get('id') or f'run{len(self.begun)}', log_code=lambda **_: None
        )

    def log(self, figures: dict[str, Any], **_: Any) -> None:
        self.figures.append({'run': self.run.id, **figures})

    def join(self) -> None:
        pass

    finish = join


class _MLflow(types.ModuleType):
    """What is called of mlflow; runs are kept by the address of the store."""

    class MlflowException(Exception):
        pass

    stores: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self) -> None:
        super().__init__('mlflow')
        self.stores.clear()
        self.active: Any = None

    def set_tracking_uri(self, uri: str) -> None:
        self.runs = self.stores.setdefault(uri, {})

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(name=name, experiment_id=name)

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise self.MlflowException(f'no run {run_id}')
        return self.runs[run_id]

    def start_run(self, run_id: str | None = None) -> Any:
        name = run_id or f'{len(self.runs):032x}'
        info = types.SimpleNamespace(run_id=name, experiment_id=self.experiment)
        new = types.SimpleNamespace(info=info, figures=[], params={}, files=[])
        self.active = self.runs.setdefault(name, new)
        return self.active

    def active_run(self) -> Any:
        return self.active

    def end_run(self) -> None:
        self.active = None

    def log_params(self, params: dict[str, Any]) -> None:
        known = self.active.params
        if any(known.get(key, value) != value for key, value in params.items()):
            raise self.MlflowException('changing param values is not allowed')
        known.update(params)

    def log_metrics(self, figures: dict[str, Any], step: int) -> None:
        self.active.figures.append(step)

    def log_text(self, text: str, name: str) -> None:
        self.active.files.append(name)

    def log_artifact(self, path: str, folder: str | None) -> None:
        self.active.files.append(os.path.basename(path))


@pytest.fixture
def wandb(monkeypatch, warmed) -> _Wandb:
    module = _Wandb()
    monkeypatch.setitem(sys.modules, 'wandb', module)
    return module


@pytest.fixture
def mlflow(monkeypatch, warmed) -> _MLflow:
    module = _MLflow()
    monkeypatch.setitem(sys.modules, 'mlflow', module)
    return module


def test_wandb_continues_its_run(tmp_path, wandb):
    _train(tmp_path, 'WandbVisBackend', init_kwargs=dict(project='p'))
    _train(tmp_path, 'WandbVisBackend', 2, resume=True, init_kwargs=dict(project='p'))
    first, second = wandb.begun
    assert 'id' not in first
    assert (second['id'], second['resume'], second['project']) == ('run1', 'allow', 'p')
    assert {entry['run'] for entry in wandb.figures} == {'run1'}
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert saved['run_state']['TrackingHook'] == dict(WandbVisBackend='run1')


def test_without_resume_there_is_a_new_run(tmp_path, wandb):
    for folder in ('a', 'b'):
        _train(tmp_path / folder, 'WandbVisBackend')
    assert ['id' in options for options in wandb.begun] == [False, False]


def test_an_id_of_the_users_own_stays(tmp_path, wandb):
    _train(tmp_path, 'WandbVisBackend')
    _train(tmp_path, 'WandbVisBackend', 2, resume=True, init_kwargs=dict(id='mine'))
    assert wandb.begun[1]['id'] == 'mine'


@pytest.mark.parametrize(
    'state',
    [
        dict(WandbVisBackend='../../x'), dict(WandbVisBackend='a/b'), dict(WandbVisBackend=''),
        dict(WandbVisBackend='x' * 65), dict(WandbVisBackend='a\n'), dict(WandbVisBackend=['a']),
        dict(other='abc'), ['WandbVisBackend'], 'abc', 7,
    ],
)  # fmt: skip
def test_what_is_no_id_is_not_used(state):
    hook = TrackingHook()
    tracker = hook._trackers['WandbVisBackend'] = types.SimpleNamespace(run_id=None)
    hook.load_state_dict(state)
    assert tracker.run_id is None


def test_mlflow_continues_its_run(tmp_path, mlflow):
    _train(tmp_path, 'MLflowVisBackend', exp_name='e')
    _train(tmp_path, 'MLflowVisBackend', 2, resume=True, exp_name='e')
    [runs] = mlflow.stores.values()
    assert list(mlflow.stores) == [f'file://{tmp_path}/mlruns']
    [run] = runs.values()
    assert set(run.figures) == set(range(1, 13))
    assert run.files.count('config.py') == 2
    assert mlflow.active is None


def test_mlflow_begins_anew_where_the_run_is_unknown(tmp_path, mlflow):
    _train(tmp_path / 'a', 'MLflowVisBackend')
    _train(tmp_path / 'b', 'MLflowVisBackend', 2, resume=True, load_from=tmp_path / 'a/epoch_1.pth')
    assert [len(runs) for runs in mlflow.stores.values()] == [1, 1]


class TestWithThePackages:
    def test_wandb(self, tmp_path, monkeypatch, warmed):
        if importlib.util.find_spec('wandb') is None:
            pytest.skip('wandb is not installed')
        monkeypatch.setenv('WANDB_MODE', 'offline')
        monkeypatch.setenv('WANDB_SILENT', 'true')
        _train(tmp_path, 'WandbVisBackend', init_kwargs=dict(project='p'))
        _train(tmp_path, 'WandbVisBackend', 2, resume=True, init_kwargs=dict(project='p'))
        runs = [path.name.split('-')[-1] for path in tmp_path.rglob('offline-run-*')]
        assert len(runs) == 2
        assert len(set(runs)) == 1

    def test_mlflow(self, tmp_path, monkeypatch, warmed):
        if importlib.util.find_spec('mlflow') is None:
            pytest.skip('mlflow is not installed')
        import mlflow

        monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
        for epochs, resume in ((1, False), (2, True), (3, True)):
            _train(tmp_path, 'MLflowVisBackend', epochs, resume, run_name='r')
        client = mlflow.MlflowClient(f'file://{tmp_path}/mlruns')
        [run] = client.search_runs([client.get_experiment_by_name('Default').experiment_id])
        history = client.get_metric_history(run.info.run_id, 'tiny/score')
        assert {figure.step for figure in history} == {1, 2, 3}
        assert run.info.status == 'FINISHED'
