"""One tuning, from a base and examples to a folder: the loop of every run, with parts of its own."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer import device as devices
from gossamer.data.chat.rows import ExampleBatch, ExampleBatches
from gossamer.data.packing import Batch
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.run.checkpoint import checkpoint_to_resume
from gossamer.run.cost import CostMeter, StepShape
from gossamer.run.lock import claimed
from gossamer.run.memory import MemoryEstimate
from gossamer.run.parts import Description, Parts
from gossamer.run.pretrained import describe_beginning
from gossamer.run.stop import Progress
from gossamer.run.training_run import TrainingRun
from gossamer.streams import outliving_readers
from gossamer.train.parallel import gathered_model
from gossamer.train.world import World
from gossamer.tune.base import copy_tuned_model, write_adapter
from gossamer.tune.examples import Material
from gossamer.tune.guard import Before, Guard, Planned, Verdict, read_before, write_verdict
from gossamer.tune.learner import base_network, learner_of
from gossamer.tune.memory import estimate_tuning, require_memory
from gossamer.tune.objectives import needs_reference, objective_of
from gossamer.tune.plan import read_plan
from gossamer.tune.recipe import tuning_of
from gossamer.tune.reference import reference_logprobs
from gossamer.tune.validation import ExamplesValidator, KeptText, kept_text
from gossamer.units import amount

__all__ = ["tune"]


def tune(
    prepare: Callable[[World], Material],
    device: str,
    out: Path,
    resume: bool = False,
    began: float | None = None,
    report: Callable[[Path], Path] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Verdict | None:
    """Tune a model into a folder. Signals, closed streams and errors are as in `gossamer.run.loop.train`.

    Args:
        prepare: returns what the tuning works on
        device: auto, cpu, cuda …
        out: the run's folder
        resume: continue from the newest checkpoint there, or begin again if there is none
        began: when the command began, by `time.perf_counter`, if that was before this call
        report: writes a page about the run into its folder when it ends, and returns the page's path
        on_step: called on every process after each step

    Returns:
        The model before and after; None on other processes than the main one, and if a signal has ended the run.

    Raises:
        UserError: the data, the device or the checkpoint does not allow it, or another process trains there.
        KeyboardInterrupt: after Ctrl-C, once the run is saved.
    """
    began = time.perf_counter() if began is None else began
    devices.keep_freed_memory()
    world = World.join(devices.resolve(device))
    with outliving_readers(), closing(world), claimed(out, world):
        checkpoint = world.call_on_main(lambda: checkpoint_to_resume(out)) if resume else None
        material = prepare(world)
        _check_processes(material, world)
        estimate = estimate_tuning(material.recipe, material.base, world)
        require_memory(estimate, world)
        costs = CostMeter(out, material.recipe, world, began, _step_shape(material))
        run = _Tuning(material, out, world, costs, estimate)
        run.begin(checkpoint, None, again=resume and checkpoint is None)
        stopped_by = run.train(False, on_step or (lambda progress: None))
        run.report(report, stopped_by)
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    return run.verdict


def _check_processes(material: Material, world: World) -> None:
    tuning = tuning_of(material.recipe)
    if world.size > 1 and (tuning.lora or tuning.drafts):
        option = "--lora" if tuning.lora else "--drafts"
        raise UserError(f"{option} learns in one process, and there are {world.size}; start it without torchrun")


def _step_shape(material: Material) -> StepShape:
    """Return how many tokens a step has on average, and the length of its documents."""
    counts = material.counts
    documents = [len(sample) for index in material.learned for sample in material.trained[index].samples]
    share = min(1.0, counts.batch / counts.examples)
    tokens, length = max(1, round(counts.tokens * share)), max(2, round(float(np.mean(documents))))
    # Of three products of a layer, what is frozen has no gradient; where nothing behind it learns, it has none at all.
    tuning = tuning_of(material.recipe)
    return StepShape(tokens, length, 2 / 3 if tuning.lora else 1 / 3 if tuning.drafts else 1.0)


class _StepBatches:
    """The rows of steps, with the tokens that a step has over all processes."""

    def __init__(self, batches: ExampleBatches, world: World) -> None:
        self._batches, self._world, self._tokens = batches, world, 0

    @property
    def step_tokens(self) -> int:
        return self._tokens

    def next_step(self) -> list[Batch]:
        rows: list[ExampleBatch] = next(self._batches)
        own = sum(row.input_ids.numel() for row in rows if row.examples)
        self._tokens = int(self._world.all_reduce(torch.tensor(own)))
        return list(rows)

    def state_dict(self) -> Mapping[str, Any]:
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._batches.load_state_dict(state)


class _Samples:
    """Lets the network in tuning answer the first of the prompts that are answered before and after."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def write(self, model: CausalLM) -> str:
        """Return the prompt with the greedy answer."""
        (asked, *_), (answer, *_) = self._guard.prompts(1), self._guard.answers(model, 1)
        return asked.prompt + answer


class _Tuning(TrainingRun):
    """A run that learns from examples.

    Attributes:
        verdict: the model before and after, once the run is complete; on the main process
    """

    def __init__(self, material: Material, out: Path, world: World, costs: CostMeter, estimate: MemoryEstimate) -> None:
        recipe, tuning = material.recipe, tuning_of(material.recipe)
        assert tuning.row_tokens is not None
        self.verdict: Verdict | None = None
        self._material, examples = material, material.examples
        network = base_network(material, world)
        reference = None
        if needs_reference(tuning):
            reference = reference_logprobs(
                network,
                examples.examples,
                tuning.row_tokens,
                recipe.corpus.cache_folder(),
                recipe.training.precision,
                world,
                progress=True,
            )
            costs.book("reference")
        learner = learner_of(network, material, world, objective_of(tuning, material.trained, reference))
        kept = kept_text(recipe, material.base.tokenizer, progress=world.is_main)
        self._guard = Guard(material, kept)
        folder = shlex.quote(str(out))
        files = out, material.base, examples.tokenizer, examples.end_ids
        parts = Parts(
            learner,
            _StepBatches(material.batches(world), world),
            ExamplesValidator(learner, material.measured_name, self._guard.rows, self._guard.token_bytes),
            _Samples(self._guard),
            _description(material, kept),
            partial(write_adapter, *files) if tuning.lora else partial(copy_tuned_model, *files, world),
            resume_command=f"gossamer tune {shlex.quote(recipe.training.init_from)} --resume --out {folder}",
            next_command=lambda: f"talk with it: gossamer chat {folder}",
            keeps_trained_only=tuning.lora or tuning.drafts,
        )
        super().__init__(recipe, out, parts, costs, estimate, world)

    def begun(self) -> None:
        """Say with which weights the run begins."""
        self.journal.say(describe_beginning(self.recipe))

    def before_first_step(self) -> None:
        """Measure what the base can do, and let it answer."""
        self.validate_checkpoint()
        self._measure_base()
        self.stop.record_pause("guard", 2 * self.costs.book("evaluation"))  # at the end with the base once more
        self.advance()

    def _measure_base(self) -> None:
        """Keep what the network can do as it is now, and its answers."""
        model = gathered_model(self.learner.model, self.world)
        if model is not None:
            Before(self._guard.measure(model), tuple(self._guard.answers(model))).write(self.out)

    def finished(self) -> None:
        """Measure what the model can do now, and say what has changed."""
        model = gathered_model(self.learner.model, self.world)
        if model is not None:
            base = base_network(self._material, World(self.world.device))
            before = read_before(self.out) or Before(self._guard.measure(base), tuple(self._guard.answers(base)))
            self.verdict = self._guard.verdict(before, model, base)
            planned = self._planned()
            write_verdict(self.out, before, self.verdict, planned)
            if planned is not None:
                self.journal.say(planned.line())
            for line in self.verdict.lines():
                self.journal.say(line)
        self.costs.book("evaluation")
        self.costs.update(self.progress.fraction, write=True)

    def _planned(self) -> Planned | None:
        """Return what the run was planned to take, if it was, and what it has taken."""
        found = read_plan(self.recipe)
        if found is None:
            return None
        seconds, memory = found
        return Planned(seconds, self.progress.elapsed, memory, devices.peak_memory(self.world.device))


def _description(material: Material, kept: KeptText | None) -> Description:
    """Return what is said of the examples, and what is likely to be a mistake in them."""
    counts, tuning = material.counts, tuning_of(material.recipe)
    kinds = {"sft": "sample", "dpo": "pair", "kto": "rated answer"}
    what = amount(counts.examples, kinds[counts.method])
    line = (
        f"{counts.method}: {what} of {counts.tokens:,} tokens to learn from, {len(material.measured):,} "
        f"{material.measured_name}; steps of {tuning.batch} in rows of at most {tuning.row_tokens:,} tokens"
    )
    notes = list(material.examples.summary)
    if kept is not None:
        notes.append(f"{kept.num_tokens:,} tokens of text that it must not get worse on are measured, too")
    warnings = []
    if material.measured_name == "seen":
        warnings.append("too few examples to hold some out: the model is measured on those that it learns from")
    if kept is None:
        warnings.append("no text shows what the model forgets; name some with --keep PATH")
    if counts.method == "kto" and counts.examples < _FEW_RATINGS:
        warnings.append(f"{counts.examples} ratings are few; what is learned from them may be chance")
    return Description(line, tuple(notes), tuple(warnings))


_FEW_RATINGS = 50
