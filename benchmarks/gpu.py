"""Is every operation right on this GPU, how fast is it, and how fast is a training step beside transformers?

    python benchmarks/gpu.py [--size mini small] [--rows 4] [--recompute] [--turns 10] [--only errors …] [--json FILE]

There are three tables for each size. Errors compare every implementation that can run here with the float64 reference,
gradients included, on packed documents with the size's own heads and widths: the largest difference over the largest
magnitude. Operations are timed at the size's own shapes (operations.py). Steps are forward pass, backward pass,
clipping and AdamW; each subject has a process of its own, one after the other, so that each has the GPU's memory to
itself. MFU is the model's own FLOPs (gossamer.cost.network) over the time, against the bfloat16 product of two large
matrices measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import operations
import torch
from measure import Subject, copy_rate, gemm_rate, installed, table, time_in_turns
from peers import Variant, gossamer_step, model_config, qwen3_next_step

from gossamer import device as devices
from gossamer import ops
from gossamer.certify.checks import Check, failed
from gossamer.certify.exactness import Inputs
from gossamer.certify.inputs import DOCUMENTS, Case, inputs_of
from gossamer.certify.operations import check_operation
from gossamer.certify.timing import Rates, time_operations, training_inputs
from gossamer.cost.network import count_network
from gossamer.model.config import ModelConfig

LENGTHS = {"nano": 256, "micro": 512, "mini": 2048, "small": 4096}  # tokens a row
EXPERTS = ("batched_mm", "grouped_mm")  # transformers' implementations; its eager one loops over experts
DTYPES = (torch.bfloat16, torch.float32)


def errors(config: ModelConfig, device: torch.device) -> list[Check]:
    """Return every implementation's error in bfloat16 and float32, measured as `gossamer certify` does."""
    found: list[Check] = []
    for name in ops.training_operations():
        case = Case("packed documents", partial(inputs_of, name, config, DOCUMENTS))
        found += check_operation(name, [case], DTYPES, device)
    return found


def steps(config: ModelConfig, rows: int, length: int, recompute: bool, turns: int, peak: float) -> Inputs:
    """Return tokens per second, MFU and peak memory of each subject's training steps."""
    subjects: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
        ("gossamer", gossamer_step, (config, rows, length, Variant(recompute=recompute))),
        (
            "gossamer, PyTorch alone",
            gossamer_step,
            (config, rows, length, Variant(pytorch_alone=True, recompute=recompute)),
        ),
        *[
            (f"transformers {experts}", qwen3_next_step, (config, experts, rows, length, False, recompute))
            for experts in EXPERTS
        ],
    ]
    flops, found = count_network(config, length).training_flops, {}
    for name, build, arguments in subjects:
        subject = Subject(name, build, *arguments, peer=build is qwen3_next_step)
        time_in_turns([subject], turns, warm_up=3)
        if subject.failure:
            found[name] = {"failure": subject.failure}
            continue
        rate = rows * length / subject.median
        memory = subject.peak_bytes
        found[name] = {"seconds": subject.median, "tokens_per_second": rate, "mfu": rate * flops / peak, "peak": memory}
    return found


def report_errors(found: list[Check]) -> str:
    """Print the table of errors."""
    rows = []
    for check in found:
        said = {"pass": "right", "fail": f"WRONG: {check.message}"}.get(check.status, check.message)
        rows.append((check.name, check.dtype, "" if check.error is None else f"{check.error:.0e}", said))
    return table(("operation", "type", "error", ""), rows)


def report_steps(found: Inputs) -> str:
    """Print the table of steps."""
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
    return table(("", "ms per step", "tokens/s", "MFU", "peak GiB"), rows)


def machine(device: torch.device, dtype: torch.dtype) -> Inputs:
    """Return the GPU, what runs on it, and its own rates."""
    packages = ("torch", "triton", "flash-linear-attention", "transformers")
    libraries = dict.fromkeys(packages, "not installed") | installed({name: name for name in packages})
    rates = {"gemm_flops": gemm_rate(dtype, 8192), "copy_bytes": copy_rate(device, 1024)}
    return {"device": devices.device_name(device), "dtype": str(dtype).removeprefix("torch."), **libraries, **rates}


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="*", choices=list(LENGTHS), default=["mini", "small"], help="networks")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step")
    parser.add_argument("--length", type=int, help="tokens of a row (default: the recipe's)")
    parser.add_argument("--recompute", action="store_true", help="compute blocks again in the backward pass")
    parser.add_argument("--turns", type=int, default=10, help="steps of each subject that are counted")
    parser.add_argument(
        "--only", nargs="*", choices=["errors", "operations", "steps"], help="tables to make (default: all three)"
    )
    parser.add_argument("--json", type=Path, help="write the record to this file")
    arguments = parser.parse_args()
    device = devices.default_device()
    if not devices.is_accelerator(device):
        print("bench-gpu: PyTorch sees no GPU here; these figures need one", file=sys.stderr)
        return 2
    wanted = arguments.only or ["errors", "operations", "steps"]
    dtype = devices.compute_dtype(device, "auto")
    record: Inputs = {"machine": machine(device, dtype), "sizes": {}}
    wrong = 0
    print("\n".join(f"{key}: {value}" for key, value in record["machine"].items()), flush=True)
    for size in arguments.size:
        config, length = model_config(size, {}), arguments.length or LENGTHS[size]
        found: Inputs = {"rows": arguments.rows, "length": length, "recompute": arguments.recompute}
        record["sizes"][size] = found
        print(f"\n## {size}, {arguments.rows} rows of {length} tokens", flush=True)
        if "errors" in wanted:
            checks = errors(config, device)
            found["errors"], wrong = [check.to_dict() for check in checks], wrong + len(failed(checks))
            print(f"\n### Errors against float64\n\n{report_errors(checks)}", flush=True)
        if "operations" in wanted:
            machine_rates = Rates(record["machine"]["gemm_flops"], record["machine"]["copy_bytes"])
            inputs = training_inputs(config, arguments.rows, length, device, dtype)
            found["operations"] = time_operations(config, inputs, length, lambda rates=machine_rates: rates)
            print(f"\n### Operations\n\n{operations.report(found['operations'])}", flush=True)
            torch.accelerator.empty_cache()
        if "steps" in wanted:
            peak = record["machine"]["gemm_flops"]
            found["steps"] = steps(config, arguments.rows, length, arguments.recompute, arguments.turns, peak)
            print(f"\n### Training steps\n\n{report_steps(found['steps'])}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
