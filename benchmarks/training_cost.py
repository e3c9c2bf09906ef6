"""What buys what: the training cost of a loss with each ingredient of the recipe, and without it?

    python benchmarks/training_cost.py [--text characters novels] [--recipe FILE] [--seeds 3] [--texts DIR]
                                       [--json FILE] [--plot FILE]

Each variant is the newest record's recipe with one thing changed, trained for the same seconds as the whole recipe on
each text, with several seeds. The whole recipe is also trained for an eighth, a quarter and a half of that time.
Between those losses, in a straight line over the logarithm of the time, lies how long it needs for the loss that the
variant reached. The cost of the variant is its own time over that one: 1.5 means that the same loss costs half as much
again without the ingredient. A variant that ends lower than the recipe costs less than 1; how much less is not
reported.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from contestants import Gossamer, Progress, Runner
from measure import describe, machine, table
from texts import RaceText, add_option
from time_to_loss import RACES, newest_record, recipe_for, texts_of

from gossamer.train.recipe import Recipe, flatten, recipe_from

SECONDS = {"characters": 12.0, "novels": 30.0, "standard library": 30.0}
SHARES = (0.125, 0.25, 0.5)  # of the time, that the whole recipe is trained for as well
WHOLE = "the recipe"


@dataclass(frozen=True)
class Variant:
    """The recipe with something changed.

    Attributes:
        changes: the changes by dotted name
        dense: whether experts give way to one network of as many parameters as a token passes
        rows: rows of a batch, as a multiple of the recipe's
    """

    changes: Mapping[str, Any]
    dense: bool = False
    rows: float = 1.0


VARIANTS = {
    "softmax attention in every layer": Variant({"model.full_attention_interval": 1}),
    "linear attention in every layer": Variant({"model.full_attention_interval": 1000}),
    "a layer more": Variant({"model.num_hidden_layers": 3, "model.full_attention_interval": 3}),
    "no experts": Variant({}, dense=True),
    "twice the experts": Variant({"model.num_experts": 8}),
    "with multi-token prediction": Variant({"model.num_nextn_predict_layers": 1, "training.mtp_steps": 1}),
    "AdamW instead of Muon": Variant({"optimizer.kind": "adamw"}),
    "input embedding like all else": Variant({"optimizer.embedding_lr_factor": 1.0}),
    "momentum of 0.95 instead of 0.9": Variant({"optimizer.momentum": 0.95}),
    "no bigram table": Variant({"training.bigram_steps": 0}),
    "the whole vocabulary in the head": Variant({"training.sampled_vocab_size": 0}),
    "cosine instead of warm-up–stable–decay": Variant({"schedule.kind": "cosine"}),
    "no decay": Variant({"schedule.decay_fraction": 0.0}),
    "half the batch": Variant({}, rows=0.5),
    "rows of twice the length": Variant({"training.sequence_length": 256}, rows=0.5),
}


def changed(recipe: Recipe, variant: Variant) -> Recipe:
    """Return the recipe of a variant."""
    rows = {"training.batch_size": max(1, round(recipe.training.batch_size * variant.rows))}
    recipe = recipe_from({}, flatten(recipe) | rows | dict(variant.changes))
    if not variant.dense:
        return recipe
    model = recipe.model
    width = model.num_experts_per_tok * model.moe_intermediate_size + model.shared_expert_intermediate_size
    return replace(recipe, model=replace(model, num_experts=0, intermediate_size=width))


def trained(recipe: Recipe, seconds: float) -> Progress:
    """Return the progress of a recipe after so many seconds of training."""
    runner = Runner("one", Gossamer, recipe, seconds)
    progress = runner.advance(seconds)
    runner.close()
    return progress


def measure(race: str, names: list[str], file: Path, text: RaceText, seeds: int) -> dict[str, Any]:
    """Return the losses of the recipe by its seconds, and of each variant, seed after seed on the same machine."""
    seconds, found = SECONDS[race], machine()
    whole: dict[float, list[float]] = {seconds * share: [] for share in (*SHARES, 1.0)}
    variants: dict[str, list[float]] = {name: [] for name in names}
    tokens: dict[str, list[int]] = {name: [] for name in (WHOLE, *names)}
    for seed in range(seeds):
        recipe = recipe_for(RACES[race], file, text, seed, seconds)
        for length in whole:
            progress = trained(recipe, length)
            whole[length].append(progress.loss)
        tokens[WHOLE].append(progress.tokens)
        for name in names:
            progress = trained(changed(recipe, VARIANTS[name]), seconds)
            variants[name].append(progress.loss)
            tokens[name].append(progress.tokens)
            print(f"{race}, seed {seed}, {name}: {progress.loss:.4f}", flush=True)
    return {
        "race": race,
        "text": text.record(),
        "seconds": seconds,
        "machine": found,
        "whole": {str(length): losses for length, losses in whole.items()},
        "variants": variants,
        "tokens": tokens,
    }


def cost(record: dict[str, Any], loss: float) -> float | None:
    """Return how many times the recipe's time a variant took that reached `loss` in the same seconds.

    None means that the variant ended lower. Beyond the shortest run of the recipe the nearest stretch goes on.
    """
    points = sorted((math.log(float(length)), statistics.fmean(found)) for length, found in record["whole"].items())
    if loss <= points[-1][1]:
        return None
    for (before, high), (after, low) in pairwise(points):
        if loss >= low or (after, low) == points[-1]:
            needed = before + (high - loss) / (high - low) * (after - before)
            return float(record["seconds"] / math.exp(needed))
    return None


def report(record: dict[str, Any]) -> str:
    """Print a record."""
    whole = record["whole"][str(record["seconds"])]
    rows = [(WHOLE, *_loss_cells(whole), f"{statistics.fmean(record['tokens'][WHOLE]) / 1e3:.0f}", "1")]
    for name, losses in record["variants"].items():
        times = cost(record, statistics.fmean(losses))
        cells = _loss_cells(losses), f"{statistics.fmean(record['tokens'][name]) / 1e3:.0f}"
        rows.append((name, *cells[0], cells[1], "below 1" if times is None else f"{times:.2f}"))
    columns = ("", "validation loss", "spread", "thousand tokens", "cost of the same loss")
    shorter = ", ".join(
        f"{statistics.fmean(losses):.4f} after {float(length):g} s" for length, losses in record["whole"].items()
    )
    return (
        f"### {record['race']}, {record['seconds']:g} s of training, {len(whole)} seeds\n\n"
        f"{describe(record['machine'])}\n{RaceText.of(record['text'])}\n\n"
        f"{table(columns, rows)}\n\nThe recipe: {shorter}.\n"
    )


def _loss_cells(losses: list[float]) -> tuple[str, str]:
    return f"{statistics.fmean(losses):.4f}", f"{statistics.stdev(losses) if len(losses) > 1 else 0.0:.4f}"


def plot(records: list[dict[str, Any]], file: Path) -> None:
    """Draw a bar for what a loss costs without each ingredient."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(records[0]["variants"])
    figure, panel = plt.subplots(figsize=(9, 0.45 * len(names) + 1.2))
    height = 0.8 / len(records)
    for place, record in enumerate(records):
        times = [cost(record, statistics.fmean(record["variants"][name])) or 1.0 for name in names]
        heights = [row + place * height for row in range(len(names))]
        bars = panel.barh(heights, times, height, label=f"{record['race']}, {record['seconds']:g} s")
        panel.bar_label(bars, labels=[f"{one:.2f}" if one != 1.0 else "≤ 1" for one in times], padding=3, fontsize=8)
    panel.set_yticks([row + 0.4 - height / 2 for row in range(len(names))], names)
    panel.invert_yaxis()
    panel.axvline(1.0, color="black", linewidth=0.8)
    panel.set_xlabel("cost of the same loss, times the recipe's")
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--text", nargs="*", choices=list(SECONDS), default=["characters", "novels"], help="texts to train on"
    )
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS), help="variants to train")
    add_option(parser)
    parser.add_argument("--recipe", type=Path, help="recipe (default: the newest record's)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, …")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--plot", type=Path, help="write the picture to this file (.png, .svg)")
    arguments = parser.parse_args()
    records = []
    for race, text in texts_of(parser, arguments.text, arguments.texts).items():
        record = measure(race, arguments.only, arguments.recipe or newest_record(), text, arguments.seeds)
        records.append(record)
        print(report(record), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(records, indent=1))
    if arguments.plot:
        plot(records, arguments.plot)


if __name__ == "__main__":
    main()
