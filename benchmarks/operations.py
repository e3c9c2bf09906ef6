"""How fast is each operation, by each of its implementations, beside what the machine could do?

    python benchmarks/operations.py [--size micro] [--rows 4] [--length 512] [--only delta_rule …] [--short]

Every implementation that can run here is timed, forward and with its backward pass, in this process and in turns (A B C
A B C …); medians count. FLOPs are those of the products (gossamer.cost.network): a backward pass is two forward passes,
but the delta rule is counted as it is computed. Bytes are those that must move: each input, output and gradient once.
The roofline is the larger of FLOPs over the rate of a large matrix product and bytes over the rate of a large copy,
both measured before and after each operation; what stays in the processor's caches between calls can exceed it. An
implementation that takes longer than a second is left out after its first calls. --json FILE writes the record.

The delta rule is timed with the gates of a trained network and with those of a fresh one, whose products are subnormal
floats where nothing is done about it: some processors take forty times as long for these.

Then the delta rule is timed beside transformers' own fall-back in PyTorch, with gradients, at two shapes and with both
kinds of gates.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before PyTorch)
import torch
from measure import describe, gemm_rate, machine, table
from peers import model_config
from torch import Tensor

from gossamer import device as devices
from gossamer import ops
from gossamer.certify.inputs import Gates, cast, inputs_of, moved
from gossamer.certify.timing import (
    FRESH,
    Call,
    Rates,
    copy_rate,
    in_turns,
    operation_of,
    time_operations,
    training_inputs,
)
from gossamer.model.config import ModelConfig

GEMM_SIZE, COPY_MEGABYTES = 2048, 256
PEER_SHAPES = ((4, 512), (1, 8192))  # rows, tokens


def measured_rates(dtype: torch.dtype) -> Rates:
    """Return the rates of this moment: a machine that others use too does not hold them for a minute."""
    return Rates(gemm_rate(dtype, GEMM_SIZE), copy_rate(devices.default_device(), COPY_MEGABYTES))


def delta_rule_peer(config: ModelConfig, rows: int, length: int, gates: Gates, seconds: float) -> dict[str, Any]:
    """Return the seconds of the delta rule's output and gradients here and in transformers.

    The gradients are those of q, k, v, g and β for one of the output; the final state gets none.
    """
    device = devices.default_device()
    packed = moved(cast(inputs_of("delta_rule", config, [length] * rows, gates), torch.float32), device)
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
    medians = in_turns(calls, device, seconds)
    ratio = medians["transformers"] / medians["gossamer"]
    return {"rows": rows, "length": length, "gates": gates, "seconds": medians, "ratio": ratio}


def their_delta_rule(config: ModelConfig) -> Callable[..., Any]:
    """Return transformers' fall-back in PyTorch, called as its network does: key heads are repeated."""
    warnings.filterwarnings("ignore")
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    repeats = config.linear_num_value_heads // config.linear_num_key_heads

    def function(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Any:
        q, k = (x.repeat_interleave(repeats, dim=2) for x in (q, k))
        return torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)

    return function


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Return what is compared between runs."""
    return {
        f"delta rule{FRESH if row['gates'] == 'fresh' else ''} over transformers, {row['rows']} × {row['length']}": row[
            "ratio"
        ]
        for row in record["delta_rule_peer"]
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Print the table of operations."""
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
    """Print the table of the delta rule beside transformers'."""
    cells = [
        (
            f"{row['rows']} × {row['length']}, {row['gates']}",
            *[f"{1000 * row['seconds'][name]:.1f}" for name in ("gossamer", "transformers")],
            f"{row['ratio']:.2f}",
        )
        for row in rows
    ]
    return table(("rows × tokens, gates", "gossamer, ms", "transformers, ms", "× transformers"), cells)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="micro", help="recipe that the widths and heads come from")
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
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
    inputs = {name: given for name, given in inputs.items() if operation_of(name) in arguments.only}
    rows = time_operations(config, inputs, arguments.length, lambda: measured_rates(dtype), seconds)
    print(f"{report(rows)}\n", flush=True)
    record = {"size": arguments.size, "rows": arguments.rows, "length": arguments.length, "machine": found}
    peers: list[dict[str, Any]] = []
    if "delta_rule" in arguments.only:
        both: tuple[Gates, ...] = ("trained", "fresh")
        peers = [delta_rule_peer(config, *shape, gates, 2 * seconds) for shape in PEER_SHAPES for gates in both]
        print(f"delta rule with gradients, beside transformers' fall-back\n\n{report_peer(peers)}\n", flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record | {"operations": rows, "delta_rule_peer": peers}, indent=1))


if __name__ == "__main__":
    main()
