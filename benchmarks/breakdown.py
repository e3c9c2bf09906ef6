"""Where do the milliseconds of a training step go?

    python benchmarks/breakdown.py [--size micro] [--rows 4] [--length 512] [--steps 5] [--json FILE]

The time is torch.profiler's own time of every operation in a step on a CPU, without the operations that it calls,
grouped by the part of the network or of the step that it belongs to. Each part's FLOPs (gossamer.cost.network) over
that time are compared with the rate of a large matrix product, which is measured before and after.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import environment  # noqa: F401 (before PyTorch)
import torch
from measure import describe, machine, table
from peers import gossamer_step, model_config

from gossamer import device as devices
from gossamer.certify.timing import seconds_of_one
from gossamer.cost.layer import delta_rule_backward_flops, delta_rule_flops
from gossamer.cost.network import count_network
from gossamer.model.config import ModelConfig

# What an event belongs to, by the beginning of its name or of that of an event around it.
PARTS = (
    ("experts", ("_NativeGroupedMLP", "_SortedMLP", "_GroupedMM")),
    ("delta rule", ("_NativeDeltaRule", "_DeltaRule", "_Chunked")),
    ("convolution", ("_NativeShortConv", "_ShortConv", "_ShiftedConv")),
    ("attention", ("_NativeAttention", "aten::_scaled_dot_product", "aten::scaled_dot_product")),
    ("norms", ("_NativeRMSNorm", "_NativeGatedRMSNorm", "_GatedRMSNorm", "aten::_fused_rms_norm")),
    ("loss", ("_LinearCrossEntropy",)),
    ("optimizer", ("Optimizer.", "aten::_fused_adamw")),
    ("clipping", ("aten::_foreach", "aten::linalg_vector_norm")),
    ("dense products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul")),
    ("joining and copying", ("aten::cat", "aten::copy_", "aten::index", "aten::fill_", "aten::embedding")),
)
REST = "rest"
ANYWHERE = (REST, "dense products", "joining and copying")  # parts that occur inside the others, too


class Event(Protocol):
    """The fields that are read of an event of torch.profiler."""

    name: str
    self_cpu_time_total: float  # microseconds
    cpu_parent: Event | None


def part_of(event: Event) -> str:
    """Return the part that an event belongs to: a product or a copy inside an operation or the optimizer is theirs."""
    found, around = REST, event
    while around is not None:
        part = next((part for part, beginnings in PARTS if around.name.startswith(beginnings)), REST)
        if found == REST or part not in ANYWHERE:
            found = part
        around = around.cpu_parent
    return found


def group(events: Iterable[Event], steps: int) -> dict[str, float]:
    """Return the seconds of a step that each part takes."""
    found = dict.fromkeys([*(part for part, _ in PARTS), REST], 0.0)
    for event in events:
        found[part_of(event)] += event.self_cpu_time_total / 1e6 / steps
    return found


def flops(config: ModelConfig, rows: int, length: int) -> dict[str, float]:
    """Return the training FLOPs of a step by part that is made of products; their sum is that of `count_network`."""
    counts = count_network(config, length)
    linear, full = config.mixers.count("linear_attention"), config.mixers.count("full_attention")
    sizes = (
        config.linear_num_key_heads,
        config.linear_num_value_heads,
        config.linear_key_head_dim,
        config.linear_value_head_dim,
    )
    found = {
        "experts": sum(part.training_flops for part in counts.parts if part.name.endswith(".experts")),
        "delta rule": linear * (delta_rule_flops(*sizes) + delta_rule_backward_flops(*sizes)),
        "convolution": linear * 3 * 2.0 * config.linear_conv_dim * config.linear_conv_kernel_dim,
        "attention": full * 3 * 2.0 * config.num_attention_heads * config.head_dim * (length + 1),
        "loss": sum(part.training_flops for part in counts.parts if part.kind == "head"),
    }
    found["dense products"] = counts.training_flops - sum(found.values())
    return {part: rows * length * value for part, value in found.items()}


def measure(size: str, rows: int, length: int, steps: int) -> dict[str, Any]:
    """Return the record: seconds, FLOPs and share of the GEMM rate of each part of a step."""
    config = model_config(size, {})
    step, before = gossamer_step(config, rows, length), machine()
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        took = sum(seconds_of_one(step, devices.default_device()) for _ in range(steps)) / steps
    found = before | {"gemm_gflops": (before["gemm_gflops"] + machine()["gemm_gflops"]) / 2}
    seconds, work = group(profiler.events(), steps), flops(config, rows, length)
    parts = {
        part: {"seconds": spent, "flops": work.get(part, 0.0)}
        for part, spent in sorted(seconds.items(), key=lambda item: -item[1])
    }
    return {"size": size, "rows": rows, "length": length, "machine": found, "seconds": took, "parts": parts}


def report(record: dict[str, Any]) -> str:
    """Print a record."""
    gemm, whole = record["machine"]["gemm_gflops"] * 1e9, sum(part["seconds"] for part in record["parts"].values())

    def row(name: str, seconds: float, work: float) -> tuple[str, ...]:
        speed = (f"{work / 1e9:.1f}", f"{work / seconds / 1e9:.0f}", f"{work / seconds / gemm:.0%}")
        return (name, f"{1000 * seconds:.1f}", f"{seconds / whole:.1%}", *(speed if work else ("–", "–", "–")))

    rows = [row(name, part["seconds"], part["flops"]) for name, part in record["parts"].items() if part["seconds"]]
    rows.append(row("a step", whole, sum(part["flops"] for part in record["parts"].values())))
    title = f"### {record['size']}, a step of {record['rows']} × {record['length']} tokens"
    columns = ("", "ms", "of the step", "GFLOP", "GFLOP/s", "of GEMM rate")
    return f"{title}\n\n{describe(record['machine'])}\n\n{table(columns, rows)}"


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="micro", help="recipe of the network")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=5, help="steps to profile")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    arguments = parser.parse_args()
    if devices.is_accelerator(devices.default_device()):
        print("breakdown.py: runs on CPUs alone; on a GPU use gossamer train --profile", file=sys.stderr)
        return 2
    record = measure(arguments.size, arguments.rows, arguments.length, arguments.steps)
    print(report(record))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
