"""What a run tells while it trains: events for programs, samples in a file, lines and a bar for whoever watches."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gossamer.reading import open_to_append
from gossamer.run.display import Display
from gossamer.run.metrics import MetricsWriter, forget_metrics, read_metrics, write_atomically
from gossamer.train.recipe import Recipe, to_yaml
from gossamer.train.world import World

__all__ = ["SAMPLES_FILE", "Journal"]

SAMPLES_FILE = "samples.txt"


class Journal:
    """Opens a run's records: config.yaml, metrics.jsonl with its boards, samples.txt; on the main process alone.

    Args:
        out: the run's folder
        recipe: of the run
        world: the processes
        step: that the run goes on from
        resumed: whether it goes on from a checkpoint; what was recorded after it is dropped
        again: begin over an earlier beginning, of which nothing is kept
    """

    def __init__(
        self, out: Path, recipe: Recipe, world: World, step: int, resumed: bool = False, again: bool = False
    ) -> None:
        self.out = out
        self.display = Display(recipe.training, step, quiet=not world.is_main)
        self.say = self.display.say
        self.metrics: MetricsWriter | None = None
        self.sampled = 0  # step of the newest sample
        self._opened = ExitStack()
        if not world.is_main:
            return
        if again:
            self.say(f"{out} was stopped before its first checkpoint: beginning again from its start")
            forget_metrics(out)
            (out / SAMPLES_FILE).unlink(missing_ok=True)
        write_atomically(out / "config.yaml", to_yaml(recipe).encode())
        wandb = recipe.training.wandb_project or None
        self.metrics = MetricsWriter(out, step if resumed else None, wandb_project=wandb)
        if resumed:
            self._keep_samples()

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append an event to metrics.jsonl and show it in the boards."""
        if self.metrics is not None:
            self.metrics.write(event, step, **values)

    def sample(self, step: int, text: str) -> None:
        """Keep what the model wrote after so many steps."""
        self.sampled = step
        self.write("sample", step, text=text)
        with open_to_append(self.out / SAMPLES_FILE) as file:
            file.write(_entry(step, text))

    def _keep_samples(self) -> None:
        """Leave in samples.txt what metrics.jsonl has kept: nothing from after the checkpoint, which comes again."""
        events = [event for event in read_metrics(self.out) if event["event"] == "sample"]
        self.sampled = max((event["step"] for event in events), default=0)
        kept = [_entry(event["step"], event["text"]) for event in events]
        write_atomically(self.out / SAMPLES_FILE, b"".join(kept))

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
    return f"--- after step {step}\n{text}\n\n".encode(errors="replace")
