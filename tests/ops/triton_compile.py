"""Compiles every Triton kernel, as it would be launched, for a GPU that need not be here.

    python tests/ops/triton_compile.py ARCH     (80, 90 … for NVIDIA, gfx942 … for AMD)

Runs the operations on tensors of a CPU with Triton's driver replaced by one that knows only the architecture, and
launches nothing. Prints each kernel with its shared memory in bytes and, for NVIDIA, its registers and spills.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from gossamer import device as devices

ARCH = sys.argv[1] if __name__ == "__main__" else ""
SHARED = {"80": 163 << 10, "86": 99 << 10, "90": 227 << 10, "100": 227 << 10, "gfx942": 64 << 10}


def target_of(arch: str) -> GPUTarget:
    return GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch), 32)


def compile_only(arch: str, found: dict[str, Any]) -> None:
    """From here on a launch compiles, and notes what came of it."""
    target = target_of(arch)
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_active_torch_device=lambda: torch.device("cpu"),
        )
    )
    run = JITFunction.run

    def warm_up(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        name = f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}"
        found[name] = kernel

    JITFunction.run = warm_up
    devices.triton_dot_precisions = lambda device: ("ieee", "ieee") if target.backend == "hip" else ("tf32", "tf32x3")


def operations(dtype: torch.dtype, heads: int, size: int) -> None:
    """Each operation forward and backward, its kernels launched for nothing."""
    from gossamer.ops.triton.delta_rule import delta_rule
    from gossamer.ops.triton.gated_rms_norm import gated_rms_norm
    from gossamer.ops.triton.linear_cross_entropy import linear_cross_entropy, token_logprobs
    from gossamer.ops.triton.short_conv import short_conv

    def rows(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.ones(shape, dtype=kind, requires_grad=True)

    f32, lengths = torch.float32, (100, 28)
    q, k, v = rows(1, 128, heads, size), rows(1, 128, heads, size), rows(1, 128, 2 * heads, size)
    gates = rows(1, 128, 2 * heads, kind=f32), rows(1, 128, 2 * heads, kind=f32)
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (delta_rule, (q, k, v, *gates, None, lengths)),
        (short_conv, (rows(1, 128, 4 * heads * size), rows(4 * heads * size, 4, kind=f32), None, lengths)),
        (short_conv, (rows(1, 128, 64), rows(64, 4, kind=f32), rows(2, 3, 64), lengths)),
        (gated_rms_norm, (rows(64, size), rows(64, size), rows(size, kind=f32), 1e-6)),
        (linear_cross_entropy, (rows(8, size), rows(5000, size, kind=f32), torch.zeros(8, dtype=torch.int64))),
        (token_logprobs, (rows(8, size), rows(5000, size, kind=f32), torch.zeros(8, dtype=torch.int64))),
    ]
    for function, arguments in calls:
        out = function(*arguments)
        (out[0] if isinstance(out, tuple) else out).sum().backward()


def main() -> None:
    found: dict[str, Any] = {}
    compile_only(ARCH, found)
    for dtype, size in ((torch.bfloat16, 128), (torch.bfloat16, 64)):
        found.clear()
        operations(dtype, 2, size)
        for name, kernel in found.items():
            shared = kernel.metadata.shared
            verdict = "" if shared <= SHARED.get(ARCH, 1 << 30) else "  TOO MUCH"
            print(f"{str(dtype)[6:]} {size:4d} {name:40s} {shared:7d}{verdict}", flush=True)


if __name__ == "__main__":
    main()
