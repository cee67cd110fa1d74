"""docs/add_a_mixer.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from backbones import TOKEN_MIXERS


@pytest.fixture(scope='module')
def page(code_blocks) -> list[tuple[str, str]]:
    return code_blocks('add_a_mixer.md')


@pytest.fixture(scope='module')
def copy(copy_project, page, tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp('docs') / 'project', page)


def test_the_page_has_the_files_and_commands_it_speaks_of(page):
    languages = [language for language, _ in page]
    assert languages == ['python', 'python', 'sh', 'python', 'sh', 'sh']
    mixer = page[0][1]
    assert mixer.count('register_module') == 1


@pytest.mark.parametrize('index', [0, 1])
def test_commands_of_the_page_succeed(page, copy, follow, index):
    commands = [text for language, text in page if language == 'sh']
    (done,) = follow(commands[index], copy)
    assert done.returncode == 0, done.stdout + done.stderr
    if index == 0:
        assert done.stdout.splitlines()[0].endswith('retinanet_strip_s12.py: one image of 256x320')
    else:
        assert '1 passed' in done.stdout


def test_the_training_command_reads_the_config_as_far_as_the_data(page, copy, follow):
    command = [text for language, text in page if language == 'sh'][2]
    (done,) = follow(command, copy)
    # COCO is not in the copy: the check of the data, which comes after the config's, says so.
    assert done.returncode == 2
    assert re.search(r'error: .*data/coco', done.stderr), done.stdout + done.stderr


def test_the_model_of_the_page_trains_a_step(copy, monkeypatch):
    monkeypatch.syspath_prepend(copy)
    monkeypatch.setattr(TOKEN_MIXERS, '_module_dict', dict(TOKEN_MIXERS.module_dict))
    try:
        cfg = Config.fromfile(copy / 'configs/retinanet_strip_s12.py')
        base = Config.fromfile(copy / 'configs/retinanet_poolformer_s12.py')
        # the hooks that the base names come from its imports
        assert cfg.custom_imports.imports == [*base.custom_imports.imports, 'strip_mixing']
        init_default_scope('mmdet')
        model = MODELS.build(cfg.model.backbone)
        kinds = [type(stage[0].token_mixer).__name__ for stage in model.stages]
        assert kinds == ['Pooling', 'Pooling', 'StripMixing', 'StripMixing']
        sum(o.square().mean() for o in model(torch.randn(1, 3, 64, 96))).backward()
        gradients = [p.grad for n, p in model.named_parameters() if 'token_mixer' in n]
        assert len(gradients) == 2 * (6 + 2)
        assert all(g.abs().max() > 0 for g in gradients)
    finally:
        sys.modules.pop('strip_mixing', None)
