"""Does the newest record hold: the fewest seconds in which a recipe learns Shakespeare's characters to a loss of 1.886?

    python benchmarks/record.py [--texts DIR] [--seeds 3]                   run the newest record again
    python benchmarks/record.py --new NAME --recipe FILE --why TEXT         make the next one

A record is a folder in records/, numbered: recipe.yaml, with its seconds of training; log.txt, what each seed came to
on the way; result.json, the figure with mean and spread over the seeds; loss.png. records/README.md has a line for each
and what made it faster. The loss is that of the whole held-out text (the last tenth), and the schedule ends with the
budget, so that a record stands or falls with the last measurement. Exit status 1: the mean loss is above 1.886.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contestants import Gossamer, Runner
from measure import describe, machine, table
from time_to_loss import RACES, ROOT, newest_record, plot, recipe_for, take_turns

from gossamer.train.recipe import load_recipe, recipe_from

TARGET = 1.886  # nats a character: what nanoGPT's recipe for a CPU ends at
RECORDS = ROOT / "records"


def run(file: Path, texts: Path, seeds: int) -> dict[str, Any]:
    """Train by a recipe with several seeds, in turns, for its own seconds."""
    seconds = recipe_from(load_recipe(str(file))).training.seconds
    recipes = [recipe_for(RACES["characters"], file, texts, seed, seconds) for seed in range(seeds)]
    found = machine()
    runners = [(Runner(f"gossamer, seed {seed}", Gossamer, one, seconds), seconds) for seed, one in enumerate(recipes)]
    take_turns(runners, parts=4)
    losses = [runner.progress[-1].loss for runner, _ in runners]
    return {
        "race": "characters",
        "seconds": seconds,
        "loss": statistics.fmean(losses),
        "spread": statistics.stdev(losses) if seeds > 1 else 0.0,
        "machine": found,
        "results": {runner.name: [asdict(progress) for progress in runner.progress] for runner, _ in runners},
    }


def report(record: dict[str, Any]) -> str:
    rows = [
        (name, f"{point['seconds']:.1f}", point["steps"], f"{point['tokens']:,}", f"{point['loss']:.4f}")
        for name, points in record["results"].items()
        for point in points
    ]
    columns = ("", "seconds", "steps", "characters", "held-out loss")
    return f"{describe(record['machine'])}\n\n{table(columns, rows)}\n"


def verdict(record: dict[str, Any]) -> str:
    figure = f"{record['loss']:.4f} ± {record['spread']:.4f} after {record['seconds']:g} s"
    return f"{figure}: {'holds' if record['loss'] <= TARGET else 'does not hold'} (at most {TARGET})"


def keep(record: dict[str, Any], name: str, file: Path, why: str) -> Path:
    """Write a record's folder and its line in the list."""
    number = 1 + max((int(path.name[:3]) for path in RECORDS.glob("[0-9]*")), default=0)
    folder = RECORDS / f"{number:03d}-{name}"
    folder.mkdir()
    shutil.copyfile(file, folder / "recipe.yaml")
    (folder / "log.txt").write_text(report(record) + "\n" + verdict(record) + "\n")
    (folder / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    plot([record], folder / "loss.png")
    tokens = statistics.fmean(points[-1]["tokens"] for points in record["results"].values())
    with (RECORDS / "README.md").open("a") as file_:
        file_.write(
            f"| [{folder.name}]({folder.name}) | {record['machine']['date']} | {record['seconds']:g} | "
            f"{tokens / 1e3:.0f} | {record['loss']:.4f} ± {record['spread']:.4f} | {why} |\n"
        )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=Path, default=ROOT.parent / "shared/data", help="folder of tinyshakespeare.txt")
    parser.add_argument("--seeds", type=int, default=3, help="runs, with seeds 0, 1, …")
    parser.add_argument("--new", help="name of a new record")
    parser.add_argument("--recipe", type=Path, help="with --new: its recipe, training.seconds in it")
    parser.add_argument("--why", default="", help="with --new: what made it faster, in a line")
    arguments = parser.parse_args()
    if not (arguments.texts / "tinyshakespeare.txt").exists():
        parser.error(f"there is no {arguments.texts / 'tinyshakespeare.txt'}; name the text's folder with --texts")
    if arguments.new and not (arguments.recipe and arguments.why):
        parser.error("--new needs --recipe and --why")
    record = run(arguments.recipe or newest_record(), arguments.texts, arguments.seeds)
    print(f"{report(record)}\n{verdict(record)}")
    if record["loss"] > TARGET:
        sys.exit(1)
    if arguments.new:
        print(keep(record, arguments.new, arguments.recipe, arguments.why))


if __name__ == "__main__":
    main()
