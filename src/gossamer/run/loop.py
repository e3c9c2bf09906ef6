"""One training run, from a recipe to a folder: a step, repeated, with what happens between steps.

Between steps the run is measured, sampled and saved. Whatever stops it, the newest checkpoint goes on bit for bit:
weights, optimizer, random state and the data loader's place are in it.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer.data.dataset import Dataset, prepare
from gossamer.data.packing import TrainBatches
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.defaults import sampling_for_readers
from gossamer.infer.generation import sample_text
from gossamer.infer.request import SamplingParams
from gossamer.model.causal_lm import CausalLM
from gossamer.reading import checked
from gossamer.run.announce import announce, conclude, start_facts, what_next
from gossamer.run.averages import Averages
from gossamer.run.checkpoint import Position, checkpoint_to_resume, load_checkpoint, newest_checkpoint
from gossamer.run.claim import claimed
from gossamer.run.dial import Plan, choose, read_plan
from gossamer.run.evaluate import Evaluation
from gossamer.run.held_out import HeldOut, judge
from gossamer.run.journal import Journal
from gossamer.run.length import Length
from gossamer.run.memory import MemoryEstimate, estimate_peak, require_weights
from gossamer.run.meter import Meter
from gossamer.run.profile import StepProfile
from gossamer.run.prompt import held_out_words, misfit, occurs
from gossamer.run.saver import Saver
from gossamer.run.signals import interruptible
from gossamer.streams import outliving_readers
from gossamer.train.balance import describe_load
from gossamer.train.pairs import begin_with_pairs
from gossamer.train.parallel import gathered_model
from gossamer.train.recipe import Recipe
from gossamer.train.schedule import learning_rate_factor
from gossamer.train.step import Learner, Measured
from gossamer.train.world import World

log = logging.getLogger("gossamer")


def train(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    profile: bool = False,
    dial: bool = False,
    began: float | None = None,
    report: Callable[[Path], Path] | None = None,
) -> None:
    """Train by `recipe` into the folder `out`; with `resume` go on from its newest checkpoint, or begin again.

    With `profile` a trace of a few steps is written there, too; of several processes the main one is looked at.
    With `dial` the size, the batch and the learning rate are chosen for the recipe's budget before it begins.
    `began` is when the command began, by `time.perf_counter`, where that was before this call.
    `report` writes a page about the run into its folder when it ends, and returns the page's path.

    SIGTERM, SIGHUP (a closed terminal) and Ctrl-C are acted on between steps: the run is saved, and this function
    returns or raises. Standard error that nobody reads any more does not stop it.

    Raises:
        UserError: the data, the device or the checkpoint does not allow it, or another process trains there; nothing
            is left half-written.
        KeyboardInterrupt: after Ctrl-C, once the run is saved.
    """
    began = time.perf_counter() if began is None else began
    devices.keep_freed_memory()
    world = World.join(devices.resolve(recipe.training.device))
    with outliving_readers(), closing(world), claimed(out, world):
        # How large the vocabulary is tells the text. What is too large with the smallest one need not wait for it.
        _estimate(_with_vocabulary(recipe, 1), world)
        checkpoint = world.on_main(lambda: checkpoint_to_resume(out)) if resume else None
        # A run keeps the tokenizer it was begun with.
        tokenizer = None if checkpoint is None else Tokenizer.load(out / "model")
        dataset = prepare(recipe.corpus, tokenizer, progress=world.is_main)
        recipe = _with_vocabulary(recipe, dataset.tokenizer.vocab_size)
        plan = world.on_main(lambda: read_plan(out)) if resume else None
        if dial:
            recipe, plan = choose(recipe, dataset, world, began)
        run = _Run(recipe, out, dataset, world, began, plan)
        run.begin(checkpoint, again=resume and checkpoint is None)
        stopped_by = run.train(profile, report)
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt


def _with_vocabulary(recipe: Recipe, size: int) -> Recipe:
    return replace(recipe, model=replace(recipe.model, vocab_size=size))


def _estimate(recipe: Recipe, world: World) -> MemoryEstimate:
    """What a process will take, which the device must have (UserError)."""
    require_weights(recipe.model, world.size, world.device, world.sharing)
    estimate = estimate_peak(recipe, world.device, world.size)
    estimate.require(world.device, world.sharing)
    return estimate


class _Run:
    """A run in progress: what learns, the data, and how far it has come."""

    journal: Journal

    def __init__(
        self, recipe: Recipe, out: Path, dataset: Dataset, world: World, began: float, plan: Plan | None = None
    ) -> None:
        self.recipe, self.out, self.dataset, self.world, self.plan = recipe, out, dataset, world, plan
        training = recipe.training
        self.best_by = judge(training, dataset)
        self.batches = TrainBatches(
            dataset.train,
            training.batch_size,
            training.sequence_length,
            training.seed,
            training.packing,
            rank=world.rank,
            world_size=world.size,
        )
        # Before the network is built: what the process takes without it belongs to the estimate.
        self.estimate = _estimate(recipe, world)
        self.meter = Meter(out, recipe, world, began)
        devices.seed_everything(training.seed)
        self.learner = Learner(CausalLM(recipe.model).to(world.device), recipe, world)
        self.held_out = HeldOut(training, dataset, self.learner, world)
        # A recipe's prompt may be none of the text's: no reason to lose a run at its first sample.
        self.prompt = "" if misfit(training.sample_prompt, dataset.tokenizer) else training.sample_prompt
        self.unread = "" if self.prompt else held_out_words(dataset, training.sequence_length)
        self.length = Length(training, self.meter, world)
        self.saver = Saver(out, dataset.tokenizer, training.keep_checkpoints, world)
        self.step = self.tokens = self.skipped = 0
        self.elapsed = 0.0  # seconds spent in training steps
        self.load: Tensor | None = None  # of the experts, in the newest step
        self.evaluated: tuple[int, float] = (0, float("inf"))  # step and loss of the newest evaluation of `best_by`

    @property
    def done(self) -> float:
        """The share of the run that lies behind it, 0 to 1."""
        return self.length.done

    # Beginning.

    def begin(self, checkpoint: Path | None, again: bool = False) -> None:
        """Open the run's folder, from the state of a checkpoint if one is given; `again`: over an earlier beginning."""
        saved = None
        if checkpoint is not None:
            saved = self._restore(checkpoint)
            # A budget may be used up before the run has come to its last evaluation.
            if self.done >= 1 and saved.get("done", 1.0) >= 1:
                amount, name = self.length.limit
                raise UserError(
                    f"{self.out} is complete, it has taken its {amount} {name}; a larger --training.{name} goes on"
                )
        self.journal = Journal(self.out, self.recipe, self.world, self.step, checkpoint is not None, again)
        if checkpoint is not None:
            self._write("resume")
            self.journal.say(f"resuming {self.out} after step {self.step}")
        else:
            self.journal.say(f"beginning {self.out}")
            self._write("start", **start_facts(self.recipe, self.dataset, self.learner, self.meter))
            if self.plan is not None:
                self._write("plan", **asdict(self.plan))
        announce(
            self.journal.say, self.recipe, self.dataset, self.learner, self.meter, self.estimate, self.plan, self.world
        )
        if self.unread:
            self.journal.say(f"samples go on from held-out words: {self.unread!r}")
        self.meter.begin(saved)

    def _restore(self, checkpoint: Path) -> dict[str, Any]:
        saved = load_checkpoint(checkpoint, self.learner.model, self.learner.optimizers, self.world)
        position = checked(saved, Position, f"{checkpoint}: its progress.json", "begin the run anew in another folder")
        self.step, self.tokens, self.elapsed = position["step"], position["tokens"], position["elapsed"]
        self.batches.load_state_dict(position["data"])
        self._look()
        return saved

    def _look(self) -> None:
        """See how far the run is."""
        if self.saver.seconds is not None:
            self.length.took("save", self.saver.seconds)
        self.length.update(self.step, self.tokens, self.elapsed)

    # Training.

    def train(self, profile: bool = False, report: Callable[[Path], Path] | None = None) -> int:
        """Take the steps that are left, then measure, sample and save. Returns the signal that ended it early, or 0."""
        training = self.recipe.training
        profiled = profile and self.world.is_main
        profiler = StepProfile(self.out, self.world.device, self.step, self.journal.say) if profiled else None
        with (
            self.journal,
            self.meter,
            self.saver,
            profiler or nullcontext(),
            interruptible() as signals,
        ):
            if self.done < 1 and _due(self.step, training.sample_every) and not self._sampled():
                self._sample()  # the run was ended between a save and its sample
            if self.step == 0 and self.recipe.training.bigram_steps:
                self._begin_with_pairs()
            since_log = Averages(self.elapsed)
            while self.done < 1 and not self._signal(signals):
                measured = self._step()
                if profiler is not None:
                    profiler.step()
                if not measured.taken:
                    self._skip(measured)
                    continue
                since_log.add(measured.values)
                last = self.done >= 1
                if self.step % training.log_every == 0 or last:
                    self._log(since_log)
                    since_log = Averages(self.elapsed)
                if not last and _due(self.step, training.eval_every):
                    self._evaluate()
                if not last and _due(self.step, training.checkpoint_every):
                    self._save()
                if not last and _due(self.step, training.sample_every):
                    self._sample()
                self.saver.check()
                self._look()
            if self.done >= 1 and since_log.count:
                self._log(since_log)
            stopped_by = self._signal(signals)
            if stopped_by and self.done < 1:
                self._save(wait=True)
                self.journal.say(f"stopped after step {self.step}; gossamer train --resume --out {self.out} goes on")
            else:
                final = self._evaluate_last()
                self._save(wait=True)  # before what may fail: a sample is worth less than what has been learnt
                self._sample()
                self.meter.update(self.done, write=True)
                conclude(self.journal.say, final, self.tokens, self.elapsed, self.plan)
            self.journal.say(self.meter.summary())
        if self.world.is_main:
            if report is not None:
                with self._optional("report"):
                    self.journal.say(f"report: {report(self.out)}")
            if not stopped_by:
                with self._optional("word on what comes next"):
                    known = self.prompt if occurs(self.prompt, self.dataset) else ""
                    self.journal.say(what_next(self.out, known or self.unread))
        return stopped_by

    @contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """Let a failure in what a run can do without be told, and end nothing."""
        try:
            yield
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.journal.say(f"no {what} after step {self.step} ({reason}); the run itself is whole")
            log.debug("no %s", what, exc_info=True)

    def _signal(self, caught: list[int]) -> int:
        """The signal that any process has caught, 0 if none has: all stop after the same step."""
        return self.world.max(caught[0] if caught else 0)

    def _begin_with_pairs(self) -> None:
        """Teach the embedding and the head the text's pairs of tokens, before the network's first step."""
        began, learner, steps = time.perf_counter(), self.learner, self.recipe.training.bigram_steps
        rate = self.recipe.optimizer.learning_rate
        found = begin_with_pairs(learner.model, learner.optimizers, self.dataset.train, steps, rate)
        seconds = self._agreed(time.perf_counter() - began)
        self.elapsed += seconds
        self.meter.beginning({"head": found.flops})
        self._look()
        self._write("pairs", loss=found.loss, seconds=seconds)
        self.journal.say(f"{steps} steps on {found.pairs:,} pairs of tokens: loss {found.loss:.4f} in {seconds:.1f} s")

    def _step(self) -> Measured:
        training, optimizer = self.recipe.training, self.recipe.optimizer
        began = time.perf_counter()
        rate = optimizer.learning_rate * learning_rate_factor(self.step + 1, self.done, self.recipe.schedule)
        batches = [next(self.batches) for _ in range(training.gradient_accumulation)]
        measured = self.learner.step(batches, rate)
        self.step += 1
        self.tokens += self.meter.tokens_per_step
        self.elapsed += self._agreed(time.perf_counter() - began)
        self.meter.step(measured.taken)
        self._look()
        self.load = measured.load
        self.skipped = 0 if measured.taken else self.skipped + 1
        return measured

    def _agreed(self, seconds: float) -> float:
        """The mean of the processes' seconds, so that all of them agree when the run is over."""
        return float(self.world.sum_(torch.tensor(seconds, dtype=torch.float64))) / self.world.size

    def _skip(self, measured: Measured) -> None:
        """Log a step that was not taken; after too many in a row go back to the newest checkpoint.

        The data is not turned back: the same batches would do the same again.
        """
        norm, loss = float(measured.values["grad_norm"]), float(measured.values["loss"])
        self._write("skip", reason=f"gradient norm {norm}, loss {loss}")
        what = "its gradient is" if math.isfinite(loss) else f"its loss is {loss}, and its gradient"
        self.journal.say(f"step {self.step} skipped: {what} not finite")
        if self.skipped < self.recipe.training.max_skips:
            return
        self.saver.wait()
        checkpoint = self.world.on_main(lambda: newest_checkpoint(self.out))
        if checkpoint is None:
            raise UserError(
                f"{self.skipped} steps in a row had no finite gradient, and there is no checkpoint to go back to; "
                "a smaller --optimizer.learning_rate or --optimizer.grad_clip may help"
            )
        step, tokens, elapsed, data = self.step, self.tokens, self.elapsed, self.batches.state_dict()
        self.meter.go_back(self._restore(checkpoint))
        restored = self.step
        # Time and data go on: what was lost has been paid for.
        self.step, self.tokens, self.elapsed, self.skipped = step, tokens, elapsed, 0
        self._look()
        self._write("rollback", to=restored)
        self.journal.say(f"went back to the weights after step {restored}")
        self.batches.load_state_dict(data)

    # Between steps.

    def _write(self, event: str, **values: Any) -> None:
        self.journal.write(event, self.step, **values)

    def _log(self, averages: Averages) -> None:
        values = averages.means()
        speed = averages.count * self.meter.tokens_per_step / (self.elapsed - averages.began)
        mfu = self.meter.mfu(speed)
        self.meter.update(self.done)
        self._write(
            "train",
            tokens=self.tokens,
            elapsed=self.elapsed,
            learning_rate=self.learner.learning_rate,
            tokens_per_second=speed,
            mfu=mfu,
            memory=devices.peak_memory(self.learner.device),
            **values,
        )
        cost = self.meter.brief(mfu)
        self.journal.display.step(self.step, self.done, self.elapsed, loss=values["loss"], speed=speed, cost=cost)

    def _evaluate(self) -> None:
        """Measure every held-out set."""
        results, spent = {}, self.meter.spent()
        for name, found in self.held_out.measure():
            results[name] = found
            self._write_evaluation("eval", name, found, spent)
        self._evaluated(results[self.best_by], sum(found.tokens for found in results.values()))

    def _evaluate_last(self) -> Evaluation:
        """Measure every held-out set over more text; returns what `best_by` gave."""
        results, spent = {}, self.meter.spent()
        for name, found in self.held_out.measure_last(self.length.in_time):
            results[name] = found
            if found.alike is not None:
                self._write_evaluation("eval", name, found.alike, spent)
            self._write_evaluation("end", name, found.whole, spent)
        result = results[self.best_by]
        self._evaluated(result.alike or result.whole, sum(found.whole.tokens for found in results.values()))
        return result.whole

    def _write_evaluation(self, event: str, name: str, found: Evaluation, spent: dict[str, float]) -> None:
        measured = asdict(found)
        measured["eval_tokens"] = measured.pop("tokens")  # an event's tokens are those trained on
        measured["mtp_acceptance"] = list(found.mtp_acceptance) or None
        self._write(event, tokens=self.tokens, elapsed=self.elapsed, **spent, set=name, **measured)

    def _evaluated(self, result: Evaluation, read: int) -> None:
        """Note the newest result by `best_by`, and what it took to read so many tokens of all sets."""
        if self.load is not None:
            self._write("experts", tokens=self.tokens, **describe_load(self.load))
        self.evaluated = self.step, result.loss
        self.length.took("evaluation", self.meter.lap("evaluation"), self.held_out.share_of_last(read))
        self.journal.display.step(self.step, self.done, self.elapsed, validation=result.loss)

    def _sampled(self) -> bool:
        """Whether the newest step, if there was one, has its sample already."""
        return self.step == 0 or self.world.on_main(lambda: self.journal.sampled == self.step)

    def _sample(self) -> None:
        training, tokenizer = self.recipe.training, self.dataset.tokenizer
        model = gathered_model(self.learner.model, self.world)
        if model is None:
            self.meter.lap("samples")
            return
        sampling = SamplingParams(training.sample_tokens, seed=training.seed, **sampling_for_readers({}))
        text = None
        with self._optional("sample"):
            prompt = self.prompt or self.unread
            text = prompt + "".join(sample_text(model, tokenizer, prompt, sampling))
        if text is not None:
            self.journal.sample(self.step, text)
        self.length.took("sample", self.meter.lap("samples"))

    def _save(self, wait: bool = False) -> None:
        progress: dict[str, Any] = {"tokens": self.tokens, "elapsed": self.elapsed, "data": self.batches.state_dict()}
        progress |= {"ledger": self.meter.snapshot(), "done": self.done}
        step, loss = self.evaluated
        if step == self.step:
            progress["validation_loss"] = loss
        seconds = self.saver.save(self.step, self.learner.model, self.learner.optimizers, progress, wait)
        self._write("checkpoint", seconds=seconds)
        self.meter.lap("checkpoints")
        self.meter.update(self.done, write=True)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
