"""What does each ingredient of the training do? A recipe is compared with the same recipe without one of them.

    python benchmarks/ablations.py --data PATH … [--recipe demo] [--steps 300] [--seeds 1] [--json]

Every variant trains on the same tokens in a process of its own, one after the other, from the same seeds, and is
measured on the same validation text: loss in nats per token, the rate at which greedy drafts would be accepted, the
median processor time of a step over all threads, which other programs on the machine hardly change, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "AdamW instead of Muon": {"optimizer.kind": "adamw", "optimizer.learning_rate": 3e-3},
    "cosine instead of warm-up–stable–decay": {"schedule.kind": "cosine"},
    "no multi-token prediction": {"training.mtp_steps": 0},
    "three steps of multi-token prediction": {"training.mtp_steps": 3},
    "multi-token prediction without gradient to the trunk": {"training.mtp_trunk_gradient": False},
    "no balancing": {"training.balance": "none"},
    "balancing by bias": {"training.balance": "bias"},
    "router z-loss of 1e-3": {"training.router_z_loss_weight": 1e-3},
    "best-fit packing": {"training.packing": "best_fit"},
    "recomputation": {"training.recompute": True},
}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", nargs="*", default=[], help="files and folders (default: the standard library's source)"
    )
    parser.add_argument("--recipe", default="demo", help="name or file")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of every variant")
    parser.add_argument("--seeds", type=int, default=1, help="runs of every variant, with seeds 0, 1, …")
    parser.add_argument("--eval-tokens", type=int, default=65_536, help="tokens of validation text to measure on")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="variants to run, by name")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one variant with its seed, in a process of its own
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(_train(arguments, json.loads(arguments.one))))
        return
    rows = {}
    for name in arguments.only:
        seeds = [_apart(VARIANTS[name] | {"training.seed": seed}) for seed in range(arguments.seeds)]
        rows[name] = {key: statistics.fmean(seed[key] for seed in seeds) for key in seeds[0] if key != "acceptance"}
        rows[name]["acceptance"] = seeds[0]["acceptance"]
        print(f"{name}: loss {rows[name]['loss']:.4f}", file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1) if arguments.json else _table(rows))


def _apart(changes: dict[str, Any]) -> dict[str, Any]:
    """Run one variant in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, *sys.argv, "--one", json.dumps(changes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _train(arguments: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Any]:
    from gossamer import device as devices
    from gossamer.data.dataset import prepare
    from gossamer.data.packing import TrainBatches, validation_batches
    from gossamer.model.causal_lm import CausalLM
    from gossamer.run.validate import evaluate
    from gossamer.train.recipe import load_recipe
    from gossamer.train.schedule import learning_rate_factor
    from gossamer.train.step import Learner

    devices.prepare_process()  # as the command does
    devices.keep_freed_memory()
    wanted = {"corpus.paths": tuple(arguments.data), "training.steps": arguments.steps} if arguments.data else {}
    recipe = load_recipe(arguments.recipe, wanted | {"training.steps": arguments.steps} | changes)
    dataset = prepare(recipe.corpus, progress=False)
    recipe = replace(recipe, model=replace(recipe.model, vocab_size=dataset.tokenizer.vocab_size))
    training = recipe.training
    device = devices.resolve(training.device)
    devices.seed_everything(training.seed)
    learner = Learner(CausalLM(recipe.model).to(device), recipe)
    rows, length = training.batch_size, training.sequence_length
    batches = TrainBatches(dataset.train, rows, length, training.seed, training.packing)
    times = []
    for step in range(training.steps):
        began = time.process_time()
        factor = learning_rate_factor(step + 1, step / training.steps, recipe.schedule)
        micro_batches = [next(batches) for _ in range(training.gradient_accumulation)]
        learner.step(micro_batches, recipe.optimizer.learning_rate * factor)
        times.append(time.process_time() - began)
    memory = devices.peak_memory(device)
    batches = validation_batches(next(iter(dataset.validation.values())), rows, length, arguments.eval_tokens)
    result = evaluate(learner.model, batches, dataset.tokenizer.num_bytes_per_token(), learner.mtp)
    return {
        "loss": result.loss,
        "bits_per_byte": result.bits_per_byte,
        "acceptance": list(result.mtp_acceptance),
        "cpu_milliseconds_a_step": 1000 * statistics.median(times),
        "memory_mib": memory / 2**20,
        "utilization": batches.utilization,
    }


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| variant | loss | bits per byte | drafts accepted | CPU ms per step | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        accepted = ", ".join(f"{rate:.0%}" for rate in row["acceptance"]) or "–"
        lines.append(
            f"| {name} | {row['loss']:.4f} | {row['bits_per_byte']:.4f} | {accepted} | "
            f"{row['cpu_milliseconds_a_step']:.0f} | {row['memory_mib']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
