"""Saving a run while it goes on: what training changes is copied, and a thread writes the copy."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.optim import Optimizer

from gossamer import hub
from gossamer.data.tokenizer import Tokenizer
from gossamer.model.causal_lm import CausalLM
from gossamer.run.checkpoint import prune_checkpoints, save_checkpoint, snapshot
from gossamer.train.parallel import gathered_model
from gossamer.train.world import World


class Saver:
    """Writes a run's model/ and checkpoints/ in the background, one save at a time.

    Args:
        run: the run's folder, which all processes see
        tokenizer: saved beside the model
        keep: newest checkpoints that stay, beside the best
        world: the processes; their savers talk on a line of their own
    """

    def __init__(self, run: Path, tokenizer: Tokenizer, keep: int, world: World) -> None:
        self.run, self.tokenizer, self.keep = run, tokenizer, keep
        self.world, self.aside = world, world.aside()
        self.seconds: float | None = None  # that the newest save took as a whole
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, step: int, model: CausalLM, optimizers: list[Optimizer], progress: dict[str, Any], wait: bool = False
    ) -> float:
        """Copy the state after `step` and begin to write it; every process calls this. With `wait` finish it, too.

        Returns:
            Seconds that training has waited, for the save before this one to end and for the copy.

        Raises:
            UserError: this save, or the one before it, could not be written.
        """
        began = time.perf_counter()
        self.wait()
        state, whole = snapshot(model, optimizers), gathered_model(model, self.world, copy=True)
        # Not a daemon: a program that ends lets it finish.
        self._thread = threading.Thread(target=self._write, args=(began, step, state, whole, progress), name="saver")
        self._thread.start()
        if wait:
            self.wait()
        return time.perf_counter() - began

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until nothing is being written; raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the save that is under way end, whatever ends the training; its error counts if there is no other."""
        try:
            self.wait()
        except Exception:
            if error is None:
                raise

    def _write(
        self, began: float, step: int, state: dict[str, Any], whole: CausalLM | None, progress: dict[str, Any]
    ) -> None:
        try:
            if whole is not None:
                hub.save(whole, self.run / "model", self.tokenizer)
            save_checkpoint(self.run, step, state, progress, self.aside)
            if self.world.is_main:
                prune_checkpoints(self.run, self.keep)
            self.seconds = time.perf_counter() - began
        except BaseException as error:  # told to whoever trains
            self._error = error
