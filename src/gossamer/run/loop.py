"""One training run, from a recipe to a folder: what a network learns from text, and the loop around that."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from gossamer import device as devices
from gossamer.data.dataset import Dataset, prepare
from gossamer.run.budget import BudgetPlan, choose_recipe, read_plan
from gossamer.run.checkpoint import checkpoint_to_resume, copy_model, saved_tokenizer
from gossamer.run.cost import CostMeter
from gossamer.run.lock import claimed
from gossamer.run.memory import MemoryEstimate, estimate_peak, require_weights
from gossamer.run.parts import Description, Parts, TextBatches
from gossamer.run.pretrained import describe_beginning, keep_generation_config, pretrained_network
from gossamer.run.samples import SampleWriter, next_command, why_unreadable
from gossamer.run.stop import Progress
from gossamer.run.training_run import TrainingRun
from gossamer.run.validate import Validator, validation_set
from gossamer.streams import outliving_readers
from gossamer.train.recipe import Recipe
from gossamer.train.step import Learner, training_batches
from gossamer.train.world import World
from gossamer.units import duration

__all__ = ["train"]


def train(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    profile: bool = False,
    sized_by_budget: bool = False,
    began: float | None = None,
    report: Callable[[Path], Path] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> None:
    """Train by a recipe into a folder.

    SIGTERM, SIGHUP (a closed terminal) and Ctrl-C are acted on between steps: the run is saved, and this function
    returns or raises. A closed standard error does not stop it.

    Args:
        recipe: all that decides the run
        out: its folder
        resume: continue from the newest checkpoint there, or begin again if there is none
        profile: write a trace of a few steps of the main process there, too
        sized_by_budget: first choose the size, the batch and the learning rate for the recipe's budget
        began: when the command began, by `time.perf_counter`, if that was before this call
        report: writes a page about the run into its folder when it ends, and returns the page's path
        on_step: called on every process after each step, once the log, the validation, the checkpoint and the sample
            that are due after it are done. What it raises ends the run as an error of the run itself would.

    Raises:
        UserError: the data, the device or the checkpoint does not allow it, or another process trains there; nothing
            is left half-written.
        KeyboardInterrupt: after Ctrl-C, once the run is saved.
    """
    began = time.perf_counter() if began is None else began
    devices.keep_freed_memory()
    world = World.join(devices.resolve(recipe.training.device))
    with outliving_readers(), closing(world), claimed(out, world):
        # The text tells how large the vocabulary is. What is too large even without one need not wait for the text.
        _require_memory(_with_vocabulary(recipe, 1), world)
        checkpoint = world.call_on_main(lambda: checkpoint_to_resume(out)) if resume else None
        dataset = prepare(recipe.corpus, saved_tokenizer(out) if checkpoint else None, progress=world.is_main)
        recipe = _with_vocabulary(recipe, dataset.tokenizer.vocab_size)
        plan = world.call_on_main(lambda: read_plan(out)) if resume else None
        if sized_by_budget:
            recipe, plan = choose_recipe(recipe, dataset, world, began)
        resumed = checkpoint is not None
        # Before the network is built, since the estimate contains what the process takes without it.
        estimate = _require_memory(recipe, world)
        costs = CostMeter(out, recipe, world, began)
        run = _Pretraining(recipe, out, dataset, world, costs, estimate, resumed, plan)
        run.begin(checkpoint, plan, again=resume and not resumed)
        stopped_by = run.train(profile, on_step or (lambda progress: None))
        run.report(report, stopped_by)
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt


def _with_vocabulary(recipe: Recipe, size: int) -> Recipe:
    """Return a recipe with a vocabulary of this size, unless its network comes from a checkpoint."""
    if recipe.training.init_from:
        return recipe
    return replace(recipe, model=replace(recipe.model, vocab_size=size))


def _require_memory(recipe: Recipe, world: World) -> MemoryEstimate:
    """Return what a process will take of the device's memory.

    Raises:
        UserError: the device does not have it.
    """
    require_weights(recipe.model, world.size, world.device, world.ranks_per_device)
    estimate = estimate_peak(recipe, world.device, world.size)
    estimate.require(world.device, world.ranks_per_device)
    return estimate


class _Pretraining(TrainingRun):
    """A run that learns from text."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        dataset: Dataset,
        world: World,
        costs: CostMeter,
        estimate: MemoryEstimate,
        resumed: bool,
        plan: BudgetPlan | None,
    ) -> None:
        training = recipe.training
        best_by = validation_set(training, dataset)
        batches = TextBatches(training_batches(dataset.train, training, world), training.gradient_accumulation)
        if training.init_from and not resumed:
            learner = Learner(pretrained_network(recipe, world), recipe, world)
        else:
            learner = Learner.from_seed(recipe, world)
        samples = SampleWriter(training, dataset)
        parts = Parts(
            learner,
            batches,
            Validator(training, dataset, learner, world, best_by),
            samples,
            _description(recipe, dataset, samples, plan),
            partial(copy_model, out, dataset.tokenizer, world),
            resume_command=f"gossamer train --resume --out {shlex.quote(str(out))}",
            next_command=lambda: next_command(out, samples.suggested_prompt()),
        )
        super().__init__(recipe, out, parts, costs, estimate, world)
        self._dataset = dataset

    def begun(self) -> None:
        """Keep what belongs to the checkpoint that the run begins with."""
        if self.recipe.training.init_from:
            self.journal.say(describe_beginning(self.recipe))
            self.world.call_on_main(lambda: keep_generation_config(self.recipe, self.out / "model"))

    def before_first_step(self) -> None:
        """Teach the bigrams of the text, or measure the checkpoint that the run begins with."""
        if self.recipe.training.bigram_steps:
            self._start_from_bigrams()
        if self.recipe.training.init_from:
            self.validate_checkpoint()

    def _start_from_bigrams(self) -> None:
        """Teach the embedding and the head the bigrams of the text, before the network's first step."""
        began, steps = time.perf_counter(), self.recipe.training.bigram_steps
        found = self.learner.start_from_bigrams(self._dataset.train)
        seconds = self.world.mean_over_ranks(time.perf_counter() - began)
        self.costs.book_work({"head": found.flops})
        self.advance(seconds=seconds)
        self.journal.write("pairs", self.progress.step, loss=found.loss, seconds=seconds)
        self.journal.say(f"{steps} steps on {found.bigrams:,} bigrams: loss {found.loss:.4f} in {duration(seconds)}")


def _description(recipe: Recipe, dataset: Dataset, samples: SampleWriter, plan: BudgetPlan | None) -> Description:
    """Return what is said of the text, and what is likely to be a mistake in it."""
    training = recipe.training
    warnings = [dataset.warning()]
    if reason := why_unreadable(training.sample_prompt, dataset.tokenizer):
        warnings.append(f"samples begin without training.sample_prompt: {reason}")
    if plan is not None:
        warnings.append(plan.warning(training.budget, dataset.train.num_bytes))
    notes = (f"samples continue held-out words: {samples.words!r}",) if samples.words else ()
    return Description(dataset.description, notes, tuple(line for line in warnings if line is not None))
