"""One training run, from a recipe to a folder: a step, repeated, and what happens between steps.

Between steps the run is logged, validated, saved and sampled. Whatever stops it, it continues bit for bit from the
newest checkpoint: weights, optimizer, random state and the position in the data are in it.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gossamer import device as devices
from gossamer.data.dataset import Dataset, prepare
from gossamer.errors import UserError
from gossamer.run.budget import BudgetPlan, choose_recipe, read_plan
from gossamer.run.checkpoint import (
    Saver,
    TrainerState,
    checkpoint_to_resume,
    load_checkpoint,
    newest_checkpoint,
    saved_tokenizer,
)
from gossamer.run.cost import CostMeter
from gossamer.run.lock import claimed
from gossamer.run.log import Journal, RunningMean
from gossamer.run.memory import MemoryEstimate, estimate_peak, require_weights
from gossamer.run.pretrained import describe_beginning, keep_generation_config, pretrained_network
from gossamer.run.profile import StepProfile
from gossamer.run.samples import SampleWriter
from gossamer.run.stop import NOTHING_YET, Progress, StopRule, interruptible
from gossamer.run.validate import Evaluation, Validator, validation_set
from gossamer.streams import outliving_readers
from gossamer.train.parallel import gathered_model
from gossamer.train.recipe import Recipe
from gossamer.train.step import Learner, StepResult, training_batches
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
        run = _Run(recipe, out, dataset, world, began, resumed=checkpoint is not None)
        run.begin(checkpoint, plan, again=resume and checkpoint is None)
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


class _Run:
    """A run in progress: what learns, the data, and how far it has come.

    Attributes:
        progress: as of the newest step or pause; a new one replaces it
        skipped: steps in a row whose gradient was not finite
        expert_load: of the newest step, [layers, experts]; None for a dense network
        newest_validation: step and loss of the newest validation, on the set that decides which checkpoint is the best
    """

    journal: Journal

    def __init__(self, recipe: Recipe, out: Path, dataset: Dataset, world: World, began: float, resumed: bool) -> None:
        training = recipe.training
        self.recipe, self.out, self.dataset, self.world = recipe, out, dataset, world
        self.best_by = validation_set(training, dataset)
        self.batches = training_batches(dataset.train, training, world)
        # Before the network is built, since the estimate contains what the process takes without it.
        self.estimate = _require_memory(recipe, world)
        self.costs = CostMeter(out, recipe, world, began)
        if training.init_from and not resumed:
            self.learner = Learner(pretrained_network(recipe, world), recipe, world)
        else:
            self.learner = Learner.from_seed(recipe, world)
        self.validator = Validator(training, dataset, self.learner, world)
        self.samples = SampleWriter(training, dataset)
        self.stop = StopRule(training, self.costs, world)
        self.saver = Saver(out, dataset.tokenizer, training.keep_checkpoints, world)
        self.progress = NOTHING_YET
        self.plan: BudgetPlan | None = None
        self.skipped = 0
        self.expert_load: Tensor | None = None
        self.newest_validation: tuple[int, float] | None = None

    # Beginning.

    def begin(self, checkpoint: Path | None, plan: BudgetPlan | None, again: bool) -> None:
        """Open the run's folder, and continue from a checkpoint if there is one.

        Args:
            checkpoint: the checkpoint's folder
            plan: what the budget is expected to reach, if the run has one
            again: begin over an earlier beginning
        """
        self.plan = plan
        if checkpoint is not None:
            state = self._restore(checkpoint)
            self.batches.load_state_dict(state.data)
            # The run may have become longer since, so that less of it is behind.
            self.progress = self.stop.advance(replace(state.progress, fraction=0.0))
            # A budget may be used up before the run has come to its last validation.
            if self.progress.is_complete and state.progress.is_complete:
                amount, name = self.stop.setting
                raise UserError(
                    f"{self.out} is complete, it has taken its {amount} {name}; "
                    f"continue it with a larger --training.{name}"
                )
        resumed, step = checkpoint is not None, self.progress.step
        self.journal = Journal(self.out, self.recipe, self.world, step, resumed, again)
        self.journal.begin(resumed, step, self.dataset, self.learner, self.costs, self.estimate, plan)
        if self.recipe.training.init_from and not resumed:
            self.journal.say(describe_beginning(self.recipe))
            self.world.call_on_main(lambda: keep_generation_config(self.recipe, self.out / "model"))
        if self.samples.words:
            self.journal.say(f"samples continue held-out words: {self.samples.words!r}")
        self.costs.begin(step, state.ledger if checkpoint is not None else None)

    def _restore(self, checkpoint: Path) -> TrainerState:
        """Put back the weights, the optimizer and the random state of a checkpoint, and return the rest of it."""
        return load_checkpoint(checkpoint, self.learner.model, self.learner.optimizers, self.world)

    # Training.

    def train(self, profile: bool, on_step: Callable[[Progress], None]) -> int:
        """Take the steps that are left, then validate, save and sample. Return the signal that ended it, or 0."""
        training = self.recipe.training
        with self.journal, self.costs, self.saver, self._profile(profile) as profiler, interruptible() as signals:
            is_sample_due = not self.progress.is_complete and _is_due(self.progress, training.sample_every)
            if is_sample_due and self._is_sample_missing():
                self._sample()  # the run was ended between a save and its sample
            if self.progress.step == 0 and training.bigram_steps:
                self._start_from_bigrams()
            if self.progress.step == 0 and training.init_from:
                self._validate_checkpoint()
            means = RunningMean(self.progress.elapsed)
            while not self.progress.is_complete and not self._signal(signals):
                result = self._step()
                if profiler is not None:
                    profiler.step()
                if result.is_taken:
                    means.add(result.values)
                    if _is_due(self.progress, training.log_every) or self.progress.is_complete:
                        means = self._log(means)
                    if not self.progress.is_complete:
                        self._pause()
                else:
                    self._skip(result)
                on_step(self.progress)
            # A pause has used up the budget, or the last step was skipped.
            if self.progress.is_complete and means.count:
                self._log(means)
            stopped_by = 0 if self.progress.is_complete else self._signal(signals)
            if stopped_by:
                self._save(wait=True)
                step = self.progress.step
                self.journal.say(f"stopped after step {step}; continue with gossamer train --resume --out {self.out}")
            else:
                self._finish()
            self.journal.say(self.costs.summary())
        return stopped_by

    def _profile(self, wanted: bool) -> StepProfile | nullcontext[None]:
        """Return what records some steps on the main process, if that is wanted."""
        if not (wanted and self.world.is_main):
            return nullcontext()
        return StepProfile(self.out, self.world.device, self.progress.step, self.journal.say)

    def _signal(self, caught: list[int]) -> int:
        """Return the signal that any process has caught, 0 if none has: all stop after the same step."""
        return self.world.max_over_ranks(caught[0] if caught else 0)

    def _start_from_bigrams(self) -> None:
        """Teach the embedding and the head the bigrams of the text, before the network's first step."""
        began, steps = time.perf_counter(), self.recipe.training.bigram_steps
        found = self.learner.start_from_bigrams(self.dataset.train)
        seconds = self.world.mean_over_ranks(time.perf_counter() - began)
        self.costs.book_work({"head": found.flops})
        self._advance(seconds=seconds)
        self.journal.write("pairs", self.progress.step, loss=found.loss, seconds=seconds)
        self.journal.say(f"{steps} steps on {found.bigrams:,} bigrams: loss {found.loss:.4f} in {duration(seconds)}")

    def _step(self) -> StepResult:
        """Take one step of the optimizer; after it, `progress` is as of that step."""
        began = time.perf_counter()
        rate = self.learner.scheduled_rate(self.progress.step + 1, self.progress.fraction)
        batches = [next(self.batches) for _ in range(self.recipe.training.gradient_accumulation)]
        result = self.learner.step(batches, rate)
        seconds = self.world.mean_over_ranks(time.perf_counter() - began)
        self.costs.book_step(result.is_taken)
        self._advance(steps=1, tokens=self.costs.tokens_per_step, seconds=seconds)
        self.expert_load = result.load
        self.skipped = 0 if result.is_taken else self.skipped + 1
        return result

    def _advance(self, steps: int = 0, tokens: int = 0, seconds: float = 0.0) -> None:
        """Replace the progress, after a step or a pause. Every process calls this; nothing else does it in training."""
        if self.saver.seconds is not None:
            self.stop.record_pause("save", self.saver.seconds)
        self.progress = self.stop.advance(self.progress, steps, tokens, seconds)

    def _skip(self, result: StepResult) -> None:
        """Log a step that was not taken; after too many in a row go back to the newest checkpoint.

        Time and data do not go back: what was lost has been paid for, and the same batches would fail again.
        """
        step, norm, loss = self.progress.step, float(result.values["grad_norm"]), float(result.values["loss"])
        self.journal.write("skip", step, reason=f"gradient norm {norm}, loss {loss}")
        what = "its gradient is" if math.isfinite(loss) else f"its loss is {loss}, and its gradient"
        self.journal.say(f"step {step} skipped: {what} not finite")
        if self.skipped < self.recipe.training.max_skips:
            return
        self.saver.wait()
        checkpoint = self.world.call_on_main(lambda: newest_checkpoint(self.out))
        if checkpoint is None:
            raise UserError(
                f"{self.skipped} steps in a row had no finite gradient, and there is no checkpoint to go back to; "
                "a smaller --optimizer.learning_rate or --optimizer.grad_clip may help"
            )
        state = self._restore(checkpoint)
        self.costs.roll_back(state.ledger)
        self._advance()
        self.skipped = 0
        self.journal.write("rollback", step, to=state.progress.step)
        self.journal.say(f"went back to the weights after step {state.progress.step}")

    # Between steps.

    def _log(self, means: RunningMean) -> RunningMean:
        """Log the means over some steps, and return what counts the next ones."""
        self.journal.record_means(self.progress, means, self.learner, self.costs)
        return RunningMean(self.progress.elapsed)

    def _pause(self) -> None:
        """Validate, save and sample as far as it is due."""
        training = self.recipe.training
        if _is_due(self.progress, training.eval_every):
            self._validate()
        if _is_due(self.progress, training.checkpoint_every):
            self._save()
        if _is_due(self.progress, training.sample_every):
            self._sample()
        self.saver.check()
        self._advance()

    def _validate(self) -> None:
        """Measure every held-out set."""
        results, spent = {}, self.costs.spent()
        for name, found in self.validator.measure():
            results[name] = found
            self.journal.record_evaluation("eval", self.progress, name, found, spent)
        self._record_validation(results[self.best_by], sum(found.tokens for found in results.values()))

    def _validate_checkpoint(self) -> None:
        """Measure what the checkpoint that the run begins with can do before it learns.

        Raises:
            UserError: its loss is not finite.
        """
        self._validate()
        _, loss = self.newest_validation or (0, 0.0)
        if not math.isfinite(loss):
            raise UserError(
                f"{self.recipe.training.init_from}: its loss on the held-out text is {loss}, so its weights are damaged"
            )
        self._advance()

    def _validate_last(self) -> Evaluation:
        """Measure every held-out set over more text, and return the result on the set that decides."""
        results, spent = {}, self.costs.spent()
        for name, found in self.validator.measure_last(self.stop.batches_in_time):
            results[name] = found
            if found.comparable is not None:
                self.journal.record_evaluation("eval", self.progress, name, found.comparable, spent)
            self.journal.record_evaluation("end", self.progress, name, found.whole, spent)
        result = results[self.best_by]
        self._record_validation(
            result.comparable or result.whole, sum(found.whole.tokens for found in results.values())
        )
        return result.whole

    def _record_validation(self, result: Evaluation, tokens: int) -> None:
        """Note the newest result on the set that decides, and how long it took to read so many tokens of all sets."""
        self.newest_validation = self.progress.step, result.loss
        self.journal.record_validation(self.progress, result.loss, self.expert_load)
        seconds, share = self.costs.book("evaluation"), self.validator.share_of_last(tokens)
        self.stop.record_pause("validation", seconds, share)

    def _is_sample_missing(self) -> bool:
        """Whether the newest step, if there was one, has no sample yet."""
        step = self.progress.step
        return step > 0 and self.world.call_on_main(lambda: self.journal.sampled_step != step)

    def _sample(self) -> None:
        """Let the network write, on the main process."""
        model, text = gathered_model(self.learner.model, self.world), None
        if model is None:
            self.costs.book("samples")
            return
        with self.journal.optional("sample", self.progress.step):
            text = self.samples.write(model)
        if text is not None:
            self.journal.record_sample(self.progress.step, text)
        self.stop.record_pause("sample", self.costs.book("samples"))

    def _save(self, wait: bool = False) -> None:
        """Begin to write a checkpoint and the model, or write them with `wait`."""
        step, loss = self.newest_validation or (-1, math.nan)
        is_valid = step == self.progress.step and math.isfinite(loss)
        state = TrainerState(
            self.progress, self.batches.state_dict(), self.costs.snapshot(), loss if is_valid else None
        )
        seconds = self.saver.save(self.learner.model, self.learner.optimizers, state, wait)
        self.journal.write("checkpoint", self.progress.step, seconds=seconds)
        self.costs.book("checkpoints")
        self.costs.update(self.progress.fraction, write=True)

    # The end.

    def _finish(self) -> None:
        """Do what comes after the last step."""
        last = self._validate_last()
        self._save(wait=True)  # before what may fail: a sample is worth less than what was learned
        self._sample()
        self.costs.update(self.progress.fraction, write=True)
        self.journal.end(self.progress, last, self.plan)

    def report(self, report: Callable[[Path], Path] | None, stopped_by: int) -> None:
        """Write the report, and say which command shows what the run has learned."""
        if not self.world.is_main:
            return
        step = self.progress.step
        if report is not None:
            with self.journal.optional("report", step):
                self.journal.say(f"report: {report(self.out)}")
        if not stopped_by:
            with self.journal.optional("hint at the next command", step):
                self.journal.suggest(self.samples.suggested_prompt())


def _is_due(progress: Progress, every: int) -> bool:
    """Whether something that comes every so many steps, 0 for never, comes after the newest one."""
    return every > 0 and progress.step % every == 0
