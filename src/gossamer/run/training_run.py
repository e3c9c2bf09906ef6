"""A run in progress: a step, repeated, and what happens between steps.

Between steps the run is logged, validated, saved and sampled. Whatever stops it, it continues bit for bit from the
newest checkpoint: weights, optimizer, random state and the position in the data are in it. What it learns from and how
it is measured is said by its parts, so that pretraining and tuning are the same loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gossamer.errors import UserError
from gossamer.run.budget import BudgetPlan
from gossamer.run.checkpoint import Saver, TrainerState, load_checkpoint, newest_checkpoint
from gossamer.run.cost import CostMeter
from gossamer.run.log import Journal, RunningMean
from gossamer.run.memory import MemoryEstimate
from gossamer.run.parts import Parts
from gossamer.run.profile import StepProfile
from gossamer.run.stop import NOTHING_YET, Progress, StopRule, interruptible
from gossamer.run.validate import Evaluation
from gossamer.train.parallel import gathered_model
from gossamer.train.recipe import Recipe
from gossamer.train.step import StepResult
from gossamer.train.world import World

__all__ = ["TrainingRun"]


class TrainingRun:
    """A run in progress: what it works on, and how far it has come.

    Args:
        recipe: all that decides the run
        out: its folder
        parts: what it works on
        costs: books what it spends
        estimate: what a process will take of its device's memory
        world: the processes

    Attributes:
        progress: as of the newest step or pause; a new one replaces it
        skipped: steps in a row whose gradient was not finite
        expert_load: of the newest step, [layers, experts]; None for a dense network
        newest_validation: step and loss of the newest validation, on the set that decides which checkpoint is the best
    """

    journal: Journal

    def __init__(
        self, recipe: Recipe, out: Path, parts: Parts, costs: CostMeter, estimate: MemoryEstimate, world: World
    ) -> None:
        training = recipe.training
        self.recipe, self.out, self.parts, self.world = recipe, out, parts, world
        self.costs, self.estimate = costs, estimate
        self.learner, self.batches, self.validator = parts.learner, parts.batches, parts.validator
        self.stop = StopRule(training, costs, world)
        self.saver = Saver(out, parts.copy_model, training.keep_checkpoints, world, parts.keeps_trained_only)
        self.progress = NOTHING_YET
        self.plan: BudgetPlan | None = None
        self.skipped = 0
        self.expert_load: Tensor | None = None
        self.newest_validation: tuple[int, float] | None = None

    # What pretraining and tuning do besides.

    def begun(self) -> None:
        """Do what a run that begins does before its first step, once its records are open."""

    def before_first_step(self) -> None:
        """Do what has to be done while the network is as it begins."""

    def finished(self) -> None:
        """Do what comes after the last step and all that is written then."""

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
                amount = f"{self.progress.step:,}" if name == "steps" else amount
                raise UserError(
                    f"{self.out} is complete, it has taken its {amount} {name}; "
                    f"continue it with a larger --training.{name}"
                )
        resumed, step = checkpoint is not None, self.progress.step
        self.journal = Journal(self.out, self.recipe, self.world, step, resumed, again)
        self.journal.begin(resumed, step, self.parts.description, self.learner, self.costs, self.estimate, plan)
        if not resumed:
            self.begun()
        self.costs.begin(step, state.ledger if checkpoint is not None else None)

    def _restore(self, checkpoint: Path) -> TrainerState:
        """Put back the weights, the optimizer and the random state of a checkpoint, and return the rest of it."""
        learner, trained_only = self.learner, self.parts.keeps_trained_only
        return load_checkpoint(checkpoint, learner.model, learner.optimizers, self.world, trained_only)

    # Training.

    def train(self, profile: bool, on_step: Callable[[Progress], None]) -> int:
        """Take the steps that are left, then validate, save and sample. Return the signal that ended it, or 0."""
        training = self.recipe.training
        with self.journal, self.costs, self.saver, self._profile(profile) as profiler, interruptible() as signals:
            is_sample_due = not self.progress.is_complete and _is_due(self.progress, training.sample_every)
            if is_sample_due and self._is_sample_missing():
                self._sample()  # the run was ended between a save and its sample
            if self.progress.step == 0:
                self.before_first_step()
            means = RunningMean(self.progress.elapsed)
            while not self.progress.is_complete and not self._signal(signals):
                result = self._step()
                if profiler is not None:
                    profiler.step()
                if result.is_taken:
                    means.add(result.values, self.batches.step_tokens)
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
                self.journal.say(f"stopped after step {self.progress.step}; continue with {self.parts.resume_command}")
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

    def _step(self) -> StepResult:
        """Take one step of the optimizer; after it, `progress` is as of that step."""
        began = time.perf_counter()
        rate = self.learner.scheduled_rate(self.progress.step + 1, self.progress.fraction)
        result = self.learner.step(self.batches.next_step(), rate)
        seconds, tokens = self.world.mean_over_ranks(time.perf_counter() - began), self.batches.step_tokens
        self.costs.book_step(result.is_taken, tokens)
        self.advance(steps=1, tokens=tokens, seconds=seconds)
        self.expert_load = result.load
        self.skipped = 0 if result.is_taken else self.skipped + 1
        return result

    def advance(self, steps: int = 0, tokens: int = 0, seconds: float = 0.0) -> None:
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
        self.advance()
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
            self.validate()
        if _is_due(self.progress, training.checkpoint_every):
            self._save()
        if _is_due(self.progress, training.sample_every):
            self._sample()
        self.saver.check()
        self.advance()

    def validate(self) -> None:
        """Measure every held-out set."""
        results, spent = {}, self.costs.spent()
        for name, found in self.validator.measure():
            results[name] = found
            self.journal.record_evaluation("eval", self.progress, name, found, spent)
        self._record_validation(results[self.validator.best_by], sum(found.tokens for found in results.values()))

    def validate_checkpoint(self) -> None:
        """Measure what the checkpoint that the run begins with can do before it learns.

        Raises:
            UserError: its loss is not finite.
        """
        self.validate()
        _, loss = self.newest_validation or (0, 0.0)
        if not math.isfinite(loss):
            raise UserError(
                f"{self.recipe.training.init_from}: its loss on the held-out text is {loss}, so its weights are damaged"
            )
        self.advance()

    def _validate_last(self) -> Evaluation:
        """Measure every held-out set over more text, and return the result on the set that decides."""
        results, spent = {}, self.costs.spent()
        for name, found in self.validator.measure_last(self.stop.batches_in_time):
            results[name] = found
            if found.comparable is not None:
                self.journal.record_evaluation("eval", self.progress, name, found.comparable, spent)
            self.journal.record_evaluation("end", self.progress, name, found.whole, spent)
        result = results[self.validator.best_by]
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
            text = self.parts.samples.write(model)
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
        self.finished()

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
                self.journal.say(self.parts.next_command())


def _is_due(progress: Progress, every: int) -> bool:
    """Whether something that comes every so many steps, 0 for never, comes after the newest one."""
    return every > 0 and progress.step % every == 0
