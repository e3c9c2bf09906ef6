"""One training run, from a recipe to a folder: a step, repeated, with what happens between steps.

A step sums the gradients of `gradient_accumulation` micro-batches, clips them and lets the optimizer take them. Between
steps the run is measured, sampled and saved. Whatever stops it, the newest checkpoint goes on bit for bit: weights,
optimizer, random state and the data loader's place are in it.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import __version__, hub, ops
from gossamer import device as devices
from gossamer.data.dataset import Dataset, prepare
from gossamer.data.packing import Batch, TrainBatches, validation_batches
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.sample import sample_text
from gossamer.infer.sampler import Sampling
from gossamer.model.causal_lm import CausalLM, targets_ahead
from gossamer.model.mtp import MTPTraining
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths
from gossamer.train.checkpoint import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from gossamer.train.display import Display
from gossamer.train.evaluate import Evaluation, evaluate
from gossamer.train.metrics import MetricsWriter, write_atomically
from gossamer.train.optimizer import build_optimizer
from gossamer.train.recipe import Recipe, to_yaml
from gossamer.train.report import write_report
from gossamer.train.schedule import learning_rate_factor


def train(recipe: Recipe, out: Path, resume: bool = False) -> None:
    """Train by `recipe` into the folder `out`; with `resume` go on from its newest checkpoint.

    Raises:
        UserError: the data, the device or the checkpoint does not allow it; nothing is left half-written.
        KeyboardInterrupt: after Ctrl-C, once the run is saved.
    """
    devices.keep_freed_memory()
    device = devices.resolve(recipe.training.device)
    checkpoint = newest_checkpoint(out) if resume else None
    if resume and checkpoint is None:
        raise UserError(f"--resume: {out} has no checkpoint to go on from; begin the run anew in another folder")
    # A run keeps the tokenizer it was begun with.
    tokenizer = Tokenizer.load(out / "model") if resume else None
    dataset = prepare(recipe.corpus, tokenizer)
    recipe = replace(recipe, model=replace(recipe.model, vocab_size=dataset.tokenizer.vocab_size))
    run = _Run(recipe, out, dataset, device)
    run.begin(checkpoint)
    run.train()


class _Run:
    """A run in progress: the network, the optimizer, the data, and how far it has come."""

    def __init__(self, recipe: Recipe, out: Path, dataset: Dataset, device: torch.device) -> None:
        self.recipe, self.out, self.dataset, self.device = recipe, out, dataset, device
        training = recipe.training
        self.batches = TrainBatches(dataset.train, training.batch_size, training.sequence_length, training.seed)
        self.token_bytes = dataset.tokenizer.token_bytes()
        devices.seed_everything(training.seed)
        self.model = CausalLM(recipe.model).to(device)
        if self.model.mtp is not None and not training.mtp_loss_weight:
            self.model.mtp.requires_grad_(False)  # nothing teaches it: no optimizer state either
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.step = self.tokens = 0
        self.elapsed = 0.0  # seconds spent in training steps

    @property
    def tokens_per_step(self) -> int:
        training = self.recipe.training
        return training.batch_size * training.sequence_length * training.gradient_accumulation

    # Beginning.

    def begin(self, checkpoint: Path | None) -> None:
        """Open the run's folder, from the state of a checkpoint if one is given."""
        steps = self.recipe.training.steps
        if checkpoint is not None:
            progress = load_checkpoint(checkpoint, self.model, self.optimizer)
            self.step, self.tokens, self.elapsed = (progress[name] for name in ("step", "tokens", "elapsed"))
            self.batches.load_state_dict(progress["data"])
            if self.step >= steps:
                raise UserError(f"{self.out} has taken its {steps} steps; --training.steps N with a larger N goes on")
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / "config.yaml", to_yaml(self.recipe).encode())
        self.metrics = MetricsWriter(self.out, None if checkpoint is None else self.step)
        self.display = Display(steps, self.step)
        counts = self.recipe.model.counts(self.recipe.training.sequence_length)
        described = {
            "device": devices.device_name(self.device),
            "parameters": counts.parameters,
            "active_parameters": counts.active_parameters,
            "flops_per_token": counts.training_flops,
            "tokens_per_step": self.tokens_per_step,
            "steps": steps,
            "corpus": self.dataset.description,
        }
        if checkpoint is not None:
            self.metrics.write("resume", self.step)
            self.display.say(f"resuming {self.out} after step {self.step}")
        else:
            self.metrics.write("start", 0, gossamer=__version__, torch=torch.__version__, **described)
        self.display.say(
            f"{counts.parameters:,} parameters, {counts.active_parameters:,} active; "
            f"{steps} steps of {self.tokens_per_step:,} tokens on {described['device']}"
        )
        runs = ", ".join(f"{name}: {found['runs']}" for name, found in ops.describe(self.device).items())
        self.display.say(f"operations: {runs}")

    # Training.

    def train(self) -> None:
        """Take the steps that are left; then measure, sample, save and report."""
        training = self.recipe.training
        with self.display, self.metrics, _interruptible() as interrupted:
            since_log = _Averages(self.elapsed)
            while self.step < training.steps and not interrupted:
                since_log.add(self._step())
                last = self.step == training.steps
                if self.step % training.log_every == 0 or last:
                    self._log(since_log)
                    since_log = _Averages(self.elapsed)
                if not last and _due(self.step, training.eval_every):
                    self._evaluate(training.eval_tokens, "eval")
                if not last and _due(self.step, training.sample_every):
                    self._sample()
                if not last and _due(self.step, training.checkpoint_every):
                    self._save()
            if interrupted:
                self._save()
                self.display.say(
                    f"stopped after step {self.step}; go on with: gossamer train --resume --out {self.out}"
                )
            else:
                self._save()
                final = self._evaluate(training.final_eval_tokens, "end")
                self._sample()
                self.display.say(
                    f"validation loss {final.loss:.4f} nats a token, {final.bits_per_byte:.4f} bits per byte, "
                    f"after {self.tokens:,} tokens in {self.elapsed:.0f} s of training"
                )
        report = write_report(self.out)
        self.display.say(f"report: {report}")
        if interrupted:
            raise KeyboardInterrupt

    def _step(self) -> dict[str, Tensor]:
        """One optimizer step; returns its losses and gradient norm, still on the device."""
        training, optimizer = self.recipe.training, self.recipe.optimizer
        began = time.perf_counter()
        self.step += 1
        rate = optimizer.learning_rate * learning_rate_factor(self.step, training.steps, self.recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        measured: dict[str, Tensor] = {}
        micro_batches = [next(self.batches) for _ in range(training.gradient_accumulation)]
        divisors = [sum(_num_targets(batch, ahead) for batch in micro_batches) for ahead in (1, 2)]
        for batch in micro_batches:
            out = self.model(
                batch.input_ids.to(self.device),
                labels=batch.labels.to(self.device),
                cu_seqlens=batch.cu_seqlens,
                mtp=MTPTraining() if training.mtp_loss_weight > 0 else None,
                divisors=divisors,
            )
            assert out.loss is not None
            losses, objective = {"loss": out.loss}, out.loss
            if out.mtp_loss is not None:
                losses["mtp_loss"] = out.mtp_loss
                objective = objective + training.mtp_loss_weight * out.mtp_loss
            if out.aux_loss is not None:
                losses["aux_loss"] = out.aux_loss / training.gradient_accumulation
                objective = objective + self.recipe.model.router_aux_loss_coef * losses["aux_loss"]
            objective.backward()
            for name, loss in losses.items():
                measured[name] = loss.detach() + measured.get(name, 0)
        limit = optimizer.grad_clip or math.inf
        measured["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens += self.tokens_per_step
        self.elapsed += time.perf_counter() - began
        return measured

    # Between steps.

    def _log(self, averages: _Averages) -> None:
        values = averages.means()
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is no longer a finite number at step {self.step}: a smaller --optimizer.learning_rate or "
                "--optimizer.grad_clip may help; --resume goes on from the checkpoint before"
            )
        speed = averages.count * self.tokens_per_step / (self.elapsed - averages.began)
        self.metrics.write(
            "train",
            self.step,
            tokens=self.tokens,
            elapsed=self.elapsed,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            tokens_per_second=speed,
            **values,
        )
        self.display.step(self.step, loss=values["loss"], speed=speed)

    def _evaluate(self, most_tokens: int, event: str) -> Evaluation:
        training = self.recipe.training
        held_out = validation_batches(
            self.dataset.validation, training.batch_size, training.sequence_length, most_tokens
        )
        result = evaluate(self.model, held_out, self.token_bytes)
        measured = {"loss": result.loss, "perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte}
        self.metrics.write(event, self.step, tokens=self.tokens, elapsed=self.elapsed, **measured)
        self.display.step(self.step, validation=result.loss)
        self.display.line(self.step)
        return result

    def _sample(self) -> None:
        training, tokenizer = self.recipe.training, self.dataset.tokenizer
        pieces = sample_text(
            self.model, tokenizer, training.sample_prompt, training.sample_tokens, Sampling(), seed=training.seed
        )
        text = training.sample_prompt + "".join(pieces)
        self.metrics.write("sample", self.step, text=text)
        with (self.out / "samples.txt").open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"--- after step {self.step}\n{text}\n\n")

    def _save(self) -> None:
        progress: dict[str, Any] = {"tokens": self.tokens, "elapsed": self.elapsed, "data": self.batches.state_dict()}
        hub.save(self.model, self.out / "model", self.dataset.tokenizer)
        save_checkpoint(self.out, self.step, self.model, self.optimizer, progress)
        prune_checkpoints(self.out, self.recipe.training.keep_checkpoints)


class _Averages:
    """Means of what steps returned, read from the device once; `began` is the run's elapsed time before the first."""

    def __init__(self, began: float) -> None:
        self.began, self.count, self._sums = began, 0, dict[str, Tensor]()

    def add(self, values: dict[str, Tensor]) -> None:
        self.count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self._sums.items()}


def _num_targets(batch: Batch, ahead: int) -> int:
    """How many tokens of a batch are predicted `ahead` places before."""
    rows, length = batch.labels.shape
    lengths = document_lengths(rows, length, batch.cu_seqlens)
    return max(1, int((targets_ahead(batch.labels, lengths, ahead) != IGNORED).sum()))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect Ctrl-C, to be acted on between steps; a second one stops at once. The list is empty until then."""
    caught: list[int] = []

    def handle(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield caught
        return
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
