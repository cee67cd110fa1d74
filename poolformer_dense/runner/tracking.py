"""W&B and MLflow continue their run when a training is resumed.

mmengine's backends begin a run of the server with the config, before a checkpoint is loaded. Ours
begin with the first figure: by then the checkpoint has told which run it was.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, VISBACKENDS
from mmengine.runner import Runner
from mmengine.utils import scandir
from mmengine.visualization import MLflowVisBackend, WandbVisBackend
from mmengine.visualization.vis_backend import BaseVisBackend

# An id comes from a checkpoint, and so perhaps from a stranger: W&B's and MLflow's have this form.
_ID = re.compile(r'[A-Za-z0-9_-]{1,64}')
_STORE = 'mlruns'


class _Tracker(BaseVisBackend):
    """A backend whose run on a server can be continued; combined with one of mmengine's.

    Its methods come before that one's, which do the work.

    Attributes:
        run_id: The run, None before it has begun; set to continue one.
        resumed: Whether it is continued.
    """

    run_id: str | None = None
    resumed: bool = False
    _waiting: tuple[Any, dict[str, Any]] | None = None

    def add_config(self, config: Any, **options: Any) -> None:
        if self._env_initialized:
            super().add_config(config, **options)
        else:
            self._waiting = config, options

    def _init_env(self) -> None:
        self._begin()
        self._env_initialized = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self.add_config(waiting[0], **waiting[1])

    def _begin(self) -> None:
        super()._init_env()


class _WandbTracker(_Tracker):
    _wandb: Any
    _init_kwargs: dict[str, Any] | None

    def _begin(self) -> None:
        given = self._init_kwargs or {}
        if self.run_id is not None and 'id' not in given:
            self.resumed = True
            self._init_kwargs = {**given, 'id': self.run_id, 'resume': 'allow'}
        super()._begin()
        self.run_id = self._wandb.run.id


class _MLflowTracker(_Tracker):
    _mlflow: Any
    _tracking_uri: str | None
    _exp_name: str | None
    _artifact_suffix: Any
    cfg: Any

    def add_config(self, config: Any, **options: Any) -> None:
        if self._env_initialized and self.resumed:
            # MLflow refuses another value of a parameter, such as ``resume``.
            self.cfg = config
            self._mlflow.log_text(config.pretty_text, 'config.py')
        else:
            super().add_config(config, **options)

    def close(self) -> None:
        """Add the files of the work directory to the run, but not MLflow's own, and end it."""
        if not self._env_initialized:
            return
        folder = self.cfg.work_dir
        for name in list(scandir(folder, self._artifact_suffix, recursive=True)):
            if not name.startswith(f'{_STORE}{os.sep}'):
                self._mlflow.log_artifact(os.path.join(folder, name), os.path.dirname(name) or None)
        self._mlflow.end_run()

    def _begin(self) -> None:
        mlflow: Any = importlib.import_module('mlflow')
        if self.run_id is not None:
            store = f'file://{os.path.abspath(self._save_dir)}'
            mlflow.set_tracking_uri(self._tracking_uri or store)
            try:
                run = mlflow.get_run(self.run_id)
                experiment = mlflow.get_experiment_by_name(self._exp_name or 'Default')
                if experiment is None or run.info.experiment_id != experiment.experiment_id:
                    raise mlflow.MlflowException('it is of another experiment')
                mlflow.set_experiment(experiment.name)
                mlflow.start_run(run_id=self.run_id)
                self.resumed = True
            except mlflow.MlflowException as error:
                reason = str(error).partition('\n')[0]
                print_log(f'MLflow: run {self.run_id} is not continued ({reason})', 'current')
        super()._begin()
        run = mlflow.active_run() or mlflow.start_run()
        self.run_id = run.info.run_id


_TRACKERS: dict[type[BaseVisBackend], type[_Tracker]] = {
    WandbVisBackend: _WandbTracker,
    MLflowVisBackend: _MLflowTracker,
}


def continued(backend: Any, work_dir: str) -> Any:
    """Return a visualization backend's config so that a resumed training continues its run.

    Args:
        backend: The config; what is neither W&B's nor MLflow's stays as it is. Else it is given a
            ``name``.
        work_dir: MLflow's runs are in its folder ``mlruns`` if no ``tracking_uri`` is given;
            with mmengine's backend each session has its own.
    """
    kind = backend.get('type') if isinstance(backend, Mapping) else None
    kind = VISBACKENDS.get(kind) if isinstance(kind, str) else kind
    for theirs, ours in _TRACKERS.items():
        if isinstance(kind, type) and issubclass(kind, theirs):
            combined = type(kind.__name__, (ours, kind), {'__module__': kind.__module__})
            backend = {'name': kind.__name__, **backend, 'type': combined}
            if theirs is MLflowVisBackend and not backend.get('tracking_uri'):
                backend['save_dir'] = os.path.join(work_dir, _STORE)
    return backend


def is_tracker(backend: Any) -> bool:
    """Whether a config is one that `continued` has changed."""
    kind = backend.get('type') if isinstance(backend, Mapping) else None
    return isinstance(kind, type) and issubclass(kind, _Tracker)


@HOOKS.register_module()
class TrackingHook(Hook):
    """Keeps the ids of the runs at W&B and MLflow with the training's state."""

    def __init__(self) -> None:
        self._trackers: dict[str, _Tracker] = {}

    def before_run(self, runner: Runner) -> None:
        names = getattr(runner, 'tracker_names', ())
        self._trackers = {name: runner.visualizer.get_backend(name) for name in names}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if is_main_process():
            for tracker in self._trackers.values():
                _ = tracker.experiment  # begins its run, so that each save knows the id

    def state_dict(self) -> dict[str, Any]:
        return {name: tracker.run_id for name, tracker in self._trackers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tracker in self._trackers.items():
            run_id = state.get(name) if isinstance(state, dict) else None
            if isinstance(run_id, str) and _ID.fullmatch(run_id) and tracker.run_id is None:
                tracker.run_id = run_id
