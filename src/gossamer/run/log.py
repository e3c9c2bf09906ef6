"""What a run tells while it trains: lines and a bar for people, events for programs, samples in a file."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich import progress as rich_progress
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gossamer import __version__, ops
from gossamer import device as devices
from gossamer.cost.network import count_network
from gossamer.errors import exception_line
from gossamer.files import write_atomically
from gossamer.hub.find import RUN_CONFIG
from gossamer.reading import open_to_append
from gossamer.run.budget import BudgetPlan
from gossamer.run.cost import CostMeter
from gossamer.run.memory import MemoryEstimate
from gossamer.run.metrics import MetricsWriter, forget_metrics, read_metrics
from gossamer.run.parts import Description
from gossamer.run.stop import Progress
from gossamer.run.validate import Evaluation
from gossamer.train.balance import describe_load
from gossamer.train.config import TrainingConfig
from gossamer.train.recipe import Recipe, to_yaml
from gossamer.train.step import Learner
from gossamer.train.world import World
from gossamer.units import SIZES, duration, network_words

__all__ = ["SAMPLES_FILE", "Display", "Journal", "RunningMean", "fitting"]

SAMPLES_FILE = "samples.txt"
_MIN_BAR, _MAX_BAR = 8, 40  # characters
_LINE_EVERY = 10.0  # seconds

log = logging.getLogger("gossamer")


class Journal:
    """A run's records: config.yaml, metrics.jsonl with its boards, samples.txt, and what is shown on standard error.

    Only the main process writes and shows them; on the others lines and events go nowhere.

    Args:
        out: the run's folder
        recipe: the run's recipe
        world: the processes
        step: the step that the run continues from
        resumed: whether it continues from a checkpoint; what was recorded after that is dropped
        again: whether it begins over an earlier beginning, which is removed
    """

    def __init__(
        self, out: Path, recipe: Recipe, world: World, step: int, resumed: bool = False, again: bool = False
    ) -> None:
        self.out, self.recipe, self.world = out, recipe, world
        self.display = Display(recipe.training, step, quiet=not world.is_main)
        self.say = self.display.say
        self.metrics: MetricsWriter | None = None
        self.sampled_step = 0  # of the newest sample
        self._opened = ExitStack()
        if not world.is_main:
            return
        if again:
            self.say(f"{out} was stopped before its first checkpoint: beginning again from its start")
            forget_metrics(out)
            (out / SAMPLES_FILE).unlink(missing_ok=True)
        write_atomically(out / RUN_CONFIG, to_yaml(recipe))
        wandb = recipe.training.wandb_project or None
        self.metrics = MetricsWriter(out, step if resumed else None, wandb_project=wandb)
        if resumed:
            self._drop_later_samples()

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append an event to metrics.jsonl and show it in the boards."""
        if self.metrics is not None:
            self.metrics.write(event, step, **values)

    @contextmanager
    def optional(self, what: str, step: int) -> Iterator[None]:
        """Report a failure in something that a run can do without, and continue the run."""
        try:
            yield
        except Exception as error:
            self.say(f"no {what} after step {step} ({exception_line(error, 300)}); the run itself is whole")
            log.debug("no %s", what, exc_info=True)

    # The beginning and the end.

    def begin(
        self,
        resumed: bool,
        step: int,
        description: Description,
        learner: Learner,
        costs: CostMeter,
        estimate: MemoryEstimate,
        plan: BudgetPlan | None,
    ) -> None:
        """Record that the run begins or continues, and describe it in lines."""
        if resumed:
            self.write("resume", step)
            self.say(f"resuming {self.out} after step {step}")
        else:
            self.say(f"beginning {self.out}")
            self.write("start", step, **self._start_facts(description, learner, costs))
            if plan is not None:
                self.write("plan", step, **asdict(plan))
        self._describe(description, learner, costs, estimate, plan)

    def _start_facts(self, description: Description, learner: Learner, costs: CostMeter) -> dict[str, Any]:
        """Return what the event `start` holds; see `gossamer.run.metrics`."""
        counts = count_network(self.recipe.model, self.recipe.training.sequence_length)
        return {
            "gossamer": __version__,
            "torch": torch.__version__,
            "device": devices.device_name(learner.device),
            **dict(zip(SIZES, counts.sizes, strict=True)),
            "flops_per_token": costs.flops_per_token,
            "tokens_per_step": costs.tokens_per_step,
            "steps": self.recipe.training.steps,
            "corpus": description.corpus,
        }

    def _describe(
        self,
        description: Description,
        learner: Learner,
        costs: CostMeter,
        estimate: MemoryEstimate,
        plan: BudgetPlan | None,
    ) -> None:
        """Say what the text, the network and the plan are and what the run will take, and warn of likely mistakes."""
        world, training = self.world, self.recipe.training
        self.say(description.corpus)
        for line in description.warnings:
            self._warn(line)
        self.say(network_words(*count_network(self.recipe.model, training.sequence_length).sizes))
        dtype, device = str(learner.dtype).removeprefix("torch."), devices.device_name(learner.device)
        self.say(f"steps of {costs.tokens_per_step:,} tokens in {dtype} on {world.size} x {device}")
        if plan is not None:
            self.say(plan.describe(training.budget))
        self.say(estimate.describe())
        if not estimate.fits(world.device, world.ranks_per_device):
            self._warn(
                "that is more than the device has; a smaller training.batch_size, or training.recompute, needs less"
            )
        runs = Counter(found["runs"] for found in ops.describe(learner.device).values())
        chosen = ", ".join(f"{count} {name}" for name, count in runs.most_common())
        self.say(f"operations: {chosen} (gossamer doctor lists them)")
        self.say(costs.describe_peak())
        for line in description.notes:
            self.say(line)

    def _warn(self, line: str) -> None:
        if self.world.is_main:
            log.warning(line)

    def end(self, progress: Progress, last: Evaluation, plan: BudgetPlan | None) -> None:
        """Say what the run has come to."""
        self.say(
            f"validation loss {last.loss:.4f} nats per token, {last.bits_per_byte:.4f} bits per byte, over "
            f"{last.tokens:,} held-out tokens, after {progress.tokens:,} tokens in "
            f"{duration(round(progress.elapsed))} of training"
        )
        if plan is not None:
            self.say(plan.outcome(last.bits_per_byte))

    # Between steps.

    def record_means(self, progress: Progress, means: RunningMean, learner: Learner, costs: CostMeter) -> None:
        """Record and show the means over some steps."""
        values = means.values()
        speed = means.tokens / (progress.elapsed - means.began)
        mfu = costs.mfu(speed)
        costs.update(progress.fraction)
        self.write(
            "train",
            progress.step,
            tokens=progress.tokens,
            elapsed=progress.elapsed,
            learning_rate=learner.learning_rate,
            tokens_per_second=speed,
            mfu=mfu,
            memory=devices.peak_memory(learner.device),
            **values,
        )
        self.display.step(progress, loss=values["loss"], speed=speed, cost=costs.brief(mfu))

    def record_evaluation(
        self, event: str, progress: Progress, name: str, found: Evaluation, spent: dict[str, float]
    ) -> None:
        """Record an evaluation of the held-out set `name`, with all that the run had spent by then."""
        measured = asdict(found)
        measured["eval_tokens"] = measured.pop("tokens")  # an event's tokens are those trained on
        measured["mtp_acceptance"] = list(found.mtp_acceptance) or None
        place = {"tokens": progress.tokens, "elapsed": progress.elapsed}
        self.write(event, progress.step, **place, **spent, set=name, **measured)

    def record_validation(self, progress: Progress, loss: float, expert_load: Tensor | None) -> None:
        """Show the newest loss on the set that decides, and record how busy the experts were."""
        if expert_load is not None:
            self.write("experts", progress.step, tokens=progress.tokens, **describe_load(expert_load))
        self.display.step(progress, validation=loss)

    def record_sample(self, step: int, text: str) -> None:
        """Keep what the model wrote after a step."""
        self.sampled_step = step
        self.write("sample", step, text=text)
        with open_to_append(self.out / SAMPLES_FILE) as file:
            file.write(_entry(step, text))

    def _drop_later_samples(self) -> None:
        """Leave in samples.txt what is left in metrics.jsonl: samples from after the checkpoint come again."""
        events = [event for event in read_metrics(self.out) if event["event"] == "sample"]
        self.sampled_step = max((event["step"] for event in events), default=0)
        entries = [_entry(event["step"], event["text"]) for event in events]
        write_atomically(self.out / SAMPLES_FILE, b"".join(entries))

    def __enter__(self) -> Self:
        self._opened.enter_context(self.display)
        if self.metrics is not None:
            self._opened.enter_context(self.metrics)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)


def _entry(step: int, text: str) -> bytes:
    """Return a sample as samples.txt holds it."""
    return f"--- after step {step}\n{text}\n\n".encode(errors="replace")


class RunningMean:
    """Means of what steps return, over the steps since it was made; they are read from the device once.

    Args:
        began: the run's seconds of training before the first of these steps
    """

    def __init__(self, began: float) -> None:
        self.began, self.count, self.tokens, self._sums = began, 0, 0, dict[str, Tensor]()

    def add(self, values: dict[str, Tensor], tokens: int) -> None:
        """Count a step of so many tokens in."""
        self.count += 1
        self.tokens += tokens
        for name, value in values.items():
            self._sums[name] = value + self._sums.get(name, 0.0)

    def values(self) -> dict[str, float]:
        """Return the means."""
        return {name: float(total) / self.count for name, total in self._sums.items()}


class Display:
    """Shows steps, losses and speed on standard error: a bar in a terminal, a line now and then elsewhere.

    Args:
        training: says what ends the run
        step: steps taken before this start
        quiet: show nothing, as all processes but one do
    """

    def __init__(self, training: TrainingConfig, step: int = 0, quiet: bool = False) -> None:
        self.console, self._quiet = Console(stderr=True, highlight=False, quiet=quiet), quiet
        self._printed = time.monotonic()
        ends_by_steps = not (training.budget or training.seconds or training.tokens)
        self._steps = f"/{training.steps}" if ends_by_steps else ""
        self._newest = dict[str, Any]()  # for the bar
        self._unprinted = dict[str, Any]()  # what no line has shown yet
        hidden = not self.console.is_terminal
        self._bar = rich_progress.Progress(_Line(self.console), console=self.console, disable=hidden)
        self._task = self._bar.add_task("train", total=1.0, step=f"step {step}{self._steps}", numbers=[], left="-")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, markup=False, soft_wrap=True)

    def step(self, progress: Progress, **values: float | str) -> None:
        """Move the bar and show values that are new.

        A line shows those that are newer than the line before; the bar keeps the newest of each.

        Args:
            progress: how far the run has come
            values: some of loss and validation (nats), speed (tokens/s) and cost (in words)
        """
        self._newest |= values
        self._unprinted |= values
        left = "unknown"  # before the first step
        if progress.fraction:
            left = str(timedelta(seconds=round(progress.elapsed / progress.fraction * (1 - progress.fraction))))
        shown = f"step {progress.step}{self._steps}"
        numbers = _numbers(self._newest)
        self._bar.update(self._task, completed=progress.fraction, step=shown, numbers=numbers, left=left)
        if not self.console.is_terminal and not self._quiet and ("validation" in values or self._is_time()):
            print("  ".join([shown, *_numbers(self._unprinted), f"left {left}"]), file=sys.stderr, flush=True)
            self._unprinted.clear()

    def _is_time(self) -> bool:
        """Whether it is time for a line that shows, where there is no terminal, that the run is alive."""
        now = time.monotonic()
        if due := now - self._printed >= _LINE_EVERY:
            self._printed = now
        return due

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _numbers(values: dict[str, Any]) -> list[str]:
    """Return what there is to show, the most important first."""
    loss, validation, speed = (values.get(name) for name in ("loss", "validation", "speed"))
    parts = [
        "" if loss is None else f"loss {loss:.3f}",
        "" if validation is None else f"validation {validation:.3f}",
        "" if speed is None else f"{speed:,.0f} tokens/s",
        *values.get("cost", "").split("  "),
    ]
    return [part for part in parts if part]


def fitting(width: int, step: str, numbers: list[str], elapsed: str, left: str) -> tuple[str, int, str]:
    """Choose what of a progress line there is room for.

    The step and the time left are always shown; then numbers in their order, the time that has passed, and a bar.

    Returns:
        What stands before the bar, the bar's width, and what stands behind it.
    """
    shown = list[str]()
    end = f"left {left}"
    room = width - len(step) - len(end) - 2
    for number in numbers:
        if len(number) + 2 > room:
            break  # what matters less is not shown without what matters more
        shown.append(number)
        room -= len(number) + 2
    else:
        if len(elapsed) + 2 <= room:
            shown.append(elapsed)
            room -= len(elapsed) + 2
    bar = min(room - 2, _MAX_BAR)
    return step, bar if bar >= _MIN_BAR else 0, "  ".join([*shown, end])


class _Line(rich_progress.ProgressColumn):
    """The whole line, made to the width that the terminal has at the moment."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: rich_progress.Task) -> Table:
        """Return the line as a table of one row; rich calls this."""
        elapsed = str(timedelta(seconds=int(task.elapsed or 0)))
        fields = task.fields
        step, bar, rest = fitting(self._console.width - 1, fields["step"], fields["numbers"], elapsed, fields["left"])
        parts: list[Text | ProgressBar] = [Text(step, no_wrap=True, overflow="crop"), Text(rest, no_wrap=True)]
        if bar:
            parts.insert(1, ProgressBar(total=1.0, completed=task.completed, width=bar))
        line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        line.add_row(*parts)
        return line
