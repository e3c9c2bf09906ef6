"""Do runs by a budget end within the band that they print? Most of the texts here were never fitted.

    python benchmarks/budget_band.py [--texts NAME=PATH …] [--budgets 40s 90s] [--report]

Each run is `gossamer train --budget` in a process of its own. A line in benchmarks/scaling/budgets.jsonl says what was
predicted and what came out. Lines are never removed, and `scaling.py --fit` learns from them how far off a measured
speed is. The report judges all lines of this machine's processor by the band of the law as it is now, with the
predictions that were made. Without --texts the texts are the standard library's source, and C headers where
/usr/include has them.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import table

from gossamer.cost.scaling import Law, Text, law
from gossamer.device import processor
from gossamer.run.metrics import read_metrics

RECORD = Path(__file__).with_name("scaling") / "budgets.jsonl"
_HEADERS = Path("/usr/include")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", nargs="*", metavar="NAME=PATH", help="texts, each by a name for its kind")
    parser.add_argument("--budgets", nargs="*", default=["40s", "90s"])
    parser.add_argument("--record", type=Path, default=RECORD, help="the file of lines")
    parser.add_argument("--report", action="store_true", help="train nothing, and judge the recorded lines")
    arguments = parser.parse_args()
    if not arguments.report:
        for budget in arguments.budgets:
            for name, path in texts(arguments.texts).items():
                line = run(name, path, budget)
                with arguments.record.open("a") as file:  # at once, so that whatever stops this loses one run at most
                    file.write(json.dumps(line) + "\n")
    print(report([line for line in recorded(arguments.record) if line["processor"] == str(processor())], law()))


def texts(given: list[str] | None) -> dict[str, str]:
    """Return paths by names; an empty path is the recipe's own text, the standard library's source."""
    if given is None:
        return {"python": ""} | ({"c-headers": str(_HEADERS)} if any(_HEADERS.glob("*.h")) else {})
    pairs = [text.partition("=") for text in given]
    if bad := [name for name, _, path in pairs if not (name and path)]:
        raise SystemExit(f"--texts {bad[0]}: write it as NAME=PATH")
    return {name: path for name, _, path in pairs}


def recorded(path: Path) -> list[dict[str, Any]]:
    """Return the lines that are recorded."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run(name: str, path: str, budget: str) -> dict[str, Any]:
    """Run once and return its line: what was known of its text, what was predicted, and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        # Its text goes to the cache first, as a user's second run finds it: a budget includes reading.
        for wanted in ("2e11flop", budget):
            out = Path(folder) / wanted
            command = [sys.executable, "-m", "gossamer.cli", "train", "--budget", wanted, "--out", str(out)]
            # The headers of some systems are not UTF-8 everywhere.
            subprocess.run(command + (["--data", path, "--errors", "replace"] if path else []), check=True)
        return line_of(out, name, budget)


def line_of(folder: Path, name: str, budget: str) -> dict[str, Any]:
    """Return the line of a run that lies in a folder."""
    from gossamer.cost.width_family import trunk_parameters
    from gossamer.data.dataset import prepare
    from gossamer.run.budget import compressed_bits
    from gossamer.train.recipe import load_recipe

    events = {event["event"]: event for event in read_metrics(folder)}
    plan, end = events["plan"], events["end"]
    recipe = load_recipe(str(folder / "config.yaml"))
    dataset = prepare(recipe.corpus, progress=False)
    bytes_per_token = dataset.train.num_bytes / dataset.train.num_tokens
    return {
        "text": name,
        "budget": budget,
        "trunk_parameters": trunk_parameters(recipe.model),
        "predicted_tokens": plan["tokens"],
        "tokens": end["tokens"],
        "predicted_bytes": plan["tokens"] * bytes_per_token,
        "bytes": end["tokens"] * bytes_per_token,
        "unique_bytes": dataset.train.num_bytes,
        "compressed_bits": compressed_bits(dataset),
        "predicted": plan["bits_per_byte"],
        "bits_per_byte": end["bits_per_byte"],
        "processor": str(processor()),
    }


def report(lines: list[dict[str, Any]], found: Law) -> str:
    """Return a table of the runs, and how many ended inside the band that the law gives them."""
    rows, inside = [], 0
    for line in lines:
        text = Text(line["unique_bytes"], line["compressed_bits"])
        band = found.band(line["trunk_parameters"], line["predicted_bytes"], text, by_clock=True)
        error = line["bits_per_byte"] / line["predicted"] - 1
        inside += abs(error) <= band
        speed = math.expm1(math.log(line["tokens"] / line["predicted_tokens"]))
        verdict = "inside" if abs(error) <= band else "outside"
        rows.append(
            (line["text"], line["budget"], f"{line['predicted']:.4f} ± {band:.1%}", f"{line['bits_per_byte']:.4f}",
             f"{error:+.1%}", f"{speed:+.0%}", verdict)
        )  # fmt: skip
    heads = ("text", "budget", "predicted bits per byte", "measured", "off by", "tokens off by", "of the band")
    return f"{table(heads, rows)}\n\n{inside} of {len(lines)} runs ended inside their band"


if __name__ == "__main__":
    main()
