"""What else was tried to make a training step faster or smaller? Each attempt runs beside the step as it is.

    python benchmarks/attempts.py [--goal speed-512-experts …] [--turns 5] [--json FILE]

Every attempt is a way to take the same step that can be chosen here (peers.Variant), in a process of its own. The
processes take turns, beside the fastest implementation of transformers. docs/lab/performance.md says what came of them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Subject, describe, machine, table, time_in_turns
from peers import AS_CHOSEN, Variant, gossamer_step, model_config, qwen3_next_step
from train_step import SIZES

PEER = "transformers grouped_mm"


@dataclass(frozen=True)
class Goal:
    """A goal that is not met, and what was tried for it.

    Attributes:
        size: one of the sizes of train_step
        attempts: the attempts by name
    """

    size: str
    attempts: dict[str, Variant]


GOALS = {
    "speed-micro": Goal(
        "micro",
        {
            "as chosen": AS_CHOSEN,
            "experts one by one through the BLAS": Variant(operations={"grouped_mlp": "sorted"}),
            "attention through PyTorch": Variant(operations={"attention": "sdpa"}),
            "delta rule through PyTorch, all chunks at once": Variant(operations={"delta_rule": "chunked"}),
            "one thread": Variant(threads=1),
        },
    ),
    "speed-512-experts": Goal(
        "micro-512-experts",
        {
            "as chosen": AS_CHOSEN,
            "experts one by one through the BLAS": Variant(operations={"grouped_mlp": "sorted"}),
            "experts through PyTorch's grouped products": Variant(operations={"grouped_mlp": "grouped_mm"}),
            "freed memory goes back to the system": Variant(fresh_memory=True),
        },
    ),
    "speed-nano": Goal(
        "nano",
        {
            "as chosen": AS_CHOSEN,
            "PyTorch alone": Variant(pytorch_alone=True),
            "one thread": Variant(threads=1),
            "PyTorch alone, torch.compile": Variant(pytorch_alone=True, compiled=True),
        },
    ),
    "memory-micro": Goal(
        "micro",
        {
            "as chosen": AS_CHOSEN,
            "recomputation": Variant(recompute=True),
            "freed memory goes back to the system": Variant(fresh_memory=True),
            "both": Variant(recompute=True, fresh_memory=True),
            "every tensor of a MiB in a mapping of its own": Variant(fresh_memory=True, mapped_from=1 << 20),
        },
    ),
}


def measure(goal: Goal, turns: int) -> dict[str, Any]:
    """Return seconds per step and peak memory of each attempt and of the peer."""
    size = SIZES[goal.size]
    config, found = model_config(size.recipe, size.changes), machine()
    subjects = [
        Subject(name, gossamer_step, config, size.rows, size.length, variant) for name, variant in goal.attempts.items()
    ]
    subjects.append(Subject(PEER, qwen3_next_step, config, "grouped_mm", size.rows, size.length, peer=True))
    time_in_turns(subjects, turns, warm_up=2)
    results = {
        one.name: {"failure": one.failure} if one.failure else {"seconds": one.median, "peak_bytes": one.peak_bytes}
        for one in subjects
    }
    return {"size": goal.size, "tokens": size.rows * size.length, "machine": found, "results": results}


def report(name: str, record: dict[str, Any]) -> str:
    """Print a goal's record."""
    peer, rows = record["results"][PEER], []
    for attempt, row in record["results"].items():
        if "failure" in row:
            rows.append((attempt, row["failure"], "", "", ""))
            continue
        cells = [f"{1000 * row['seconds']:.0f}", f"{row['peak_bytes'] / 2**20:.0f}"]
        if "failure" not in peer:
            cells += [f"{peer['seconds'] / row['seconds']:.2f}", f"{row['peak_bytes'] / peer['peak_bytes']:.2f}"]
        rows.append((attempt, *cells))
    columns = ("", "ms per step", "peak MiB", "× transformers' speed", "of its memory")
    title = f"### {name}: {record['size']}, steps of {record['tokens']} tokens\n\n{describe(record['machine'])}\n"
    return f"{title}\n{table(columns, rows)}\n"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--goal", nargs="*", choices=list(GOALS), default=list(GOALS), help="what the attempts were for"
    )
    parser.add_argument("--turns", type=int, default=5, help="steps of each attempt that are counted")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    arguments = parser.parse_args()
    records = {}
    for name in arguments.goal:
        records[name] = measure(GOALS[name], arguments.turns)
        print(report(name, records[name]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
