"""Learning rates of parts and layers, as the page on training writes them."""

from __future__ import annotations

import re

import pytest

from poolformer_dense.config.load import enable_lr_scaling, load_config
from poolformer_dense.runner.learning_rates import idle_keys
from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import tiny


@pytest.fixture
def rates(root, shapes, tmp_path):
    """Train nothing; return the rate of each parameter with a block of the page in the config."""

    def build(heading: str, **overrides) -> dict[str, float]:
        page = (root / 'docs/training.md').read_text()
        section = page.partition('## Learning rates of parts')[2].partition('\n## ')[0]
        [block] = [b for b in re.findall(r'```python\n(.*?)```', section, re.S) if heading in b]
        path = tiny.write_demo(root, 'retinanet', tmp_path)
        path.write_text(path.read_text() + block)
        options = {'data_root': f'{shapes}/coco', 'log_level': 'ERROR', **overrides}
        prepare = [enable_lr_scaling] if overrides else []
        runner = build_runner(load_config(str(path), options, str(tmp_path), prepare=prepare))
        wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(wrapper, runner.auto_scale_lr)
        names = {p: name for name, p in runner.model.named_parameters()}
        groups = wrapper.optimizer.param_groups
        return {names[p]: group['lr'] for group in groups for p in group['params']}

    return build


def test_a_backbone_at_a_tenth(rates):
    found = rates("'backbone': dict(lr_mult=0.1)")
    backbone = {rate for name, rate in found.items() if name.startswith('backbone.')}
    others = {rate for name, rate in found.items() if not name.startswith('backbone.')}
    assert [*backbone] == pytest.approx([4e-5])
    assert [*others] == pytest.approx([4e-4])


def test_layers_decay_and_are_scaled(rates):
    found = rates('decay ** (4 - stage)', **{'auto_scale_lr.base_batch_size': 2})
    base = 8e-4  # batch 4 instead of 2
    for stage in range(4):
        for part in ('downsamples', 'stages'):
            own = {rate for n, rate in found.items() if n.startswith(f'backbone.{part}.{stage}.')}
            assert [*own] == pytest.approx([base * 0.7 ** (4 - stage)])
    assert found['bbox_head.retina_cls.weight'] == pytest.approx(base)


def test_a_key_that_fits_no_name_is_told(runs):
    names = ['backbone.stages.0.weight', 'neck.bias']
    wrapper = dict(paramwise_cfg=dict(custom_keys={'stages.0': {}, 'backbon.stages': {}}))
    [line] = idle_keys(wrapper, names)
    assert "'backbon.stages' is in no name of a parameter" in line
    assert "is it 'backbone.stages'?" in line
    cfg = tiny.tiny_config(runs, steps=6)
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'head': dict(lr_mult=0.1)})
    assert "'head' is in no name" in tiny.train_listening(build_runner(cfg))
