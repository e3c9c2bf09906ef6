"""Is every operation right on this GPU, how fast is it, and how fast is a training step beside transformers'?

    python benchmarks/gpu.py [--size mini small] [--rows 4] [--recompute] [--turns 10] [--only errors …] [--json FILE]

Three tables for each size. Errors: every implementation that can run here, on packed documents with the size's own
heads and widths, against the float64 reference, gradients included: the largest difference over the largest magnitude.
Operations: forward and backward at the size's own shapes. Steps: forward, backward, clipping and AdamW, each subject
in a process of its own, one after the other so that each has the GPU's memory to itself. MFU is the model's own FLOPs
(gossamer.model.counts) over the time, against the bfloat16 product of two large matrices measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from measure import Subject, copy_rate, gemm_rate, seconds_of, table, take_turns
from peers import gossamer_step, model_config, qwen3_next_step
from torch import Tensor

from gossamer import device as devices
from gossamer import ops
from gossamer.model.config import ModelConfig

LENGTHS = {"nano": 256, "micro": 512, "mini": 2048, "small": 4096}  # tokens a row
DOCUMENTS = [1, 0, 66, 127, 64, 2]  # for the errors: empty, one token, a whole chunk, a chunk and a little
EXPERTS = ("batched_mm", "grouped_mm")  # transformers' implementations; its eager one loops over experts
# The same as in tests/exactness.py; operations that round to bfloat16 in between have five times as much.
ALLOWED = {torch.bfloat16: 5e-2, torch.float32: 1e-4}
Inputs = dict[str, Any]


def inputs_of(operation: str, config: ModelConfig, lengths: list[int], device: torch.device) -> Inputs:
    """Random float64 inputs of the size's heads and widths, the documents of these lengths packed in one row."""
    generator = torch.Generator().manual_seed(0)
    tokens, hidden = sum(lengths), config.hidden_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    def scaled(*shape: int) -> Tensor:
        return normal(*shape) * shape[-1] ** -0.5

    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    key_dim, value_dim, channels = config.linear_key_head_dim, config.linear_value_head_dim, config.linear_conv_dim
    match operation:
        case "attention":
            q = normal(1, tokens, config.num_attention_heads, config.head_dim)
            k, v = (normal(1, tokens, config.num_key_value_heads, config.head_dim) for _ in range(2))
            return {"q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens}
        case "delta_rule":
            return {
                "q": normal(1, tokens, keys, key_dim),
                "k": normal(1, tokens, keys, key_dim),
                "v": normal(1, tokens, values, value_dim),
                "g": -0.05 * normal(1, tokens, values).exp(),
                "beta": normal(1, tokens, values).sigmoid(),
                "initial_state": normal(len(lengths), values, key_dim, value_dim),
                "cu_seqlens": cu_seqlens,
            }
        case "short_conv":
            taps = config.linear_conv_kernel_dim
            state = normal(len(lengths), taps - 1, channels)
            x, weight = normal(1, tokens, channels), normal(channels, taps)
            return {"x": x, "weight": weight, "initial_state": state, "cu_seqlens": cu_seqlens}
        case "gated_rms_norm":
            shape = (1, tokens, values, value_dim)
            return {"x": normal(*shape), "gate": normal(*shape), "weight": normal(value_dim), "eps": 1e-6}
        case "rms_norm":
            return {"x": normal(1, tokens, hidden), "weight": normal(hidden), "eps": 1e-6}
        case "grouped_mlp":
            experts, width = config.num_experts, config.moe_intermediate_size
            scores = torch.rand(tokens, experts, generator=generator)
            scores[:, 0] = -1  # one expert idle
            weights, ids = scores.topk(config.num_experts_per_tok)
            return {
                "x": normal(tokens, hidden),
                "expert_ids": ids.to(device),
                "weights": weights.double().to(device),
                "gate_up_proj": scaled(experts, 2 * width, hidden),
                "down_proj": scaled(experts, hidden, width),
            }
        case "linear_cross_entropy":
            labels = torch.randint(config.vocab_size, (tokens,), generator=generator)
            labels[::7] = -100
            return {
                "hidden": normal(tokens, hidden),
                "weight": scaled(config.vocab_size, hidden),
                "labels": labels.to(device),
            }
    raise ValueError(operation)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Floating-point inputs in `dtype`; gates, rates and states, which the model keeps in float32, no narrower."""
    wide = torch.promote_types(dtype, torch.float32)
    return {
        name: x.to(wide if name in ("g", "beta") or (name == "initial_state" and x.ndim == 4) else dtype)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for name, x in inputs.items()
    }


def caller(operation: str, inputs: Inputs) -> Callable[[], dict[str, Tensor]]:
    """A call forward and backward: outputs by number and gradients by name, for fixed gradients of the outputs."""
    leaves = {
        name: x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    wanted = {name: x for name, x in leaves.items() if isinstance(x, Tensor) and x.requires_grad}
    grads: list[Tensor] = []  # made once: a timing must not include it

    def call() -> dict[str, Tensor]:
        outputs = getattr(ops, operation)(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if not grads:
            generator = torch.Generator().manual_seed(1)
            grads.extend(torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs)
        found = torch.autograd.grad(outputs, list(wanted.values()), grads)
        result = {f"output {number}": out.detach() for number, out in enumerate(outputs)}
        return result | {f"gradient of {name}": grad for name, grad in zip(wanted, found, strict=True)}

    return call


def errors(config: ModelConfig, device: torch.device) -> list[dict[str, Any]]:
    """Each operation's every implementation that can run here, in bfloat16 and float32, against float64."""
    rows = []
    for name, operation in ops.OPERATIONS.items():
        for dtype in ALLOWED:
            inputs = cast(inputs_of(name, config, DOCUMENTS, device), dtype)
            with ops.forced(**{name: "reference"}):
                expected = caller(name, cast(inputs, torch.float64))()
            for one in operation.implementations:
                if one.name == "reference":
                    continue
                row = {"operation": name, "implementation": one.name, "dtype": str(dtype).removeprefix("torch.")}
                rows.append(row | _compare(name, one.name, inputs, expected, ALLOWED[dtype], one.obstacle(device)))
    return rows


def _compare(
    operation: str, implementation: str, inputs: Inputs, expected: dict[str, Tensor], allowed: float, obstacle: str
) -> dict[str, Any]:
    if obstacle:
        return {"obstacle": obstacle}
    try:
        with ops.forced(**{operation: implementation}):
            actual = caller(operation, inputs)()
    except Exception as error:  # a kernel that does not compile here must not keep the others from their turn
        return {"failure": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]}
    found = {
        name: float((actual[name].double() - want).abs().max() / want.abs().max().clamp(min=1.0))
        for name, want in expected.items()
    }
    worst = max(found, key=lambda name: found[name] if found[name] == found[name] else float("inf"))
    return {"error": found[worst], "where": worst, "right": found[worst] <= allowed}


def timings(config: ModelConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> list[Inputs]:
    """Seconds of each operation's every implementation, forward and backward, at a training step's shapes."""
    found = []
    for name, operation in ops.OPERATIONS.items():
        inputs = cast(inputs_of(name, config, [length] * rows, device), dtype)
        inputs.pop("initial_state", None)  # training has none
        for one in operation.implementations:
            if one.name == "reference" or one.obstacle(device):
                continue
            row = {"operation": name, "implementation": one.name, "chosen": operation.choose(device).name == one.name}
            try:
                with ops.forced(**{name: one.name}):
                    found.append(row | {"seconds": seconds_of(caller(name, inputs))})
            except Exception as error:
                found.append(row | {"failure": f"{type(error).__name__}: {error}"[:120]})
    return found


def steps(config: ModelConfig, rows: int, length: int, recompute: bool, turns: int, peak: float) -> Inputs:
    """Training steps: tokens a second, MFU and peak memory of each subject."""
    subjects: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
        ("gossamer", gossamer_step, (config, rows, length, False, recompute)),
        ("gossamer, PyTorch alone", gossamer_step, (config, rows, length, True, recompute)),
        *[
            (f"transformers {experts}", qwen3_next_step, (config, experts, rows, length, False, recompute))
            for experts in EXPERTS
        ],
    ]
    flops, found = config.counts(length).training_flops, {}
    for name, build, arguments in subjects:
        subject = Subject(name, build, *arguments)
        take_turns([subject], turns, warm_up=3)
        if subject.failure:
            found[name] = {"failure": subject.failure}
            continue
        rate = rows * length / subject.median
        memory = subject.peak_bytes
        found[name] = {"seconds": subject.median, "tokens_per_second": rate, "mfu": rate * flops / peak, "peak": memory}
    return found


def report_errors(found: list[dict[str, Any]]) -> str:
    rows = []
    for row in found:
        verdict = row.get("obstacle") or row.get("failure") or ("right" if row["right"] else "WRONG")
        error = f"{row['error']:.0e}" if "error" in row else ""
        rows.append((f"{row['operation']} {row['implementation']}", row["dtype"], error, row.get("where", ""), verdict))
    return table(("operation", "type", "error", "where", ""), rows)


def report_timings(found: list[dict[str, Any]]) -> str:
    rows = [
        (
            f"{row['operation']} {row['implementation']}",
            f"{1000 * row['seconds']:.2f}" if "seconds" in row else row["failure"],
            "chosen" if row["chosen"] else "",
        )
        for row in found
    ]
    return table(("operation", "ms", ""), rows)


def report_steps(found: Inputs) -> str:
    rows = [
        (name, row["failure"], "", "", "")
        if "failure" in row
        else (
            name,
            f"{1000 * row['seconds']:.0f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['mfu']:.1%}",
            f"{row['peak'] / 2**30:.1f}",
        )
        for name, row in found.items()
    ]
    return table(("", "ms a step", "tokens/s", "MFU", "peak GiB"), rows)


def machine(device: torch.device, dtype: torch.dtype) -> Inputs:
    """The GPU, what runs on it, and its own rates."""
    libraries = {}
    for package in ("torch", "triton", "flash-linear-attention", "transformers"):
        try:
            libraries[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            libraries[package] = "not installed"
    rates = {"gemm_flops": gemm_rate(dtype, 8192), "copy_bytes": copy_rate(1024)}
    return {"device": devices.device_name(device), "dtype": str(dtype).removeprefix("torch."), **libraries, **rates}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="*", choices=list(LENGTHS), default=["mini", "small"], help="networks")
    parser.add_argument("--rows", type=int, default=4, help="rows a step")
    parser.add_argument("--length", type=int, help="tokens a row, unless the recipe's own")
    parser.add_argument("--recompute", action="store_true", help="compute blocks again in the backward pass")
    parser.add_argument("--turns", type=int, default=10, help="steps of each subject that are counted")
    parser.add_argument("--only", nargs="*", choices=["errors", "operations", "steps"], help="not all three tables")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    arguments = parser.parse_args()
    device = devices.default_device()
    if not devices.is_accelerator(device):
        print("bench-gpu: PyTorch sees no GPU here; these figures need one", file=sys.stderr)
        return 2
    wanted = arguments.only or ["errors", "operations", "steps"]
    dtype = devices.compute_dtype(device, "auto")
    record: Inputs = {"machine": machine(device, dtype), "sizes": {}}
    print("\n".join(f"{key}: {value}" for key, value in record["machine"].items()), flush=True)
    for size in arguments.size:
        config, length = model_config(size, {}), arguments.length or LENGTHS[size]
        found: Inputs = {"rows": arguments.rows, "length": length, "recompute": arguments.recompute}
        record["sizes"][size] = found
        print(f"\n## {size}, {arguments.rows} rows of {length} tokens", flush=True)
        if "errors" in wanted:
            found["errors"] = errors(config, device)
            print(f"\n### Errors against float64\n\n{report_errors(found['errors'])}", flush=True)
        if "operations" in wanted:
            found["operations"] = timings(config, arguments.rows, length, device, dtype)
            print(f"\n### Operations, forward and backward\n\n{report_timings(found['operations'])}", flush=True)
            torch.accelerator.empty_cache()
        if "steps" in wanted:
            peak = record["machine"]["gemm_flops"]
            found["steps"] = steps(config, arguments.rows, length, arguments.recompute, arguments.turns, peak)
            print(f"\n### Training steps\n\n{report_steps(found['steps'])}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1))
    checked = [row for found in record["sizes"].values() for row in found.get("errors", ())]
    return int(any("failure" in row or not row.get("right", True) for row in checked))


if __name__ == "__main__":
    sys.exit(main())
