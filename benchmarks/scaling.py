"""What loss do a size, a text and a time of training lead to? The law behind --budget is fitted to these runs.

    python benchmarks/scaling.py --novels PATH --shakespeare FILE    trains what runs.jsonl lacks
    python benchmarks/scaling.py --fit                               writes src/gossamer/cost/scaling.json

Every run goes by recipes/budget.yaml, sized by run/budget.py, for the tokens that so many seconds buy here, in
a process of its own. A line in benchmarks/scaling/runs.jsonl says what went in and what came out. Lines of another
recipe or family stay there and are left out of a fit. The fit says how well it predicts runs that it has not seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

RUNS = Path(__file__).with_name("scaling") / "runs.jsonl"
BUDGETS = RUNS.with_name("budgets.jsonl")  # of budget_band.py

# Corpus and tokenizer, width, about so many seconds of training. The texts differ in kind and size: the small one is
# read again and again by the small networks.
GRID: list[tuple[str, str, int, int]] = [
    *(("novels", "bpe", width, seconds) for width, seconds in (
        (128, 20), (192, 60), (64, 15), (256, 90), (96, 30), (128, 45), (192, 30), (64, 45), (128, 90), (192, 120),
        (256, 45), (96, 70), (320, 110),
    )),
    ("python", "bpe", 128, 60),
    ("shakespeare", "bpe", 128, 40),
    ("shakespeare", "bpe", 64, 75),
    ("python", "bpe", 96, 30),
    ("shakespeare", "char", 96, 40),
    ("novels", "char", 128, 60),
]  # fmt: skip


# Keys of `training` that change nothing about what is learned begin with one of these.
_WATCHING = (
    "eval_",
    "final_eval_",
    "sample_",
    "checkpoint_",
    "keep_",
    "log_",
    "wandb_",
    "best_checkpoint_by",
    "price",
    "currency",
)
# Options that are younger than the first runs: with these values a run is what it was before they existed.
_ABSENT = {"sampled_vocab_size": 0, "bigram_steps": 0}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--novels", help="file or folder of long novels")
    parser.add_argument("--shakespeare", help="file of plays")
    parser.add_argument("--only", nargs="*", type=int, help="numbers of the grid's runs, from 0")
    parser.add_argument("--scale", type=float, default=1.0, help="multiple of every run's seconds")
    parser.add_argument("--runs", type=Path, default=RUNS, help="the file of runs")
    parser.add_argument("--fit", action="store_true", help="fit the law to the runs instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a run, in a process of its own
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(_train(**json.loads(arguments.one))))
    elif arguments.fit:
        from scaling_fit import fit_and_write

        fit_and_write([run for run in _recorded(arguments.runs) if run["recipe"] == fingerprint()], _recorded(BUDGETS))
    else:
        _run_grid(arguments)


def fingerprint() -> str:
    """Return a fingerprint of the recipe and of the family's sizes: runs of different ones do not mix."""
    from gossamer.cost.width_family import WIDTHS
    from gossamer.run.budget import sized_recipe
    from gossamer.train.recipe import load_recipe

    base = load_recipe("budget")
    family = []
    for recipe in (sized_recipe(base, width, tokens) for width in WIDTHS for tokens in (1e5, 1e7)):
        learning = {
            name: value
            for name, value in asdict(recipe.training).items()
            if not name.startswith(_WATCHING) and _ABSENT.get(name, ...) != value
        }
        family.append([asdict(recipe.model), asdict(recipe.optimizer), asdict(recipe.schedule), learning])
    return hashlib.sha256(json.dumps(family, sort_keys=True).encode()).hexdigest()[:12]


def _recorded(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _run_grid(arguments: argparse.Namespace) -> None:
    places = {"novels": arguments.novels, "shakespeare": arguments.shakespeare, "python": ""}
    recipe = fingerprint()
    keys = ("corpus", "tokenizer", "width", "seconds")
    done = {tuple(run[key] for key in keys) for run in _recorded(arguments.runs) if run["recipe"] == recipe}
    began = time.perf_counter()
    for number, (corpus, tokenizer, width, seconds) in enumerate(GRID):
        wanted = corpus, tokenizer, width, seconds * arguments.scale
        if (arguments.only is not None and number not in arguments.only) or wanted in done:
            continue
        if places[corpus] is None:
            print(f"{number}: left out, since --{corpus} is not given", file=sys.stderr)
            continue
        values = dict(zip(keys, wanted, strict=True)) | {"recipe": recipe}
        command = [sys.executable, __file__, "--one", json.dumps(values | {"path": places[corpus]})]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        arguments.runs.parent.mkdir(exist_ok=True)
        with arguments.runs.open("a") as file:  # at once, so that whatever stops the grid loses one run at most
            file.write(result + "\n")
        got = json.loads(result)
        print(
            f"{number + 1}/{len(GRID)} {corpus} {tokenizer} width {width}: {got['tokens']:,} tokens in "
            f"{got['elapsed']:.0f} s, {got['bits_per_byte']:.4f} bits per byte; {time.perf_counter() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def _train(corpus: str, tokenizer: str, width: int, seconds: float, recipe: str, path: str) -> dict[str, Any]:
    import torch

    from gossamer import __version__
    from gossamer import device as devices
    from gossamer.cost.width_family import trunk_parameters
    from gossamer.data.dataset import prepare
    from gossamer.run.budget import compressed_bits, sized_recipe, tokens_per_second
    from gossamer.run.loop import train
    from gossamer.run.metrics import read_metrics
    from gossamer.train.recipe import load_recipe
    from gossamer.train.world import World

    text = {"corpus.paths": (path,)} if path else {}
    base = load_recipe("budget", text | {"corpus.tokenizer": tokenizer})
    devices.prepare_process()  # as the command does
    devices.keep_freed_memory()
    dataset = prepare(base.corpus, progress=False)
    base = replace(base, model=replace(base.model, vocab_size=dataset.tokenizer.vocab_size))
    speed = tokens_per_second(sized_recipe(base, width, 1e6), dataset, World(devices.resolve()), seconds=2.0)
    chosen = sized_recipe(base, width, speed * seconds)
    never = {"eval_every": 0, "sample_every": 0, "checkpoint_every": 0, "sample_tokens": 1}
    # The run ends by tokens, so that nothing depends on what else the machine does.
    training = replace(chosen.training, tokens=round(speed * seconds), final_eval_tokens=65_536, **never)
    with tempfile.TemporaryDirectory() as folder:
        train(replace(chosen, training=training), Path(folder))
        events = read_metrics(Path(folder))
    start, end = events[0], next(event for event in events if event["event"] == "end")
    per_token = dataset.train.num_bytes / dataset.train.num_tokens
    return {
        "corpus": corpus,
        "tokenizer": tokenizer,
        "width": width,
        "seconds": seconds,
        "recipe": recipe,
        "trunk_parameters": trunk_parameters(chosen.model),
        "parameters": start["parameters"],
        "flops_per_token": start["flops_per_token"],
        "tokens_per_step": start["tokens_per_step"],
        "tokens": end["tokens"],
        "elapsed": end["elapsed"],
        "bytes": end["tokens"] * per_token,
        "unique_bytes": dataset.train.num_bytes,
        "compressed_bits": compressed_bits(dataset),
        "loss": end["loss"],
        "bits_per_byte": end["bits_per_byte"],
        "device": start["device"],
        "torch": torch.__version__,
        "gossamer": __version__,
    }


if __name__ == "__main__":
    main()
