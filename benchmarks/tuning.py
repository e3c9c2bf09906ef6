"""How fast and in how much memory does `gossamer tune` learn, beside TRL + PEFT + transformers on the same model?

    python benchmarks/tuning.py [--task sft lora dpo] [--steps 10] [--recipe micro] [--quick] [--json FILE]

An untrained network of a recipe and questions about the standard library (recipes/docstrings.py) are written into a
temporary folder, and both tune that checkpoint with the same questions for one epoch, in processes of their own. They
take turns of one optimizer step, and medians are compared. The first step is not counted, since it comes after loading,
preparing and, for pairs, the reference log-probabilities. TRL has the settings of benchmarks/tuning_trl.py. Both have
AdamW with one constant learning rate, in float32, and neither has a multi-token-prediction head or a balance loss.

Afterwards transformers and PEFT load what each of them has written, and the loss on held-out answers is theirs, so it
is computed alike. Peak memory is that of the whole process. What `gossamer tune --plan` foretells stands beside what
was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before PyTorch; every subject's process inherits it)
import tuning_trl
from family import Process
from measure import describe, installed, machine, table, take_turns
from tuning_data import TASKS, Task, read_rows, rows_file, write_base, write_rows

OURS, THEIRS = "gossamer", "TRL"
PACKAGES = {"TRL": "trl", "PEFT": "peft", "transformers": "transformers"}
Tune = Callable[[Task, Path, Path, Callable[[], None]], None]


def tune_values(task: Task, folder: Path) -> dict[str, Any]:
    """Return the values of a recipe with which gossamer does what TRL is told to do."""
    of_adapters = {"tuning.lora": True, "tuning.rank": task.rank} if task.lora else {}
    return of_adapters | {
        "training.init_from": str(folder),
        "training.eval_every": 0,
        "corpus.paths": [str(rows_file(folder, task.method))],
        "model.router_aux_loss_coef": 0.0,
        "optimizer.kind": "adamw",
        "optimizer.learning_rate": task.learning_rate,
        "optimizer.weight_decay": 0.0,
        "optimizer.betas": [0.9, 0.999],
        "schedule.warmup_steps": 0,
        "schedule.decay_fraction": 0.0,
        "tuning.epochs": 1,
        "tuning.batch": task.batch,
        "tuning.hold_out": 0.0,
    }


def tune(task: Task, folder: Path, out: Path, after_step: Callable[[], None]) -> None:
    """Tune as the command does."""
    from gossamer import device as devices
    from gossamer.tune import run
    from gossamer.tune.examples import begun_material

    devices.prepare_process()
    values = tune_values(task, folder)
    run.tune(lambda world: begun_material(None, values, world), "auto", out, on_step=lambda progress: after_step())


def work(pipe: Connection, tuner: Tune, task: Task, folder: Path, out: Path) -> None:
    """Tune a step at each question, which is answered with its seconds and the peak of memory; then to the end."""
    from gossamer.device import default_device, peak_memory

    pipe.recv()
    began = time.perf_counter()

    def after_step() -> None:
        nonlocal began
        pipe.send((time.perf_counter() - began, peak_memory(default_device())))
        pipe.recv()
        began = time.perf_counter()

    tuner(task, folder, out, after_step)
    pipe.send(None)


def measure(task: Task, folder: Path, steps: int) -> dict[str, Any]:
    """Return a task's record: speed, peak memory and loss of both, and what was foretold."""
    tuners: dict[str, Tune] = {OURS: tune, THEIRS: tuning_trl.tune}
    outs = {name: folder / f"{task.method}-{task.lora}-{name}" for name in tuners}
    processes = {
        name: Process(work, tuner, task, folder, outs[name], is_peer=name != OURS) for name, tuner in tuners.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in tuners}
    peaks: dict[str, int] = {}

    def contestant(name: str) -> Callable[[int], bool]:
        def step(turn: int) -> bool:
            taken, peaks[name] = processes[name].ask()
            if turn:
                seconds[name].append(taken)
            return turn + 1 < steps

        return step

    take_turns([contestant(name) for name in tuners])
    for process in processes.values():
        process.ask()
        process.close()
    per_step = units_per_step(task, folder)
    results = {}
    for name in tuners:
        median = statistics.median(seconds[name])
        results[name] = {
            "seconds": median,
            "slowest": max(seconds[name]),
            "per_second": per_step / median,
            "peak_bytes": peaks[name],
            "loss": in_a_process(tuning_trl.held_out_loss, task, folder, tuned_folder(outs[name])),
        }
    untuned = in_a_process(tuning_trl.held_out_loss, task, folder, folder)
    plan = in_a_process(foretold, task, folder)
    return {"task": task.title, "unit": task.unit, "results": results, "untuned_loss": untuned, "plan": plan}


def tuned_folder(out: Path) -> Path:
    """Return where the weights or the adapter are: in a run's folder, or where TRL has written them."""
    return next((path for path in (out / "adapter", out / "model") if path.is_dir()), out)


def units_per_step(task: Task, folder: Path) -> float:
    """Return how many pairs, or target tokens on average, one optimizer step learns from."""
    if task.method == "dpo":
        return task.batch
    rows = read_rows(folder, task)
    return in_a_process(tuning_trl.count_targets, folder, rows) / len(rows) * task.batch


def foretold(task: Task, folder: Path) -> dict[str, float]:
    """Return what the plan says of the time of a step and of the peak of memory."""
    from gossamer import device as devices
    from gossamer.tune import plan as plans
    from gossamer.tune.examples import begun_material

    devices.prepare_process()
    values = tune_values(task, folder)
    plan = plans.plan_tuning(lambda world: begun_material(None, values, world), "auto").to_json()
    return {"seconds": plan["training_seconds"] / plan["steps"], "peak_bytes": plan["memory"]}


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a process of its own, whose memory is free again."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Return what is compared between runs: gossamer with TRL, and with what was foretold."""
    ours, theirs, plan = record["results"][OURS], record["results"][THEIRS], record["plan"]
    return {
        "speed over TRL": ours["per_second"] / theirs["per_second"],
        "memory of TRL's": ours["peak_bytes"] / theirs["peak_bytes"],
        "loss above TRL's": ours["loss"] - theirs["loss"],
        "foretold time of the real": plan["seconds"] / ours["seconds"],
        "foretold memory of the real": plan["peak_bytes"] / ours["peak_bytes"],
    }


def report(record: dict[str, Any]) -> str:
    """Return a record as Markdown."""
    rows = [
        (
            name,
            f"{row['seconds']:.2f} ({row['slowest']:.2f})",
            f"{row['per_second']:.1f}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['loss']:.4f}",
        )
        for name, row in record["results"].items()
    ]
    rows.append(("before", "", "", "", f"{record['untuned_loss']:.4f}"))
    columns = (record["task"], "s per step (slowest)", f"{record['unit']}/s", "peak MiB", "held-out loss")
    compared = [(name, f"{value:.3f}") for name, value in ratios(record).items()]
    return f"{table(columns, rows)}\n\n{table(('', record['task']), compared)}\n"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", nargs="*", choices=list(TASKS), default=list(TASKS), help="what is tuned")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps; the first is not counted")
    parser.add_argument("--recipe", default="micro", help="the network")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the network")
    parser.add_argument("--quick", action="store_true", help="the network nano and three steps, to see that all runs")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    arguments = parser.parse_args()
    recipe, steps = ("nano", 3) if arguments.quick else (arguments.recipe, arguments.steps)
    records = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = in_a_process(write_base, folder, recipe, arguments.vocabulary)
        found = machine() | {"peers": installed(PACKAGES)}
        versions = ", ".join(f"{package} {version}" for package, version in found["peers"].items())
        print(f"{describe(found)}; {versions}\n\n{recipe}, {parameters / 1e6:.1f}M parameters, {steps} steps\n")
        for task in (TASKS[name] for name in arguments.task):
            in_a_process(write_rows, folder, task.batch * steps)
            records.append(measure(task, folder, steps))
            print(report(records[-1]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": found, "recipe": recipe, "records": records}, indent=1))


if __name__ == "__main__":
    main()
