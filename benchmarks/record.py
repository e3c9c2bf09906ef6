"""Does the newest record hold? A record is the fewest seconds in which a recipe learns characters to nanoGPT's loss.

    python benchmarks/record.py [--texts DIR] [--seeds 3]                   run the newest record again
    python benchmarks/record.py --new NAME --recipe FILE --why TEXT         make the next one
    python benchmarks/record.py --target [--texts DIR]                      find the loss that is to be reached

The text of the records is tinyshakespeare, and the loss to reach on it is 1.886, where nanoGPT's recipe for a CPU ends.
Where that text is missing (fetch_texts.py fetches it), the recipe is run on the text that every machine has, some
modules of Python's standard library. Where nanoGPT's recipe ends on a text stands in targets.json under the text's
fingerprint; --target adds it.

A record is a numbered folder in records/: recipe.yaml, with its seconds of training; log.txt, what each seed reached on
the way; result.json, the figure with mean and spread over the seeds; loss.png. records/README.md has a line for each
record and what made it faster. The loss is that of the whole validation text (the last tenth), and the schedule ends
with the budget, so that a record stands or falls with the last measurement. The exit status is 1 if the mean loss is
above the text's.
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

from contestants import Gossamer, Peer, Runner
from measure import describe, machine, table
from texts import SHAKESPEARE, RaceText, add_option
from time_to_loss import NANO_GPT, RACES, ROOT, newest_record, plot, recipe_for, rival, texts_of, train_in_turns

from gossamer.train.recipe import load_recipe

TARGETS = Path(__file__).with_name("targets.json")
RECORDS = ROOT / "records"


def run(file: Path, text: RaceText, seeds: int) -> dict[str, Any]:
    """Train by a recipe with several seeds, in turns, for its own seconds, and return the record."""
    seconds = load_recipe(str(file)).training.seconds
    recipes = [recipe_for(RACES["characters"], file, text, seed, seconds) for seed in range(seeds)]
    found = machine()
    runners = [(Runner(f"gossamer, seed {seed}", Gossamer, one, seconds), seconds) for seed, one in enumerate(recipes)]
    train_in_turns(runners, parts=4)
    losses = [runner.progress[-1].loss for runner, _ in runners]
    return {
        "race": "characters",
        "text": text.record(),
        "seconds": seconds,
        "loss": statistics.fmean(losses),
        "spread": statistics.stdev(losses) if seeds > 1 else 0.0,
        "machine": found,
        "results": {runner.name: [asdict(progress) for progress in runner.progress] for runner, _ in runners},
    }


def report(record: dict[str, Any]) -> str:
    """Return a record as text."""
    rows = [
        (name, f"{point['seconds']:.1f}", point["steps"], f"{point['tokens']:,}", f"{point['loss']:.4f}")
        for name, points in record["results"].items()
        for point in points
    ]
    columns = ("", "seconds", "steps", "characters", "validation loss")
    return f"{describe(record['machine'])}\n{RaceText.of(record['text'])}\n\n{table(columns, rows)}\n"


def target(text: RaceText) -> float | None:
    """Return where nanoGPT's recipe for a CPU ends on a text, in nats per character; None if nobody has tried."""
    targets = json.loads(TARGETS.read_text())
    return targets[text.sha256]["loss"] if text.sha256 in targets else None


def find_target(text: RaceText) -> float:
    """Run nanoGPT's recipe on a text, record where it ends, and return that."""
    shape = recipe_for(RACES["characters"], newest_record(), text, seed=0)
    runner, found = Runner(NANO_GPT, Peer, rival(NANO_GPT, shape, 0.0), shape, 0, 0.0), machine()
    train_in_turns([(runner, 120.0)], parts=1)
    loss = runner.progress[-1].loss
    entry = {"loss": round(loss, 4), "text": text.name, "bytes": text.size, "by": NANO_GPT, "date": found["date"]}
    targets = json.loads(TARGETS.read_text()) | {text.sha256: entry}
    TARGETS.write_text(json.dumps(targets, indent=1, ensure_ascii=False) + "\n")
    return loss


def holds(record: dict[str, Any]) -> bool | None:
    """Return whether a record's loss is low enough; None if the loss to reach on this text is not known."""
    goal = target(RaceText.of(record["text"]))
    return None if goal is None else bool(record["loss"] <= goal)


def verdict(record: dict[str, Any]) -> str:
    """Return a sentence on whether a record holds."""
    figure = f"{record['loss']:.4f} ± {record['spread']:.4f} after {record['seconds']:g} s"
    goal = target(RaceText.of(record["text"]))
    if goal is None:
        return f"{figure}; the loss to reach on this text is not known, --target finds it"
    return f"{figure}: {'holds' if holds(record) else 'does not hold'} (at most {goal:g})"


def keep(record: dict[str, Any], name: str, file: Path, why: str) -> Path:
    """Write a record's folder and its line in the list, and return the folder."""
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
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_option(parser)
    parser.add_argument("--seeds", type=int, default=3, help="runs, with seeds 0, 1, …")
    parser.add_argument("--target", action="store_true", help="run nanoGPT's recipe on the text and record its loss")
    parser.add_argument("--new", help="name of a new record")
    parser.add_argument("--recipe", type=Path, help="with --new: its recipe, which sets training.seconds")
    parser.add_argument("--why", default="", help="with --new: what made it faster, in a line")
    arguments = parser.parse_args()
    if arguments.new and not (arguments.recipe and arguments.why):
        parser.error("--new needs --recipe and --why")
    text = texts_of(parser, ["characters"], arguments.texts)["characters"]
    if arguments.new and text.name != SHAKESPEARE:
        parser.error(f"a record is made on {SHAKESPEARE}; python benchmarks/fetch_texts.py fetches it")
    if arguments.target:
        print(f"{NANO_GPT} ends at {find_target(text):.4f} on {text}")
        return
    record = run(arguments.recipe or newest_record(), text, arguments.seeds)
    print(f"{report(record)}\n{verdict(record)}")
    if holds(record) is False:
        sys.exit(1)
    if arguments.new:
        print(keep(record, arguments.new, arguments.recipe, arguments.why))


if __name__ == "__main__":
    main()
