"""How fast is each operation, by each of its implementations, beside what the machine could do?

    python benchmarks/operations.py [--size micro] [--rows 4] [--length 512] [--only delta_rule …] [--short]

Every implementation that can run here, forward and with its backward pass, in this process and in turns (A B C A B C
…); medians. FLOPs are those of the products (gossamer.model.counts; a backward pass is two forward passes but for the
delta rule, which is counted as it is computed), bytes those that must move: each input, output and gradient once. The
roofline is the larger of FLOPs over the rate of a large matrix product and bytes over the rate of a large copy, both
measured before and after each operation; what stays in the processor's caches between calls can exceed it. An
implementation that takes longer than a second is left out after its first calls. --json FILE writes the record.

Then the delta rule beside transformers' own fall-back in PyTorch, with gradients, at two shapes.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before PyTorch)
import torch
from inputs import Inputs, caller, cast, forward_caller, inputs_of, moved, training_inputs
from measure import Call, copy_rate, describe, gemm_rate, in_turns, machine, seconds_of_one, table
from peers import model_config
from torch import Tensor

from gossamer import device as devices
from gossamer import ops
from gossamer.model.config import ModelConfig
from gossamer.model.counts import delta_rule_backward_flops, delta_rule_flops
from gossamer.ops.linear_cross_entropy import IGNORED

GEMM_SIZE, COPY_MEGABYTES = 2048, 256
TOO_LONG = 1.0  # seconds of a call
PEER_SHAPES = ((4, 512), (1, 8192))  # rows, tokens
FORWARD, BOTH = "forward", "forward and backward"


@dataclass(frozen=True)
class Rates:
    """What the machine can do: FLOP/s of a large product, bytes/s of a large copy."""

    gemm: float
    copy: float

    def mean(self, other: Rates) -> Rates:
        return Rates((self.gemm + other.gemm) / 2, (self.copy + other.copy) / 2)


def measured_rates(dtype: torch.dtype) -> Rates:
    """The rates of this moment: a machine that others use, too, does not keep them for a minute."""
    return Rates(gemm_rate(dtype, GEMM_SIZE), copy_rate(devices.default_device(), COPY_MEGABYTES))


def flops_of(operation: str, config: ModelConfig, inputs: Inputs, length: int) -> tuple[float, float]:
    """FLOPs forward and backward, of rows of `length` tokens."""
    match operation:
        case "attention":
            tokens, heads, width = inputs["q"].shape[1:]
            forward = 4.0 * heads * width * tokens * (length + 1) / 2
        case "delta_rule":
            tokens, key_heads, key_dim = inputs["q"].shape[1:]
            sizes = key_heads, inputs["v"].shape[2], key_dim, inputs["v"].shape[3]
            return tokens * delta_rule_flops(*sizes), tokens * delta_rule_backward_flops(*sizes)
        case "short_conv":
            forward = 2.0 * inputs["x"].numel() * inputs["weight"].shape[1]
        case "grouped_mlp":
            _, hidden, width = inputs["down_proj"].shape
            forward = 6.0 * hidden * width * inputs["expert_ids"].numel()
        case "linear_cross_entropy":
            forward = 2.0 * inputs["weight"].numel() * int((inputs["labels"] != IGNORED).sum())
        case _:
            forward = 0.0
    return forward, 2 * forward


def bytes_of(inputs: Inputs, outputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """Bytes that must move forward and backward: inputs read, outputs written; the same with their gradients added."""
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    read, written = sum(x.nbytes for x in tensors), sum(x.nbytes for x in outputs)
    gradients = sum(x.nbytes for x in tensors if x.is_floating_point())
    return read + written, read + written + gradients


def roofline(flops: float, moved: float, rates: Rates) -> float:
    """Seconds that the work takes at least, at the machine's measured rates."""
    return max(flops / rates.gemm, moved / rates.copy)


def time_operations(
    config: ModelConfig,
    inputs: Mapping[str, Inputs],
    length: int,
    rates: Callable[[], Rates],
    seconds: float = 1.0,
) -> list[dict[str, Any]]:
    """A row for each operation, implementation and direction: seconds, FLOPs, bytes and share of the roofline.

    Args:
        inputs: for each operation
        length: tokens a row
        rates: measures the machine, before and after each operation
        seconds: given to an operation
    """
    rows, before = list[dict[str, Any]](), rates()
    for name, given in inputs.items():
        found = _time_operation(name, given, flops_of(name, config, given, length), seconds)
        after = rates()
        beside, before = before.mean(after), after
        for row in found:
            if "seconds" in row:
                least = roofline(row["flops"], row["bytes"], beside)
                row |= {"gemm_gflops": beside.gemm / 1e9, "copy_gbytes": beside.copy / 1e9}
                row["roofline_share"] = least / row["seconds"]
        rows += found
    return rows


def _time_operation(name: str, inputs: Inputs, flops: tuple[float, float], seconds: float) -> list[dict[str, Any]]:
    operation, rows, calls = ops.OPERATIONS[name], list[dict[str, Any]](), dict[str, Call]()
    device = next(value.device for value in inputs.values() if isinstance(value, Tensor) and value.is_floating_point())
    chosen = operation.choose(device).name
    moved: tuple[int, int] | None = None
    for one in operation.implementations:
        if one.obstacle(device):
            continue
        call = forward_caller(name, inputs)
        works: tuple[tuple[str, Call], ...] = ((FORWARD, call), (BOTH, caller(name, inputs)))
        for place, (direction, work) in enumerate(works):
            row = {"operation": name, "implementation": one.name, "direction": direction, "chosen": one.name == chosen}
            rows.append(row)
            timed = _forcing(name, one.name, work)
            try:
                first = seconds_of_one(timed, device)
                # The first call may build or allocate something.
                first = seconds_of_one(timed, device) if first <= 10 * TOO_LONG else first
            except Exception as error:  # a kernel that fails here must not keep the others from their turn
                row["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]
                break
            if first > TOO_LONG:
                row["left_out"] = f"left out: {first:.1f} s a call"
                break
            calls[f"{one.name} {direction}"] = timed
            if moved is None:
                with torch.no_grad():
                    forward, backward = bytes_of(inputs, call())
                moved = forward, forward + backward
            row["flops"], row["bytes"] = flops[0] + place * flops[1], moved[place]
    medians = in_turns(calls, seconds)
    for row in rows:
        took = medians.get(f"{row['implementation']} {row['direction']}")
        if took is not None:
            row["seconds"] = took
    return rows


def _forcing(operation: str, implementation: str, call: Call) -> Call:
    def forced() -> object:
        with ops.forced(**{operation: implementation}):
            return call()

    return forced


def delta_rule_peer(config: ModelConfig, rows: int, length: int, seconds: float) -> dict[str, Any]:
    """Seconds of the delta rule's output and gradients: the implementation that runs here, and transformers' own.

    The gradients are those of q, k, v, g and β for one of the output; the final state is nobody's.
    """
    device = devices.default_device()
    packed = moved(cast(inputs_of("delta_rule", config, [length] * rows), torch.float32), device)
    leaves = [
        packed[name].unflatten(1, (rows, length)).squeeze(0).requires_grad_() for name in ("q", "k", "v", "g", "beta")
    ]
    gradient = torch.randn(leaves[2].shape, generator=torch.Generator().manual_seed(1)).to(device)

    def work(function: Callable[..., tuple[Tensor, Tensor]]) -> Call:
        def call() -> object:
            return torch.autograd.grad(function(*leaves)[0], leaves, gradient)

        return call

    calls = {"gossamer": work(ops.delta_rule), "transformers": work(their_delta_rule(config))}
    for call in calls.values():
        call()
    medians = in_turns(calls, seconds)
    return {"rows": rows, "length": length, "seconds": medians, "ratio": medians["transformers"] / medians["gossamer"]}


def their_delta_rule(config: ModelConfig) -> Callable[..., Any]:
    """transformers' fall-back in PyTorch, called as its network does: keys of a key head repeated for its values."""
    warnings.filterwarnings("ignore")
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    repeats = config.linear_num_value_heads // config.linear_num_key_heads

    def function(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Any:
        q, k = (x.repeat_interleave(repeats, dim=2) for x in (q, k))
        return torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)

    return function


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """What is compared between runs."""
    return {
        f"delta rule over transformers, {row['rows']} × {row['length']}": row["ratio"]
        for row in record["delta_rule_peer"]
    }


def report(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        name = f"{row['operation']} {row['implementation']}{' *' if row['chosen'] else ''}"
        if "seconds" not in row:
            cells.append((name, row["direction"], row.get("failure") or row["left_out"], "", "", ""))
            continue
        took = row["seconds"]
        cells.append(
            (
                name,
                row["direction"],
                f"{1000 * took:.2f}",
                f"{row['flops'] / took / 1e9:.1f}" if row["flops"] else "–",
                f"{row['bytes'] / took / 1e9:.1f}",
                f"{row['roofline_share']:.0%}",
            )
        )
    columns = ("operation (* runs here)", "", "ms", "GFLOP/s", "GB/s", "of roofline")
    return table(columns, cells)


def report_peer(rows: list[dict[str, Any]]) -> str:
    cells = [
        (
            f"{row['rows']} × {row['length']}",
            *[f"{1000 * row['seconds'][name]:.1f}" for name in ("gossamer", "transformers")],
            f"{row['ratio']:.2f}",
        )
        for row in rows
    ]
    return table(("rows × tokens", "gossamer, ms", "transformers, ms", "× transformers"), cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="micro", help="recipe that the widths and heads come from")
    parser.add_argument("--rows", type=int, default=4, help="rows")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    names = list(ops.training_operations())
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--short", action="store_true", help="half a second for an operation instead of three")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    arguments = parser.parse_args()
    device, config = devices.default_device(), model_config(arguments.size, {})
    devices.keep_freed_memory()
    dtype, seconds = devices.compute_dtype(device, "auto"), 0.5 if arguments.short else 3.0
    found = machine()
    print(f"### {arguments.size}, {arguments.rows} × {arguments.length} tokens\n\n{describe(found)}\n", flush=True)
    inputs = training_inputs(config, arguments.rows, arguments.length, device, dtype)
    inputs = {name: given for name, given in inputs.items() if name in arguments.only}
    rows = time_operations(config, inputs, arguments.length, lambda: measured_rates(dtype), seconds)
    print(f"{report(rows)}\n", flush=True)
    record = {"size": arguments.size, "rows": arguments.rows, "length": arguments.length, "machine": found}
    peers: list[dict[str, Any]] = []
    if "delta_rule" in arguments.only:
        peers = [delta_rule_peer(config, *shape, 2 * seconds) for shape in PEER_SHAPES]
        print(f"delta rule with gradients, beside transformers' fall-back\n\n{report_peer(peers)}\n", flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record | {"operations": rows, "delta_rule_peer": peers}, indent=1))


if __name__ == "__main__":
    main()
