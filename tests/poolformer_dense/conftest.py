"""Models that several folders of tests predict with."""

from __future__ import annotations

from pathlib import Path

import pytest

import poolformer_dense
from poolformer_dense.predict.predictor import Predictor
from tests.tiny_models import tiny_config, write_weights

HEADS = ('retinanet', 'mask_rcnn', 'fpn')


@pytest.fixture(scope='session')
def model_files(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Of each head the files of its config and of its weights."""
    folder = tmp_path_factory.mktemp('models')
    for head in HEADS:
        cfg = tiny_config(root, head, most=5)
        write_weights(cfg, folder / f'{head}.pth')
        cfg.dump(folder / f'{head}.py')
    return {head: (str(folder / f'{head}.py'), str(folder / f'{head}.pth')) for head in HEADS}


@pytest.fixture(scope='session')
def predictors(model_files: dict[str, tuple[str, str]]) -> dict[str, Predictor]:
    """A predictor of each head, which tests must not change."""
    return {head: poolformer_dense.load(*files, 'cpu') for head, files in model_files.items()}


@pytest.fixture(params=HEADS)
def predictor(request: pytest.FixtureRequest, predictors: dict[str, Predictor]) -> Predictor:
    return predictors[request.param]
