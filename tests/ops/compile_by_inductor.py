"""Compile a backbone on the Triton backend by torch.compile, on a CPU, and run what Inductor wrote.

    python tests/ops/compile_by_inductor.py float32     # train a step and infer, and compare
    python tests/ops/compile_by_inductor.py --sizes 10  # count the graphs for so many sizes

Inductor writes the source and the calls of the kernels anew. Triton's compiler compiles them for
Hopper, and its interpreter runs them. Prints JSON: graphs, calls of each kernel, and the relative
error of each output and gradient that is largest, beside plain torch without a compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ['TRITON_INTERPRET'] = '0'  # torch.compile takes kernels for the compiler alone
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.runtime import triton_heuristics
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction

from backbones import MetaFormer

HOPPER = GPUTarget('cuda', 90, 32)
ARCH = dict(depths=(1, 1, 1, 1), dims=(32, 32, 32, 160), mlp_ratio=2, layer_scale_init=0.1)
calls: Counter[str] = Counter()


@contextlib.contextmanager
def restored(*owners: Any) -> Iterator[None]:
    """Undo changes of attributes: the interpreter leaves some in Triton's language."""
    before = [dict(vars(owner)) for owner in owners]
    try:
        yield
    finally:
        for owner, kept in zip(owners, before, strict=True):
            for name, value in dict(vars(owner)).items():
                if name not in kept:
                    delattr(owner, name)
                elif value is not kept[name]:
                    setattr(owner, name, kept[name])


def load(path: str, interpret: bool) -> Any:
    """Import a file as a module of its own, its kernels for the interpreter or the compiler."""
    spec = importlib.util.spec_from_file_location('triton.language.loaded', path)
    module = importlib.util.module_from_spec(spec)
    before, triton.knobs.runtime.interpret = triton.knobs.runtime.interpret, interpret
    try:
        spec.loader.exec_module(module)
    finally:
        triton.knobs.runtime.interpret = before
    return module


# Triton's own functions, as kernels in the interpreter call them.
INTERPRETED = {
    name: value
    for name, value in vars(load(tl.standard.__file__, interpret=True)).items()
    if isinstance(value, InterpretedFunction) and hasattr(tl, name)
}


class Launcher:
    """What Inductor's code calls for a kernel of which it has written the source."""

    def __init__(self, name: str, source: str, runs: bool) -> None:
        self.name, self.runs = name, runs
        if not runs:
            return
        with tempfile.TemporaryDirectory() as folder, restored(triton_heuristics):
            triton_heuristics.user_autotune = self._keep_what_inductor_knows
            path = Path(folder, 'kernel.py')
            path.write_text(source)
            kernel, self.kernel = (getattr(load(str(path), i), name) for i in (False, True))
            self.kernel.rewrite()  # while there is the file
        (attributes,), (options,) = self.known['configs'], self.configs or [{}]
        source = ASTSource(kernel, self.known['signature'], self.known['constants'], attributes)
        triton.compile(source, target=HOPPER, options=dict(options))

    def _keep_what_inductor_knows(self, configs: Any, triton_meta: Any, **_: Any) -> Any:
        self.configs, self.known = configs, triton_meta
        return lambda kernel: kernel

    def run(self, *arguments: Any, stream: object) -> None:
        """Launch."""
        calls[self.name] += 1
        if not self.runs:
            return
        *given, x, y, z = arguments
        named = dict(zip(self.known['signature'], given, strict=False)) | self.known['constants']
        with restored(tl, tl.core, tl.math, tl.tensor):
            vars(tl).update(INTERPRETED)
            self.kernel[(x, y, z)](**named)


def train(model: nn.Module, size: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """The outputs and all gradients of a step, and the outputs of inference."""
    torch.manual_seed(0)
    x = torch.randn(size[0], 3, *size[1:], requires_grad=True)
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        outputs = model(x)
    torch.autograd.backward(outputs, [torch.randn(o.shape).to(o.dtype) for o in outputs])
    found = {str(i): o.detach() for i, o in enumerate(outputs)} | {'x': x.grad}
    found |= {n.removeprefix('_orig_mod.'): p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad(), torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        found |= {f'inferred {i}': o for i, o in enumerate(model(x))}
    return found


def error(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """The largest, NaN if there is one; the shift before pooling has no gradient."""
    none = {key for key in plain if key.endswith('norm1.bias')}
    assert not any(ours[key].any() for key in none)
    errors = [(ours[k] - plain[k]).norm() / plain[k].norm() for k in plain if k not in none]
    return float(torch.stack(errors).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('dtype', nargs='?', default='float32')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--sizes', type=int)
    args = parser.parse_args()
    draw, arch, sizes = random.Random(0), ARCH, [(args.batch, 64, 32)]
    if args.sizes:  # no two of which are equal where torch would take them for one
        arch = ARCH | dict(dims=(64, 128, 320, 512))
        sizes = [
            (draw.choice([2, 4]), draw.randrange(480, 801, 32), draw.randrange(832, 1345, 32))
            for _ in range(args.sizes)
        ]
    triton.runtime.driver.set_active(
        SimpleNamespace(get_current_target=lambda: HOPPER, get_current_device=lambda: 0)
    )
    AsyncCompile.triton = lambda _, name, source, **__: Launcher(name, source, not args.sizes)
    torch._inductor.config.force_disable_caches = True
    torch.manual_seed(0)
    plain, ours = (MetaFormer(arch, backend=backend) for backend in ('reference', 'triton'))
    plain.load_state_dict(ours.state_dict())
    compiled = torch.compile(ours, dynamic=True)
    for size in sizes:
        found = train(compiled, size, getattr(torch, args.dtype))
    result = dict(graphs=counters['stats']['unique_graphs'], calls=calls)
    if not args.sizes:
        result['error'] = error(found, train(plain, size, torch.float32))
    print(json.dumps(result))


if __name__ == '__main__':
    main()
