"""A run deletes its own files alone, whatever the checkpoint says that it resumes from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.runner import Runner

from poolformer_dense import files
from poolformer_dense.runner.replaced import Names, number_in
from tests.poolformer_dense.runner import tiny

TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth', '{}.pth', '2x{:06d}_b.pth', 'epoch_{0}_of_9.pth')
CHECKPOINT = dict(type='AtomicCheckpointHook', minutes=0, max_keep_ckpts=1)
BEST = dict(save_best='tiny/score', rule='greater')


class TestNumbers:
    @given(st.sampled_from(TEMPLATES), st.integers(0, 10**9))
    def test_a_name_gives_back_its_number(self, template, number):
        assert number_in(template.format(number), template) == number

    @given(st.sampled_from(TEMPLATES), st.text() | st.from_regex(r'(\.\./|/)?(epoch_)?\d+\.pth'))
    def test_any_other_name_gives_none(self, template, name):
        number = number_in(name, template)
        assert number is None or template.format(number) == name


# What may stand in a stranger's message hub: names of all kinds, also of files that are there.
PLACES = st.builds(
    ''.join,
    st.lists(st.sampled_from(['/', '..', '.', '\\', '\0', 'work', 'victim', 'epoch_2.pth', '~'])),
)
NAMES = st.sampled_from(
    ['victim', 'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'epoch_9.pth', 'iter_6.pth',
     'iter_99.pth', 'best_a_epoch_1.pth', 'best_b_epoch_1.pth', 'notes.txt', 'epoch_x.pth']
)  # fmt: skip
CLAIM = st.builds(str.__add__, PLACES, NAMES) | st.text() | st.none() | st.integers() | st.floats()
HUB = st.fixed_dictionaries(
    {},
    optional=dict(
        keep_ckpt_ids=st.lists(st.integers(-2, 12) | CLAIM) | CLAIM,
        intermediate_ckpt=CLAIM | st.lists(CLAIM),
        outdated_ckpts=st.lists(CLAIM) | CLAIM | st.dictionaries(st.text(), CLAIM),
        best_ckpt=CLAIM | st.lists(CLAIM),
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HUB, st.integers(0, 2))
def test_what_may_be_deleted_is_a_file_of_the_folder_with_a_name_of_the_run(tmp_path, hub, keep):
    there = ['victim', 'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'epoch_9.pth', 'iter_6.pth',
             'best_a_epoch_1.pth', 'best_b_epoch_1.pth', 'notes.txt']  # fmt: skip
    for name in there:
        (tmp_path / name).touch()
    names = Names('epoch_{}.pth', 'iter_{}.pth', None, keep, dict(best_ckpt='a'))
    found = names.replaced(hub, tmp_path / 'epoch_3.pth', epoch=3, iteration=18)
    passed = {2: ['epoch_1.pth'], 1: ['epoch_1.pth', 'epoch_2.pth'], 0: []}[keep]
    assert {name for name in found.outdated if (tmp_path / name).exists()} <= {
        *passed,
        'iter_6.pth',
    }
    assert all(number_in(name, 'iter_{}.pth') is not None for name in {*found.outdated} - {*passed})
    assert set(found.kept) <= {0, 1, 2, 3}
    assert len(found.kept) <= keep
    assert found.intermediate in (None, 'epoch_3.pth')
    assert all(number_in(n, 'epoch_{}.pth', 'best_a_') in range(4) for n in found.best.values())


def _folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).touch()
    return tmp_path


def test_what_a_killed_run_had_replaced_is_found(tmp_path):
    folder = _folder(tmp_path, 'epoch_1.pth', 'epoch_2.pth', 'iter_9.pth', 'best_a_b_epoch_2.pth')
    names = Names('epoch_{}.pth', 'iter_{}.pth', None, 1, dict(best_ckpt='a/b'))
    best = '/elsewhere/best_a_b_epoch_2.pth'
    hub = dict(keep_ckpt_ids=[2], outdated_ckpts=['epoch_1.pth', 'iter_9.pth'], best_ckpt=best)
    found = names.replaced(hub, folder / 'epoch_2.pth', epoch=2, iteration=12)
    assert found.outdated == ['epoch_1.pth', 'iter_9.pth']
    assert found.kept == [2]
    assert found.best == dict(best_ckpt='best_a_b_epoch_2.pth')


def test_by_iterations_an_intermediate_one_is_told_by_the_interval(tmp_path):
    folder = _folder(tmp_path, 'iter_10.pth', 'iter_13.pth', 'iter_20.pth')
    names = Names('iter_{}.pth', 'iter_{}.pth', 10, 0, {})
    hub = dict(outdated_ckpts=['iter_10.pth', 'iter_13.pth'])
    found = names.replaced(hub, folder / 'iter_20.pth', epoch=0, iteration=20)
    assert found.outdated == ['iter_13.pth']


@pytest.mark.parametrize('figure', ['auto', 'coco/bbox_mAP'])
def test_the_best_one_is_found(tmp_path, figure):
    names = Names('epoch_{}.pth', 'iter_{}.pth', None, 1, dict(best_ckpt=figure))
    hub = dict(best_ckpt='/old/place/best_coco_bbox_mAP_epoch_3.pth')
    found = names.replaced(hub, _folder(tmp_path) / 'epoch_4.pth', epoch=4, iteration=24)
    assert found.best == dict(best_ckpt='best_coco_bbox_mAP_epoch_3.pth')
    hub = dict(best_ckpt='/old/place/best_coco_bbox_mAP_epoch_5.pth')
    assert not names.replaced(hub, tmp_path / 'epoch_4.pth', epoch=4, iteration=24).best


@pytest.fixture(scope='module')
def trained(warmed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('replaced') / 'run'
    tiny.tiny_runner(folder, steps=6, checkpoint=CHECKPOINT | BEST).train()
    return folder


@pytest.fixture
def received(trained, runs) -> Callable[..., Path]:
    """A run's folder whose checkpoint was tampered with; victims lie beside it and in it."""

    def tamper(**meta: Any) -> Path:
        folder = shutil.copytree(trained, runs / 'run')
        path = folder / 'epoch_1.pth'
        checkpoint = torch.load(path, weights_only=False)
        checkpoint['message_hub']['runtime_info'] |= meta.pop('info', {})
        checkpoint['meta'] |= meta
        files.save_sealed(checkpoint, path)
        for victim in (runs / 'victim', runs / 'epoch_0.pth', folder / 'notes.txt'):
            victim.write_text('precious')
        return folder

    return tamper


def _resume(folder: Path, steps: int = 12, **options: Any) -> Runner:
    options = dict(checkpoint=CHECKPOINT | BEST | options)
    runner = tiny.tiny_runner(folder, steps=steps, resume=True, **options)
    runner.train()
    return runner


@pytest.mark.parametrize(
    'info',
    [
        dict(
            outdated_ckpts=['{runs}/victim', '../victim', 'notes.txt', '../epoch_0.pth', '.'],
            intermediate_ckpt='{runs}/victim',
            keep_ckpt_ids=['/../../victim', -1, 10**30, None, [1]],
            best_ckpt='{runs}/victim',
            best_score=-1e9,
            last_ckpt='{runs}/victim',
        ),
        dict(
            outdated_ckpts=['epoch_1.pth', '{runs}/epoch_0.pth'],
            intermediate_ckpt='notes.txt',
            best_ckpt='notes.txt',
            best_score=-1e9,
        ),
        dict(intermediate_ckpt='../victim', best_ckpt='{runs}', best_score=-1e9),
        dict(outdated_ckpts=3, intermediate_ckpt=['x'], keep_ckpt_ids='123', best_ckpt=7),
    ],
)
def test_a_received_checkpoint_deletes_nothing(runs, received, info):
    def here(value: Any) -> Any:
        if isinstance(value, list):
            return [here(entry) for entry in value]
        return value.replace('{runs}', str(runs)) if isinstance(value, str) else value

    folder = received(info={key: here(value) for key, value in info.items()})
    _resume(folder, steps=18)
    assert (runs / 'victim').read_text() == 'precious'
    assert (runs / 'epoch_0.pth').read_text() == 'precious'
    assert (folder / 'notes.txt').read_text() == 'precious'
    assert [p.name for p in folder.glob('epoch_*.pth')] == ['epoch_3.pth']


def test_a_copy_of_a_folder_leaves_the_original_alone(runs, trained, received):
    folder = received(info=dict(best_score=1e9))
    _resume(folder, rule='less')  # so that another one is the best
    assert (trained / 'best_tiny_score_epoch_1.pth').exists()
    assert [p.name for p in folder.glob('best_*')] == ['best_tiny_score_epoch_2.pth']


def test_a_config_in_a_checkpoint_is_not_run(runs, received):
    # mmengine reads this one.
    _resume(received(config=f'open({str(runs / "harmed")!r}, "w")'))
    assert not (runs / 'harmed').exists()


@pytest.mark.parametrize(
    'entry',
    [r"""{"x': open('harmed', 'w'), 'y": 1, 'type': 'A'}""", "dict(type='A', x='{{$X:1}}')"],
)
def test_no_code_gets_into_the_config_that_a_resumed_run_writes(received, entry):
    entry = entry.replace("'A'", "'CosineAnnealingLR'")
    text = _resume(received(cfg=f'param_scheduler = [{entry}]')).cfg.pretty_text
    assert 'open(' not in text
    assert '{{' not in text
