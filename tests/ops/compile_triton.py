"""Compile the Triton kernels for a GPU that needn't be there; print what each variant takes.

    python tests/ops/compile_triton.py 90             # Hopper; 80 is Ampere
    python tests/ops/compile_triton.py 90 --rows 2    # the first rows only

The interpreter accepts what the compiler doesn't, and knows no registers. Triton's own rules say
which variants there are. The calls cover each pair of: a dtype, a number of channels, a size, and
what is left out. A line for each variant: its registers, the bytes it spills for want of them, and
its shared memory.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import compute_cache_key, create_function_from_signature

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backbones.ops import MLPInputs
from backbones.ops.backends.triton import fused_mlp, mlp, norm, pool

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
FACTORS = dict(
    # Of the residual stream and of the products.
    dtypes=[(F32, BF16), (F32, F16), (F32, F32), (BF16, BF16), (F16, F16), (F64, F64)],
    dim=[64, 128, 320, 512, 33, 1],
    size=[(2, 16, 16), (1, 1, 1), (3, 7, 9)],
    bias=[True, False],
    scale=[True, False],
    drop=[True, False],
    keep=[True, False],
)
TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'


class Compiler:
    """Stands in for `launch`: compiles each variant once instead of launching it."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget('cuda', capability, 32)
        self.backend = make_backend(self.target)
        self.variants: dict[str, str] = {}

    def key(self, kernel: object, *arguments: object, **constants: object) -> tuple[str, tuple]:
        """What Triton's cache goes by, and what its compiler takes."""
        binder = create_function_from_signature(kernel.signature, kernel.params, self.backend)
        bound, specialization, options = binder(*arguments, debug=False, **constants)
        key = compute_cache_key({}, specialization, options)
        key = f'{kernel.__module__}.{kernel.__name__} {key}'
        return key, kernel._pack_args(self.backend, constants, bound, specialization, options)

    def __call__(self, kernel: object, _: int, *arguments: object, **constants: object) -> None:
        key, (options, signature, constexprs, attributes) = self.key(
            kernel, *arguments, **constants
        )
        if key in self.variants:
            return
        source = ASTSource(kernel, signature, constexprs, attributes)
        try:
            compiled = triton.compile(source, target=self.target, options=options.__dict__)
        except Exception as error:
            error.add_note(f'{key}')
            raise
        self.variants[key] = ''
        module = kernel.__module__.removeprefix('backbones.ops.backends.triton.')
        kinds = ' '.join('-' if kind == 'constexpr' else kind for kind in signature.values())
        usage = resources(compiled.asm['cubin'])
        line = f'{module}.{kernel.__name__}: {usage}, {compiled.metadata.shared} shared ({kinds})'
        print(line, flush=True)


def resources(cubin: bytes) -> str:
    """Registers and spilled bytes, by NVIDIA's tool."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / 'cuobjdump', '-res-usage', file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, spilled = (re.search(rf'{key}:(\d+)', usage).group(1) for key in ('REG', 'STACK'))
    return f'{registers} registers, {spilled} spilled'


def pairwise(factors: dict[str, list]) -> Iterator[dict[str, object]]:
    """Rows in which each value of a factor meets each value of every other."""
    names = list(factors)
    rows = [
        dict(zip(names, values, strict=True)) for values in itertools.product(*factors.values())
    ]

    def pairs(row: dict[str, object]) -> set[tuple[object, ...]]:
        return {(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}

    wanted = set().union(*map(pairs, rows))
    while wanted:
        best = max(rows, key=lambda row: len(pairs(row) & wanted))
        wanted -= pairs(best)
        yield best


def block(row: dict[str, object]) -> None:
    """Call every operator once, forward and backward."""
    (stream, products), dim, (batch, height, width) = row['dtypes'], row['dim'], row['size']
    x = torch.zeros(batch, dim, height, width, dtype=stream)
    x = x.contiguous(memory_format=torch.channels_last)
    learned = stream if stream in (F64, products) else F32
    gain, b1 = torch.ones(dim, dtype=learned), torch.zeros(4 * dim, dtype=learned)
    w1, w2 = (
        torch.zeros(4 * dim, dim, 1, 1, dtype=learned),
        torch.zeros(dim, 4 * dim, 1, 1, dtype=learned),
    )
    drop = torch.ones(batch) if row['drop'] else None
    shift, scale = (gain if row[name] else None for name in ('bias', 'scale'))
    _, statistics = norm.norm_forward(x, gain, shift, 1e-5)
    norm.norm_backward(x, x, statistics, gain)
    wide = gain.to(statistics.mean.dtype)
    pool.pool_mix_forward(x, wide, drop, 1e-5)
    pool.pool_mix_backward(x, x, wide, drop, statistics)
    inputs = MLPInputs(x, gain, shift, w1, b1 if row['bias'] else None, w2, shift, scale, drop)
    *_, hidden = mlp.norm_mlp_forward(inputs, 1e-5, products, row['keep'])
    mlp.norm_mlp_backward(x, inputs, statistics, hidden, products)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('capability', type=int)
    parser.add_argument('--rows', type=int)
    args = parser.parse_args()
    compiler = Compiler(args.capability)
    for module in (fused_mlp, mlp, norm, pool):
        module.launch = compiler
    for row in itertools.islice(pairwise(FACTORS), args.rows):
        block(row)


if __name__ == '__main__':
    main()
