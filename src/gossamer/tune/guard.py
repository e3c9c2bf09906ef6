"""What a model could do before tuning and after: in figures, and in the answers to a few prompts side by side.

An answer is exact if the likeliest token is the wanted one at each of its places; greedy decoding then writes just that
answer. So one packed pass over the held-out examples tells it of all of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.data.chat.rows import ExampleBatch, rows_of
from gossamer.data.chat.samples import Example, Sample
from gossamer.files import write_atomically
from gossamer.infer.engine import Engine, EngineOptions
from gossamer.infer.request import Request, SamplingParams
from gossamer.model.causal_lm import CausalLM, targets_ahead
from gossamer.model.mtp import MTPTraining
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths
from gossamer.reading import checked, read_object
from gossamer.run.metrics import finite_or_none
from gossamer.run.validate import tally
from gossamer.tune.examples import Material
from gossamer.tune.recipe import tuning_of
from gossamer.tune.validation import KeptText
from gossamer.units import duration, size

__all__ = ["GUARD_FILE", "Answers", "Before", "Guard", "Measures", "Planned", "Verdict", "read_before", "write_verdict"]

GUARD_FILE = "guard.json"

_NUM_PROMPTS, _MAX_ANSWER = 8, 128
_LOGITS = 1 << 24  # numbers of logits at once


@dataclass(frozen=True)
class Measures:
    """What a model can do.

    Attributes:
        loss: nats for a token of the answers that are held out
        bits_per_byte: the same for a byte of them
        exact: share of these answers that greedy decoding writes just so
        examples: how many there are
        pairs: share of the pairs whose chosen answer is the likelier one, by the mean over its tokens; None without any
        kept_bits_per_byte: bits for a byte of the text that is to be kept; None without such text
        acceptance: share of places where the first draft of the multi-token-prediction head is the model's own token;
            None without a head
    """

    loss: float
    bits_per_byte: float
    exact: float
    examples: int
    pairs: float | None = None
    kept_bits_per_byte: float | None = None
    acceptance: float | None = None


@dataclass(frozen=True)
class Answers:
    """The answers to a prompt.

    Attributes:
        prompt: its text
        wanted: the answer of the example
        before: that of the base
        after: that of the tuned model
    """

    prompt: str
    wanted: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Verdict:
    """The model before and after.

    Attributes:
        method: how it was tuned: sft, dpo or kto
        name: what the measured examples are called
        before: what the base could do
        after: what the tuned model can do
        kl: mean Kullback-Leibler divergence of the tuned model from the base on the contexts of the examples, in nats
            for a token; it predicts what is forgotten (arXiv 2509.04259)
        answers: those to a few prompts
        max_regression: bits per byte that the model may have become worse
    """

    method: str
    name: str
    before: Measures
    after: Measures
    kl: float
    answers: tuple[Answers, ...] = field(repr=False)
    max_regression: float

    @property
    def regressions(self) -> dict[str, float]:
        """By how many bits per byte the model has become worse, where that is more than it may."""
        pairs = {"kept text": (self.before.kept_bits_per_byte, self.after.kept_bits_per_byte)}
        if self.method == "sft":  # preferences may make even a wanted answer less likely
            pairs[f"{self.name} examples"] = self.before.bits_per_byte, self.after.bits_per_byte
        worse = {name: after - before for name, (before, after) in pairs.items() if before is not None is not after}
        return {name: by for name, by in worse.items() if not by <= self.max_regression}

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        found: dict[str, Any] = finite_or_none(asdict(self) | {"regressions": self.regressions, "rows": self.rows()})
        return found

    def lines(self) -> list[str]:
        """Return the table, and what is worse than it may be."""
        worse = [
            f"worse: {by:+.4f} bits per byte on the {name}, and --max_regression allows {self.max_regression:g}"
            for name, by in self.regressions.items()
        ]
        return [*self.table(), *worse]

    def table(self) -> list[str]:
        """Return a short table for people."""
        rows = self.rows()
        width = max(len(row[0]) for row in rows)
        lines = [f"{'':<{width}}  {'before':>12}  {'after':>12}"]
        return lines + [f"{name:<{width}}  {old:>12}  {new:>12}" for name, old, new in rows]

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the figures as people read them: what is measured, before and after."""
        before, after, count = self.before, self.after, self.before.examples
        exact_before, exact_after = (f"{round(one.exact * count):,} of {count:,}" for one in (before, after))
        rows = [
            (f"loss ({count:,} {self.name} examples)", f"{before.loss:.4f}", f"{after.loss:.4f}"),
            ("exact answers", exact_before, exact_after),
        ]
        optional = [
            ("pairs told apart", before.pairs, after.pairs, "{:.0%}"),
            ("bits per byte of kept text", before.kept_bits_per_byte, after.kept_bits_per_byte, "{:.4f}"),
            ("drafts accepted", before.acceptance, after.acceptance, "{:.1%}"),
        ]
        rows += [
            (name, form.format(old), form.format(new)) for name, old, new, form in optional if None not in (old, new)
        ]
        return [*rows, ("KL from the base, nats per token", "", f"{self.kl:.4f}")]


class Guard:
    """Measures a model on examples, and lets it answer.

    Args:
        material: the examples, and which of them are measured
        kept: text that the model must not get worse on

    Attributes:
        token_bytes: [V] bytes of text that each token stands for
        name: what the measured examples are called
        wanted: the examples that are measured, with the answer that is wanted alone
        rows: these in rows
    """

    def __init__(self, material: Material, kept: KeptText | None) -> None:
        examples, tuning = material.examples, tuning_of(material.recipe)
        assert tuning.row_tokens is not None
        self.name, self._method, self._max_regression = material.measured_name, examples.method, tuning.max_regression
        self._tokenizer, self._end_ids = examples.tokenizer, examples.end_ids
        self._kept, self._row_tokens = kept, tuning.row_tokens
        sizes = examples.tokenizer.num_bytes_per_token()
        self.token_bytes = np.zeros(max(len(sizes), material.recipe.model.vocab_size))
        self.token_bytes[: len(sizes)] = sizes
        measured = [examples.examples[index] for index in material.measured]
        self.wanted = [_wanted(example) for example in measured if example.label is not False]
        self.rows = rows_of(self.wanted, range(len(self.wanted)), self._row_tokens)
        self._pairs = measured if examples.method == "dpo" else []

    def measure(self, model: CausalLM) -> Measures:
        """Return what a model can do."""
        mtp = None if model.mtp is None else MTPTraining(1)
        found = tally(model, self.rows, self.token_bytes, mtp).evaluation()
        kept = None
        if self._kept is not None:
            kept = tally(model, self._kept.batches(0, 1), self._kept.token_bytes).evaluation().bits_per_byte
        return Measures(
            found.loss,
            found.bits_per_byte,
            self._exact(model),
            len(self.wanted),
            self._told_apart(model) if self._pairs else None,
            kept,
            found.mtp_acceptance[0] if mtp is not None else None,
        )

    @torch.no_grad()
    def _exact(self, model: CausalLM) -> float:
        """Return the share of answers whose every token is the model's likeliest one."""
        exact = 0
        for row, greedy in self._greedy(model):
            targets = targets_ahead(row.labels, document_lengths(1, row.labels.shape[1], row.cu_seqlens), 1)
            is_wrong = ((targets != IGNORED) & (greedy != targets)).flatten()
            through = torch.cat([torch.zeros(1, dtype=torch.int64), is_wrong.long().cumsum(0)])
            exact += int((through[row.cu_seqlens.long()].diff() == 0).sum())
        return exact / len(self.wanted)

    def _greedy(self, model: CausalLM) -> list[tuple[ExampleBatch, Tensor]]:
        device, training = next(model.parameters()).device, model.training
        model.eval()
        found = []
        for row in self.rows:
            labels = row.labels.to(device)
            out = model(row.input_ids.to(device), labels, row.cu_seqlens, mtp=None, greedy=True)
            found.append((row, out.greedy[0].cpu()))
        model.train(training)
        return found

    @torch.no_grad()
    def _told_apart(self, model: CausalLM) -> float:
        """Return the share of pairs whose chosen answer has the larger mean log-probability of a token."""
        means = np.zeros((len(self._pairs), 2))
        device = next(model.parameters()).device
        for row in rows_of(self._pairs, range(len(self._pairs)), self._row_tokens):
            out = model(row.input_ids.to(device), row.labels.to(device), row.cu_seqlens, mtp=None, token_logprobs=True)
            targets = targets_ahead(row.labels, document_lengths(1, row.labels.shape[1], row.cu_seqlens), 1)
            counts = _per_document((targets != IGNORED).flatten().double(), row.cu_seqlens)
            values = torch.zeros(row.labels.numel(), dtype=torch.float64)
            values[(targets != IGNORED).flatten()] = out.token_logprobs.double().cpu()
            sums = _per_document(values, row.cu_seqlens)
            for index, side, mean in zip(row.examples, row.sides, (sums / counts).tolist(), strict=True):
                means[index, side] = mean
        return float((means[:, 0] > means[:, 1]).mean())

    @torch.no_grad()
    def divergence(self, base: CausalLM, tuned: CausalLM) -> float:
        """Return the mean Kullback-Leibler divergence of the tuned model from the base, KL(base‖tuned), in nats.

        The two may be on different devices: of several processes, the tuned one is put together on a CPU.
        """
        total, count = 0.0, 0
        for row in self.rows:
            targets = targets_ahead(row.labels, document_lengths(1, row.labels.shape[1], row.cu_seqlens), 1)
            places = (targets != IGNORED).flatten().nonzero().flatten()
            hidden = [_hidden(model, row)[places] for model in (base, tuned)]
            step = max(1, _LOGITS // base.config.vocab_size)
            for begin in range(0, len(places), step):
                old, new = (
                    F.log_softmax(model.lm_head(states[begin : begin + step]).float(), -1).cpu()
                    for model, states in zip((base, tuned), hidden, strict=True)
                )
                total += float(F.kl_div(new, old, reduction="sum", log_target=True))
            count += len(places)
        return max(0.0, total / count)

    def verdict(self, before: Before, tuned: CausalLM, base: CausalLM) -> Verdict:
        """Return the model before and after.

        Args:
            before: what the base could do
            tuned: the tuned model
            base: the base
        """
        answers = tuple(
            replace(asked, before=old, after=new)
            for asked, old, new in zip(self.prompts(), before.answers, self.answers(tuned), strict=True)
        )
        divergence = self.divergence(base, tuned)
        figures = before.measures, self.measure(tuned), divergence
        return Verdict(self._method, self.name, *figures, answers, self._max_regression)

    # Answers.

    def prompts(self, count: int = _NUM_PROMPTS) -> list[Answers]:
        """Return some prompts, with the answers that are wanted."""
        decode = self._tokenizer.decode
        asked = (_last_answer(example.samples[0]) for example in self.wanted[:count])
        return [Answers(decode(context, special=True), decode(target)) for context, target in asked]

    def answers(self, model: CausalLM, count: int = _NUM_PROMPTS) -> list[str]:
        """Return a model's greedy answers to the prompts."""
        asked = [_last_answer(example.samples[0])[0] for example in self.wanted[:count]]
        longest = model.config.max_position_embeddings
        lengths = [min(_MAX_ANSWER, longest - len(context)) for context in asked]
        page = EngineOptions.page_size
        tokens = sum(-(-(len(context) + length) // page) * page for context, length in zip(asked, lengths, strict=True))
        training = model.training
        model.eval()
        engine = Engine(
            model,
            self._tokenizer,
            EngineOptions(max_batch=_NUM_PROMPTS, cache_tokens=max(tokens, page), prefix_cache_bytes=0),
        )
        texts = [""] * len(asked)
        for index, (context, length) in enumerate(zip(asked, lengths, strict=True)):
            if length > 0:
                sampling = SamplingParams(length, temperature=0.0, stop_token_ids=self._end_ids)
                engine.submit(Request(str(index), tuple(context), sampling))
        while engine.has_work:
            for delta in engine.step():
                texts[int(delta.id)] += delta.text if delta.error is None else f"[{delta.error}]"
        model.train(training)
        return texts


def _wanted(example: Example) -> Example:
    """Return an example with the answer that is wanted alone."""
    return Example(example.samples[:1], example.where, example.key)


def _last_answer(sample: Sample) -> tuple[list[int], list[int]]:
    """Return the tokens before the last answer of a sample, and those of the answer."""
    labels = sample.labels
    end = int(np.flatnonzero(labels != IGNORED)[-1]) + 1
    unlearned = np.flatnonzero(labels[:end] == IGNORED)
    begin = int(unlearned[-1]) + 1 if len(unlearned) else 1
    return sample.input_ids[:begin].tolist(), sample.input_ids[begin:end].tolist()


def _per_document(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    through = torch.cat([torch.zeros(1, dtype=values.dtype), values.cumsum(0)])
    return through[cu_seqlens.long()].diff()


def _hidden(model: CausalLM, row: ExampleBatch) -> Tensor:
    """Return the hidden states of a row after the final norm, [tokens, hidden]."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    out: Any = model(row.input_ids.to(device), row.labels.to(device), row.cu_seqlens, mtp=None)
    model.train(training)
    states: Tensor = out.hidden.flatten(0, 1)
    return states


@dataclass(frozen=True)
class Planned:
    """What a run was planned to take, and what it has taken.

    Attributes:
        planned_seconds: of training
        seconds: of training
        planned_memory: bytes at the peak
        memory: bytes at the peak
    """

    planned_seconds: float
    seconds: float
    planned_memory: int
    memory: int

    def line(self) -> str:
        """Return it in one line."""
        planned = f"{duration(self.planned_seconds)} of training, {size(self.planned_memory)}"
        return f"planned: {planned}; taken: {duration(self.seconds)}, {size(self.memory)}"


# Files.


@dataclass(frozen=True)
class Before:
    """What the base could do, as its run keeps it.

    Attributes:
        measures: in figures
        answers: its answers to the prompts
    """

    measures: Measures
    answers: tuple[str, ...]

    def write(self, run: Path) -> None:
        """Keep it in a run's folder."""
        write_atomically(run / GUARD_FILE, json.dumps({"before": asdict(self)}, indent=1).encode() + b"\n")


def read_before(run: Path) -> Before | None:
    """Return what the base of a run could do; None if the run does not know."""
    path = run / GUARD_FILE
    if not path.is_file():
        return None
    return checked(read_object(path).get("before"), Before, str(path), "delete it")


def write_verdict(run: Path, before: Before, verdict: Verdict, planned: Planned | None) -> None:
    """Write the model before and after into a run's folder, and what the run was planned to take and has taken."""
    values = {"before": asdict(before), "verdict": verdict.to_json()}
    values |= {} if planned is None else {"planned": asdict(planned)}
    write_atomically(run / GUARD_FILE, json.dumps(values, indent=1).encode() + b"\n")
