"""How long does training take to a loss: gossamer by its newest record's recipe, beside dense networks with AdamW?

    python benchmarks/time_to_loss.py [--quick] [--race characters …] [--texts DIR] [--seeds 3] [--recipe FILE]
                                      [--json FILE] [--plot FILE]
    python benchmarks/time_to_loss.py --sweep [--race …]        find the dense networks' learning rates anew

Texts lie in texts/, where fetch_texts.py puts them, or in the folder that --texts names. Without them the race on
characters takes the text that every machine has, some modules of Python's standard library, and the novels are left
out. Every record names its text's fingerprint.

A race is a text with a budget for gossamer and longer ones for its rivals: nanoGPT's recipe for a CPU, a dense Qwen3 of
transformers with as many parameters as gossamer's network uses on a token, one with as many as it has in all, and
gossamer's own dense trunk. Each is in a process of its own, and they take turns, every one for a tenth of its schedule
(--parts); each one's clock runs only while it trains. Schedules are complete at the end of the budget, so that only
ends are compared: the time that a rival was given over the time in which gossamer reached the same loss or a lower one.

Of gossamer there are several seeds, and their mean counts. The rivals' learning rates were found by --sweep, which
tries each on a shorter schedule and writes the best to learning_rates.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from contestants import Dense, Gossamer, Peer, Runner
from measure import describe, machine, table, take_turns
from texts import NOVELS, SHAKESPEARE, RaceText, add_option, find_text, standard_library_text, whole_standard_library

from gossamer.train.recipe import Recipe, flatten, load_recipe, recipe_from

ROOT = Path(__file__).parent.parent
LEARNING_RATES = Path(__file__).with_name("learning_rates.json")
RATES = (1e-3, 2e-3, 4e-3, 8e-3)  # a sweep tries these, and goes on beyond one at an edge that wins
SWEEP_SHARE, MIN_SWEEP_SECONDS = 0.1, 15.0  # share of a rival's budget, and seconds, that a sweep takes
OURS = "gossamer"
NANO_GPT = "nanoGPT's recipe"
ACTIVE, TOTAL, OWN = "dense Qwen3, equal active size", "dense Qwen3, equal total size", "gossamer's dense trunk"


@dataclass(frozen=True)
class Race:
    """A text, and who trains on it for how long.

    Attributes:
        text: its place in the folder of texts; empty means all of the standard library's source
        tokenizer: `char` or `bpe`
        seconds: the budget of gossamer
        rivals: the budgets of the rivals by name, in seconds; 0 means as many steps as their own recipe says
    """

    text: str
    tokenizer: str
    seconds: float
    rivals: dict[str, float]

    def found(self, folder: Path | None) -> RaceText | None:
        """Return the text in a folder or where it usually is; None if it is missing and nothing can stand for it.

        Raises:
            FileNotFoundError: it is not in the folder that was asked for.
        """
        if not self.text:
            return whole_standard_library()
        return find_text(self.text, folder) or (standard_library_text() if self.tokenizer == "char" else None)


RACES = {
    "characters": Race(SHAKESPEARE, "char", 12, {NANO_GPT: 0, ACTIVE: 60, TOTAL: 60, OWN: 60}),
    "novels": Race(NOVELS, "bpe", 60, {ACTIVE: 600, TOTAL: 600}),
    "standard library": Race("", "bpe", 60, {ACTIVE: 300}),
}
QUICK = {"characters": (NANO_GPT, ACTIVE)}
RIVALS = [NANO_GPT, ACTIVE, TOTAL, OWN]


def recipe_for(race: Race, file: Path, text: RaceText, seed: int, seconds: float = 0.0) -> Recipe:
    """Return the recipe on a race's text, with its budget or another.

    The batch grows with the square root of the budget, in powers of 2, by the rule of budgets (run/budget.py).
    """
    recipe, seconds = load_recipe(str(file)), seconds or race.seconds
    growth = math.sqrt(seconds / recipe.training.seconds)
    changes: dict[str, Any] = {
        "corpus.paths": tuple(map(str, text.paths)),
        "corpus.tokenizer": race.tokenizer,
        "training.seconds": seconds,
        "training.seed": seed,
        "training.batch_size": max(1, 2 ** round(math.log2(recipe.training.batch_size * growth))),
    }
    return recipe_from({}, flatten(recipe) | changes)


def dense_trunk(recipe: Recipe) -> Recipe:
    """Return a recipe with softmax attention alone and, for experts, one network of as many active parameters."""
    model = recipe.model
    width = model.num_experts_per_tok * model.moe_intermediate_size + model.shared_expert_intermediate_size
    changes = {"full_attention_interval": 1, "layer_types": None, "num_experts": 0, "intermediate_size": width}
    return replace(recipe, model=replace(model, **changes))


def rival(name: str, recipe: Recipe, learning_rate: float) -> Dense:
    """Return a dense network of transformers for the race that `recipe` runs."""
    if name == NANO_GPT:
        # github.com/karpathy/nanoGPT: the readme's command for a CPU and the defaults of its train.py.
        steps = {"steps": 2000, "warmup": 100, "final_fraction": 0.1}
        return Dense("gpt2", 1e-3, rows=12, length=64, betas=(0.9, 0.99), **steps)
    training = recipe.training
    size: Any = "active" if name == ACTIVE else "total"
    return Dense("qwen3", learning_rate, rows=training.batch_size, length=training.sequence_length, size=size)


def rates_of(race: str) -> dict[str, float]:
    """Return the learning rates of a race's rivals that were found by --sweep."""
    found: dict[str, dict[str, float]] = json.loads(LEARNING_RATES.read_text()) if LEARNING_RATES.exists() else {}
    return found.get(race, {})


def run(name: str, rivals: Iterable[str], file: Path, text: RaceText, seeds: int, parts: int) -> dict[str, Any]:
    """Run a race and return its record: for each contestant its progress, evaluated `parts` times."""
    race, rates = RACES[name], rates_of(name)
    recipes = [recipe_for(race, file, text, seed) for seed in range(seeds)]
    runners = [
        (Runner(f"{OURS}, seed {seed}", Gossamer, recipe, race.seconds), race.seconds)
        for seed, recipe in enumerate(recipes)
    ]
    for one in rivals:
        seconds = race.rivals[one]
        if one == OWN:
            runners.append((Runner(one, Gossamer, dense_trunk(recipes[0]), seconds), seconds))
        else:
            dense = rival(one, recipes[0], rates[one] if one in (ACTIVE, TOTAL) else 0.0)
            runners.append((Runner(one, Peer, dense, recipes[0], 0, seconds), seconds or 120.0))
    found = machine()
    train_in_turns(runners, parts)
    results = {runner.name: [asdict(progress) for progress in runner.progress] for runner, _ in runners}
    return {"race": name, "text": text.record(), "machine": found, "learning_rates": rates, "results": results}


def train_in_turns(runners: list[tuple[Runner, float]], parts: int) -> None:
    """Train contestants in turns, each for a part of its schedule until it is at its end, and end their processes.

    Args:
        runners: contestants with the seconds of their schedules
        parts: parts of a schedule, after each of which the contestant is measured
    """

    def contestant(runner: Runner, seconds: float) -> Callable[[int], bool]:
        def advance(turn: int) -> bool:
            runner.advance(seconds * (turn + 1) / parts)
            return not runner.progress[-1].done

        return advance

    take_turns([contestant(runner, seconds) for runner, seconds in runners])
    for runner, _ in runners:
        runner.close()


def sweep(name: str, rivals: Iterable[str], file: Path, text: RaceText) -> dict[str, float]:
    """Return the best learning rate of each rival of transformers, on a shorter schedule; all rates take turns."""
    race, best = RACES[name], rates_of(name)
    recipe = recipe_for(race, file, text, seed=0)
    for one in [rival for rival in (ACTIVE, TOTAL) if rival in rivals]:
        seconds, losses = max(SWEEP_SHARE * race.rivals[one], MIN_SWEEP_SECONDS), dict[float, float]()
        rates = set(RATES)
        while rates:
            runners = {
                rate: Runner(f"{rate:g}", Peer, rival(one, recipe, rate), recipe, 0, seconds) for rate in sorted(rates)
            }
            train_in_turns([(runner, seconds) for runner in runners.values()], parts=2)
            losses |= {rate: runner.progress[-1].loss for rate, runner in runners.items()}
            best[one] = min(losses, key=losses.__getitem__)
            # If the best rate lies at an edge, the next one beyond it has to be tried, too.
            rates = {best[one] / 2, best[one] * 2} - set(losses) if best[one] in (min(losses), max(losses)) else set()
        rows = [(f"{rate:g}", f"{loss:.4f}") for rate, loss in sorted(losses.items())]
        print(f"{name}, {one}, {seconds:.0f} s\n\n{table(('learning rate', 'validation loss'), rows)}\n", flush=True)
    return best


def ends(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return what each contestant had spent at the end and its loss there, with gossamer's mean and spread."""
    results = {name: points[-1] for name, points in record["results"].items()}
    seeds = [results.pop(name) for name in list(results) if name.startswith(f"{OURS}, seed")]
    mean = {key: statistics.fmean(seed[key] for seed in seeds) for key in ("seconds", "tokens", "flops", "loss")}
    mean["spread"] = statistics.stdev([seed["loss"] for seed in seeds]) if len(seeds) > 1 else 0.0
    return {OURS: mean} | results


def crossed(points: list[dict[str, float]], loss: float) -> float | None:
    """Return the seconds after which a contestant reached a loss, between two measurements; None if never."""
    before = None
    for point in points:
        if point["loss"] <= loss:
            if before is None:
                return point["seconds"]
            share = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Return, for each rival whose last loss gossamer reached, the rival's time over gossamer's whole budget."""
    found = ends(record)
    ours = found[OURS]
    return {
        f"{record['race']}: time of {name}": one["seconds"] / ours["seconds"]
        for name, one in found.items()
        if name != OURS and ours["loss"] <= one["loss"]
    }


def report(record: dict[str, Any]) -> str:
    """Return a record as Markdown."""
    found = ends(record)
    ours, rows = found[OURS], []
    for name, one in found.items():
        loss = f"{one['loss']:.4f}" + (f" ± {one['spread']:.4f}" if name == OURS else "")
        cells = [name, f"{one['seconds']:.1f}", f"{one['tokens'] / 1e6:.2f}", f"{one['flops'] / 1e12:.2f}", loss]
        if name == OURS:
            rows.append((*cells, "", ""))
            continue
        reached = crossed(record["results"][name], ours["loss"])
        ratio = f"{one['seconds'] / ours['seconds']:.1f}" if ours["loss"] <= one["loss"] else "not reached"
        rows.append((*cells, ratio, "never" if reached is None else f"{reached:.0f}"))
    columns = (
        "",
        "seconds",
        "million tokens",
        "TFLOP",
        "validation loss",
        "its time over gossamer's",
        "seconds to gossamer's loss",
    )
    set_ups = {name: points[-1]["set_up"] for name, points in record["results"].items()}
    seeds = sum(name.startswith(OURS + ",") for name in set_ups)
    where = f"{describe(record['machine'])}\n{RaceText.of(record['text'])}"
    return (
        f"### {record['race']}\n\n{where}; gossamer: mean and spread of {seeds} seeds\n\n"
        f"{table(columns, rows)}\n\nNot counted: set-up of {min(set_ups.values()):.1f} to "
        f"{max(set_ups.values()):.1f} s each (text, network, kernels) and evaluations.\n"
    )


def plot(records: list[dict[str, Any]], file: Path) -> None:
    """Draw validation loss over seconds of training, with one panel per race."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, panels = plt.subplots(1, len(records), figsize=(6.5 * len(records), 4.5), squeeze=False)
    for record, panel in zip(records, panels[0], strict=True):
        colors = iter(plt.get_cmap("tab10").colors)
        ours = next(colors)
        for name, points in record["results"].items():
            mine = name.startswith(f"{OURS}, seed")
            label = (OURS if name.endswith(" 0") else None) if mine else name
            panel.plot(
                [point["seconds"] for point in points],
                [point["loss"] for point in points],
                color=ours if mine else next(colors),
                linewidth=2 if mine else 1.2,
                label=label,
            )
        goal = ends(record)[OURS]["loss"]
        panel.axhline(goal, color=ours, linestyle=":", linewidth=1)
        panel.set(
            title=record["race"], xlabel="seconds of training", ylabel="validation loss (nats per token)", xscale="log"
        )
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        losses = [point["loss"] for points in record["results"].values() for point in points]
        panel.set_ylim(min(losses) - 0.05, min(max(losses), min(losses) + 1.5))
        panel.legend(frameon=False)
        panel.grid(alpha=0.25)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def newest_record() -> Path:
    """Return the recipe of the newest record."""
    return max((ROOT / "records").glob("*/recipe.yaml"), key=lambda path: path.parent.name)


def texts_of(parser: argparse.ArgumentParser, races: Iterable[str], folder: Path | None) -> dict[str, RaceText]:
    """Return the text of each race.

    A race without a text is left out, with a line, unless a folder was named, which then is refused.
    """
    found: dict[str, RaceText] = {}
    for name in races:
        try:
            text = RACES[name].found(folder)
        except FileNotFoundError as error:
            parser.error(str(error))
        if text is None:
            print(f"{name}: left out; python benchmarks/fetch_texts.py fetches its text", file=sys.stderr)
        else:
            found[name] = text
    if not found:
        parser.error("there is no text to train on")
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--race", nargs="*", choices=list(RACES), default=list(RACES), help="texts to train on")
    parser.add_argument("--rival", nargs="*", choices=RIVALS, default=RIVALS, help="rivals, of those that the race has")
    add_option(parser)
    parser.add_argument("--recipe", type=Path, help="gossamer's recipe (default: the newest record's)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of gossamer")
    parser.add_argument(
        "--parts", type=int, default=10, help="parts of a schedule, after each of which all are measured"
    )
    parser.add_argument("--quick", action="store_true", help="characters alone, with two rivals: under ten minutes")
    parser.add_argument("--sweep", action="store_true", help="find the rivals' learning rates instead of racing")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--plot", type=Path, help="write the picture to this file (.png, .svg)")
    arguments = parser.parse_args()
    file, races = arguments.recipe or newest_record(), list(QUICK) if arguments.quick else arguments.race
    texts = texts_of(parser, races, arguments.texts)
    races = list(texts)
    wanted = {name: [one for one in RACES[name].rivals if one in arguments.rival] for name in races}
    if arguments.sweep:
        for name in races:
            found = {name: sweep(name, wanted[name], file, texts[name])}
            rates = json.loads(LEARNING_RATES.read_text()) if LEARNING_RATES.exists() else {}
            LEARNING_RATES.write_text(json.dumps(rates | found, indent=1) + "\n")
        return
    records = []
    for name in races:
        rivals = QUICK[name] if arguments.quick else wanted[name]
        records.append(run(name, rivals, file, texts[name], arguments.seeds, arguments.parts))
        print(report(records[-1]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(records, indent=1))
    if arguments.plot:
        plot(records, arguments.plot)


if __name__ == "__main__":
    main()
