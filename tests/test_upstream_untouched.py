"""No part of the product changes what upstream owns; `upstream_reader` says what that is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upstream_reader import OWN, Classes, read

ROOT = Path(__file__).resolve().parents[1]
# What there is no other way around, and why; a change is put back by a context manager.
ALLOWED = {
    'private: BaseLoop._decide_current_val_interval': 'follows val_interval through its milestones',
    'private: BaseVisBackend._env_initialized': 'whether its run at the server has begun',
    'private: BaseVisBackend._init_env': 'begins its run at the server: where to say which',
    'private: BaseVisBackend._save_dir': 'where it keeps runs without a server',
    'private: CheckpointHook._publish_model': 'writes what is published; ours reads it safely',
    'private: CheckpointHook._save_best_checkpoint': 'removes the best before the new is there',
    'private: CheckpointHook._save_checkpoint_with_step': 'removes before the new is there',
    'private: CocoMetric._coco_api': 'the ids of the categories it evaluates with',
    'private: CheckpointLoader._schemes': 'nothing else tells what is registered',
    'private: EpochBasedTrainLoop._epoch': 'its counter, which has no setter',
    'private: Runner._has_loaded': 'what load_or_resume acts on has no setter',
    'private: Runner._load_from': 'what load_or_resume acts on has no setter',
    'private: Runner._resume': 'what load_or_resume acts on has no setter',
    'private: Runner._train_loop': 'whether this run trains; the property would build the loop',
    'private: Runner._maybe_compile': 'compiles whole steps, which break in many graphs',
    'private: Runner._test_loop': 'whether this run tests; the property would build the loop',
    'private: Runner._val_loop': 'whether this run validates; the property would build the loop',
    'private: pip._vendor': 'in a bare environment only pip has packaging, for the doctor',
    'private: torch._higher_order_ops': 'its loops, for programs that need no operator of ours',
    'private: torch._inductor': 'list_mode_options, which the documentation of torch.compile names',
    'private: torch._subclasses': 'tensors without memory, to count launches',
    'private: torch.utils._python_dispatch': 'sees every operator, to count launches; documented',
    'private: torch.utils._pytree': 'the tensors among the arguments of an operator',
    'private: torch._foreach_copy_': 'one call for many tensors; it has no public name',
    'private: torch._foreach_norm': 'one call for many tensors; it has no public name',
    'private: torch.fx.experimental._config': 'lets an export hold for maps of one pixel',
    'private: torch.ops.mkldnn._is_mkldnn_bf16_supported': 'whether the next can be called',
    'private: torch.ops.mkldnn._linear_pointwise': 'the one operator of a product with a GELU',
}


def sources() -> Iterator[Path]:
    for part in sorted(OWN):
        yield from sorted((ROOT / part).rglob('*.py'))


@pytest.fixture(scope='module')
def found() -> dict[str, set[tuple[int, str]]]:
    """What each file does, by its path."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in sources()}
    classes = Classes([ast.parse(text) for text in texts.values()])
    return {path: read(text, classes) for path, text in texts.items()}


def test_nothing_of_upstream_is_touched(found):
    refused = [
        f'{path}:{line}: {what}'
        for path, lines in found.items()
        for line, what in sorted(lines)
        if what not in ALLOWED
    ]
    assert not refused, '\n'.join(refused)


def test_what_is_allowed_is_needed(found):
    assert set(ALLOWED) <= {what for lines in found.values() for _, what in lines}


@pytest.mark.parametrize(
    ('text', 'what'),
    [
        ('import torch\ntorch.load = None', 'changes torch.load'),
        ('import torch.utils.data as d\ndel d.Sampler.x', 'changes torch.utils.data.Sampler.x'),
        ('from mmengine.hooks import Hook\nHook.after_run += f', 'changes mmengine.hooks.Hook'),
        ('from mmdet.apis import a as b\nsetattr(b, "x", 1)', 'changes mmdet.apis.a by setattr'),
        ('import pickle\npickle.Unpickler = U', 'changes pickle.Unpickler'),
        ('from x import R\ndef f(r):\n cast(R, r).step = g', 'changes x.R.step'),
        ('import torch\ndef f():\n torch.backends.cudnn.benchmark = 1', 'cudnn.benchmark'),
        ('from x import R\ndef f(r: R):\n r.step = g', 'changes x.R.step'),
        ('from x import R\ndef f(r: "R | None"):\n r.hooks[0].step = g', 'x.R.hooks.step'),
        ('from x import R\ndef f(r: R):\n for h in r.hooks:\n  h.step = g', 'x.R.hooks.step'),
        ('from x import R\ndef f(r: R):\n m = r.model\n m.a.b = g', 'x.R.model.a.b'),
        ('from x import R\ndef f(r):\n if isinstance(r, (R, S)):\n  r.y = 1', 'changes x.R.y'),
        ('from x import R\ndef f(*, r: R):\n type(r).step = g', 'changes x.R.step'),
        ('from x import R\ndef f(r: R):\n object.__setattr__(r, "a", 1)', '__setattr__'),
        ('from x import R\ndef f(r: R):\n vars(r).update(a=1)', 'changes x.R by vars'),
        ('from x import R\ndef f(r: R):\n r.__dict__["a"] = 1', 'changes x.R.__dict__'),
        ('from x import R\nclass A(R):\n def f(self):\n  self.loop.a = 1', 'changes x.R.loop.a'),
        (
            'from x import R\nclass A:\n def __init__(self, r):\n  self.r: R = r\n'
            ' def f(self):\n  self.r.a = 1',
            'changes x.R.a',
        ),
        ('from torch._subclasses import Fake', 'private: torch._subclasses'),
        ('import torch\ntorch._C.f()', 'private: torch._C'),
        ('from x import R\ndef f(r: R):\n return r._hooks', 'private: R._hooks'),
        ('from x import R\ndef f(r: R):\n return getattr(r, "_hooks")', 'private: R._hooks'),
        ('from x import R\nclass A(R):\n def f(self):\n  return self._loop', 'private: R._loop'),
        (
            'from mmengine.hooks import CheckpointHook as C\nclass A(C):\n'
            ' def _save_checkpoint(self): ...',
            'private: CheckpointHook._save_checkpoint',
        ),
        ('import torch\ntorch.set_num_threads(1)', 'torch.set_num_threads at import'),
        ('import os\nos.environ["A"] = "1"', 'os.environ at import'),
        ('import warnings\nwarnings.filterwarnings("ignore")', 'warnings.filterwarnings'),
        (
            'import signal\nclass A:\n def __init__(self):\n  signal.signal(1, f)',
            'signal.signal at construction',
        ),
        ('from x import L\nL.register_scheme("a", f)', 'x.L.register_scheme at import'),
    ],
)
def test_what_is_refused(text, what):
    [(_, said)] = read(text)
    assert what in said


@pytest.mark.parametrize(
    'text',
    [
        'from mmengine.config import Config\ndef f(cfg: Config):\n cfg.model.type = "A"',
        'from mmengine.runner import Runner\ndef f(r: Runner):\n r.cfg.resume = True',
        'from torch import Tensor\ndef f(t: Tensor):\n t.grad = None',
        'from torch import nn\nclass A(nn.Module):\n def f(self):\n  self.weight = 1',
        'from x import R\nclass A(R):\n def f(self):\n  self.own = B()\n  self.own.a = 1',
        'from x import R\nclass A(R):\n def f(self):\n  self._own = 1\n  return self._own',
        'from x import R\nclass A(R):\n _own = 1\nclass B(A):\n def f(self):\n  return self._own',
        'from x import R\ndef f(r: R):\n r.call(1)\n return vars(r), r.__dict__',
        'from backbones import M\ndef f(m: M):\n m.a = m._b',
        'import torch, signal\ndef f():\n torch.set_num_threads(1)\n signal.signal(1, g)',
        'import sys\nif __name__ == "__main__":\n sys.setrecursionlimit(9)',
    ],
)
def test_what_is_no_change(text):
    assert not read(text)
