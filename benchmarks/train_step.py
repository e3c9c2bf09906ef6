"""How fast is a training step, and in how much memory, beside transformers' and beside dense networks?

    python benchmarks/train_step.py [--size micro …] [--turns 5] [--quick] [--json FILE]

A step is forward pass, backward pass, clipping and AdamW, on random tokens. Every subject has a process of its own;
they take turns, and medians are compared. The share is the model's own FLOPs (gossamer.cost.network) over the time,
against the rate of a large matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import LARGE_PRODUCTS_FLOPS, Subject, describe, large_products, machine, table, time_in_turns
from peers import (
    Variant,
    dense_config,
    dense_flops,
    dense_step,
    equal_active,
    gossamer_step,
    model_config,
    qwen3_next_step,
)

from gossamer.cost.network import count_network

EXPERTS = ("eager", "grouped_mm")


@dataclass(frozen=True)
class Size:
    """A network, and a batch to train it on."""

    recipe: str
    rows: int
    length: int
    changes: dict[str, Any]
    left_out: tuple[str, ...] = ()  # transformers' implementations that take minutes per step


SIZES = {
    "micro": Size("micro", 4, 512, {}),
    "micro-512-experts": Size(
        "micro", 4, 512, {"num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 64}, ("eager",)
    ),
    "nano": Size("nano", 4, 64, {}),
}


def measure(name: str, turns: int, quick: bool) -> dict[str, Any]:
    """Return one size's record: seconds per step, tokens per second, share of the GEMM rate and peak memory."""
    size = SIZES[name]
    config, rows, length = model_config(size.recipe, size.changes), size.rows, size.length
    counts = count_network(config, length)
    products = Subject(
        "matrix products", large_products
    )  # the rate that a step is compared with, measured in turns, too
    subjects = [
        Subject("gossamer", gossamer_step, config, rows, length),
        Subject("gossamer, PyTorch alone", gossamer_step, config, rows, length, Variant(pytorch_alone=True)),
    ]
    flops = dict.fromkeys([subject.name for subject in subjects], counts.training_flops)
    for experts in EXPERTS:
        if experts in size.left_out:
            continue
        subjects.append(Subject(f"transformers {experts}", qwen3_next_step, config, experts, rows, length, peer=True))
        flops[subjects[-1].name] = counts.training_flops
    if not quick:
        name, compiled = "transformers grouped_mm, compiled", True
        subjects.append(Subject(name, qwen3_next_step, config, "grouped_mm", rows, length, compiled, peer=True))
        flops[subjects[-1].name] = counts.training_flops
        for kind, parameters in (("active", equal_active(config)), ("total", counts.parameters)):
            dense = dense_config(config, parameters)
            name = f"dense Qwen3, equal {kind} size"
            subjects.append(Subject(name, dense_step, config, parameters, rows, length, peer=True))
            flops[subjects[-1].name] = dense_flops(dense, length)
    time_in_turns([products, *subjects], turns, warm_up=2)
    found = machine() | {"gemm_gflops": LARGE_PRODUCTS_FLOPS / products.median / 1e9}
    results = {}
    for subject in subjects:
        if subject.failure:
            results[subject.name] = {"failure": subject.failure}
            continue
        rate = rows * length / subject.median
        results[subject.name] = {
            "seconds": subject.median,
            "fastest": min(subject.seconds),
            "slowest": max(subject.seconds),
            "tokens_per_second": rate,
            "gemm_share": rate * flops[subject.name] / (found["gemm_gflops"] * 1e9),
            "peak_bytes": subject.peak_bytes,
        }
    for experts in size.left_out:
        results[f"transformers {experts}"] = {"failure": "left out: takes minutes per step"}
    return {"size": name, "tokens": rows * length, "machine": found, "results": results}


def best_peer(record: dict[str, Any], key: str = "seconds") -> float:
    """Return the smallest value of a figure over transformers' implementations of the same network."""
    return min(row[key] for name, row in record["results"].items() if name.startswith("transformers") and key in row)


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Return what is compared between runs: gossamer against the best of its peer, and against the machine."""
    ours = record["results"]["gossamer"]
    return {
        "speed over transformers": best_peer(record) / ours["seconds"],
        "memory under transformers": best_peer(record, "peak_bytes") / ours["peak_bytes"],
        "share of the GEMM rate": ours["gemm_share"],
    }


def report(record: dict[str, Any]) -> str:
    """Print a record."""
    best = best_peer(record)
    rows = []
    for name, row in record["results"].items():
        if "failure" in row:
            rows.append((name, row["failure"], "", "", "", ""))
            continue
        rows.append(
            (
                name,
                f"{1000 * row['seconds']:.0f} ({1000 * row['fastest']:.0f}–{1000 * row['slowest']:.0f})",
                f"{row['tokens_per_second']:.0f}",
                f"{row['gemm_share']:.0%}",
                f"{row['peak_bytes'] / 2**20:.0f}",
                f"{best / row['seconds']:.2f}",
            )
        )
    columns = ("", "ms per step", "tokens/s", "of GEMM rate", "peak MiB", "× best transformers")
    title = f"### {record['size']}, steps of {record['tokens']} tokens\n\n{describe(record['machine'])}\n"
    return f"{title}\n{table(columns, rows)}\n"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="*", choices=list(SIZES), default=list(SIZES), help="networks to train")
    parser.add_argument("--turns", type=int, default=5, help="steps of each subject that are counted")
    parser.add_argument("--quick", action="store_true", help="without torch.compile and the dense networks")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    arguments = parser.parse_args()
    records = []
    for name in arguments.size:
        records.append(measure(name, arguments.turns, arguments.quick))
        print(report(records[-1]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
