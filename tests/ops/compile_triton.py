"""Compile the Triton kernels for a GPU that needn't be there; print what each takes.

    python tests/ops/compile_triton.py 90    # Hopper; 80 is Ampere

The interpreter accepts what the compiler doesn't, and knows no registers. A line for each kernel:
its registers, the bytes it spills for want of them, and its shared memory.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backbones.ops import MLPInputs
from backbones.ops.backends.triton import fused_mlp, mlp, norm, pool
from backbones.ops.maps import Statistics

POINTERS = {
    torch.float64: '*fp64',
    torch.float32: '*fp32',
    torch.bfloat16: '*bf16',
    torch.float16: '*fp16',
}
TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'


def compile_kernel(kernel: object, _: int, *arguments: object, **constants: object) -> None:
    """Compile instead of launching, for the GPU of the command line."""
    options = {k: constants.pop(k) for k in ('num_warps', 'num_stages') if k in constants}
    signature, attributes = dict.fromkeys(constants, 'constexpr'), {}
    for index, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = 'constexpr', value
            continue
        signature[name] = POINTERS[value.dtype] if torch.is_tensor(value) else 'i32'
        if torch.is_tensor(value) or value % 16 == 0:
            attributes[(index,)] = [['tt.divisibility', 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget('cuda', int(sys.argv[1]), 32)
    compiled = triton.compile(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        command = [TOOLS / 'cuobjdump', '-res-usage', file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, spilled = (re.search(rf'{key}:(\d+)', usage).group(1) for key in ('REG', 'STACK'))
    name = f'{kernel.__module__}.{kernel.__name__}'.removeprefix('backbones.ops.backends.triton.')
    print(f'{name}: {registers} registers, {spilled} spilled, {compiled.metadata.shared} shared')


def block(dim: int, stream: torch.dtype, products: torch.dtype) -> None:
    """Call every operator once, forward and backward."""
    x = torch.zeros(2, dim, 16, 16, dtype=stream).contiguous(memory_format=torch.channels_last)
    gain, drop, b1 = torch.ones(dim), torch.ones(2), torch.zeros(4 * dim)
    w1, w2 = torch.zeros(4 * dim, dim, 1, 1), torch.zeros(dim, 4 * dim, 1, 1)
    norm.norm_forward(x, gain, gain, 1e-5)
    statistics = Statistics(drop, drop)
    pool.pool_mix_forward(x, gain, drop, 1e-5)
    pool.pool_mix_backward(x, x, gain, drop, statistics)
    inputs = MLPInputs(x, gain, gain, w1, b1, w2, gain, gain, drop)
    *_, hidden = mlp.norm_mlp_forward(inputs, 1e-5, products, True)
    mlp.norm_mlp_backward(x, inputs, statistics, hidden, products)


def main() -> None:
    for module in (fused_mlp, mlp, norm, pool):
        module.launch = compile_kernel
    for dim in (64, 128, 320):
        block(dim, torch.float32, torch.bfloat16)
    block(320, torch.float16, torch.float16)


if __name__ == '__main__':
    main()
