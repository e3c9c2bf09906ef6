"""How well a model predicts text it has not seen: loss, perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer import device as devices
from gossamer import hub
from gossamer.data.config import CorpusConfig
from gossamer.data.corpus import readable_size
from gossamer.data.dataset import prepare, prepare_one
from gossamer.data.packing import Batch, validation_batches
from gossamer.data.progress import ProgressDisplay
from gossamer.data.token_files import TokenFile
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM, targets_ahead
from gossamer.model.mtp import MTPTraining
from gossamer.model.nonfinite import NOT_FINITE, explain_nonfinite
from gossamer.model.quantize import quantize_to_int8
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths
from gossamer.reading import TextErrors
from gossamer.train.world import ALONE, World

_COUNTED_AT_ONCE = 1 << 22  # tokens


@dataclass(frozen=True)
class Evaluation:
    """How well a text was predicted.

    Attributes:
        loss: mean negative log-likelihood of a token, in nats
        perplexity: e^loss
        bits_per_byte: of the text's own UTF-8 bytes, which compares models with different tokenizers, those that
            rewrite the text (Unicode normalisation, lower case) included; see `bytes_of_tokens`
        tokens: how many were predicted
        mtp_acceptance: for each step of the multi-token-prediction head the share of places where its likeliest token
            was the trunk's own, all earlier steps' having been so: greedy drafts that decoding would accept
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    mtp_acceptance: tuple[float, ...] = ()


@dataclass(frozen=True)
class Tally:
    """What was summed up over a text; the tallies of its parts add up to that of the whole.

    Attributes:
        counts: nats, tokens, bytes; float64 on the CPU
        drafts: [2, steps] accepted and judged, for each step of the multi-token-prediction head
    """

    counts: Tensor = field(repr=False)
    drafts: Tensor = field(repr=False)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.counts + other.counts, self.drafts + other.drafts)

    @property
    def tokens(self) -> int:
        return int(self.counts[1])

    def evaluation(self) -> Evaluation:
        """The means; UserError if there was no token to predict."""
        nats, tokens, size = self.counts.tolist()
        if not tokens or not size:
            raise UserError("nothing to evaluate: the text holds no token to predict")
        accepted, judged = self.drafts
        rates = tuple((accepted / judged.clamp(min=1)).tolist())
        loss = nats / tokens
        return Evaluation(loss, math.exp(min(loss, 700.0)), nats / math.log(2) / size, int(tokens), rates)


def evaluate(
    model: CausalLM,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    mtp: MTPTraining | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Measure the model on this process's share of batches; the result is of all processes' together.

    Args and errors: see `tally` and `Tally.evaluation`.
    """
    return tally(model, batches, token_bytes, mtp, world).evaluation()


@torch.no_grad()
def tally(
    model: CausalLM,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    mtp: MTPTraining | None = None,
    world: World = ALONE,
) -> Tally:
    """Sum up what the model makes of this process's share of batches; the result is of all processes' together.

    Args:
        token_bytes: [V] the bytes of text that each token of the vocabulary stands for, as of `bytes_of_tokens`
        mtp: how the multi-token-prediction head was taught, None to leave it out
    """
    device = next(model.parameters()).device
    counts = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes; on the CPU
    drafts = torch.zeros(2, mtp.steps if mtp else 0, dtype=torch.int64)  # accepted, judged
    training = model.training
    model.eval()
    for batch in batches:
        out = model(
            batch.input_ids.to(device),
            labels=batch.labels.to(device),
            cu_seqlens=batch.cu_seqlens,
            mtp=mtp,
            divisors=[1.0] * (1 + drafts.shape[1]),
            greedy=mtp is not None,
        )
        assert out.loss is not None
        lengths = document_lengths(batch.labels.shape[0], batch.labels.shape[1], batch.cu_seqlens)
        targets = targets_ahead(batch.labels, lengths, 1)
        targets = targets[targets != IGNORED]
        size = float(token_bytes[targets.numpy()].sum())
        counts += torch.tensor([float(out.loss), len(targets), size], dtype=torch.float64)
        if mtp is not None:
            drafts += _acceptance([ids.cpu() for ids in out.greedy], batch.labels, lengths)
    model.train(training)
    return Tally(world.sum_(counts), world.sum_(drafts))


def bytes_of_tokens(shard: TokenFile, tokenizer: Tokenizer) -> np.ndarray:
    """The bytes of original text that each token stands for, float64 [V]; over all of `shard` they sum to its bytes.

    That is the token's own spelling where the tokenizer keeps the text. Where it rewrites it, all spellings are
    stretched by the same factor, so that a part of the shard is counted as if it was rewritten like the whole.
    """
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for begin in range(0, shard.num_tokens, _COUNTED_AT_ONCE):
        ids = shard.read(begin, min(_COUNTED_AT_ONCE, shard.num_tokens - begin))
        counts += np.bincount(ids, minlength=len(counts))
    spelt = tokenizer.token_bytes().astype(np.float64)
    total = float(counts @ spelt)
    if not total:  # unknown tokens alone
        return np.full(len(counts), shard.num_bytes / shard.num_tokens)
    return spelt * (shard.num_bytes / total)


@torch.no_grad()
def _why_not_finite(model: CausalLM, batches: Iterable[Batch], device: torch.device) -> str:
    """Where the first row that has no finite loss stops being finite, in a line."""
    for batch in batches:
        for ids in batch.input_ids.to(device):
            logits = model(ids.unsqueeze(0)).logits
            if not bool(logits.isfinite().all()):
                return explain_nonfinite(model, ids)
    return f"{NOT_FINITE} for all of the text together"


def _acceptance(greedy: list[Tensor], labels: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """For each step of the head, how many drafts the trunk would take and how many there were: [2, steps]."""
    trunk, *steps = greedy
    counts, still = [], torch.ones_like(labels, dtype=torch.bool)
    for step, draft in enumerate(steps, start=1):
        # What follows `step` places later is known to the trunk there, and what it then finds likeliest is the judge.
        judged = targets_ahead(labels, lengths, step + 1) != IGNORED
        still &= draft == targets_ahead(trunk, lengths, step)
        counts.append(torch.stack([(still & judged).sum(), judged.sum()]))
    return torch.stack(counts, dim=1)


def _told(batches: Iterable[Batch], shard: TokenFile, name: str, progress: bool) -> Iterator[Batch]:
    """The batches; progress tells how much of the text they have been."""
    title = f"measuring on {readable_size(shard.num_bytes)}{f' of {name}' if name else ''}"
    with ProgressDisplay(progress).stage(title, shard.num_bytes) as advance:
        for batch in batches:
            yield batch
            share = int((batch.labels != IGNORED).sum()) / shard.num_tokens
            advance(round(share * shard.num_bytes))


def evaluate_run(
    run: Path,
    paths: Sequence[str] = (),
    errors: TextErrors = "strict",
    device: str = "auto",
    weights: str = "stored",
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a run, or any Hugging Face directory of the family, on text; see `Evaluation`.

    Args:
        run: a run's folder or a Hugging Face directory
        paths: files and folders; none: the run's own held-out text, which a bare model directory does not have
        errors: strict or replace, for text that is not UTF-8
        device: auto, cpu, cuda …
        weights: stored, or int8 for what the engine makes of them under that option
        progress: tell on standard error how far it is

    Returns:
        An `Evaluation`'s values with the text's documents and bytes, mtp_acceptance only of a model with such a head;
        of several held-out sets, each under its name.
    """
    where = devices.resolve(device)
    devices.keep_freed_memory()
    directory = hub.find_model(run)
    model, tokenizer = hub.load(directory, device=where), Tokenizer.load(directory)
    if weights == "int8":
        quantize_to_int8(model)
    length, rows = 512, 8
    if paths:
        sets = {"": prepare_one(tuple(paths), CorpusConfig(errors=errors), tokenizer, progress)}
    else:
        from gossamer.train.recipe import load_recipe

        if not (run / "config.yaml").is_file():
            raise UserError(f"{run} is a model without held-out text of its own; name text with --data PATH")
        recipe = load_recipe(run / "config.yaml")
        length, rows = recipe.training.sequence_length, recipe.training.batch_size
        sets = prepare(recipe.corpus, tokenizer, progress).validation
    mtp = None if model.mtp is None else MTPTraining()
    results: dict[str, dict[str, Any]] = {}
    for name, shard in sets.items():
        batches = _told(validation_batches(shard, rows, length), shard, name, progress)
        found = evaluate(model, batches, bytes_of_tokens(shard, tokenizer), mtp)
        if not math.isfinite(found.loss):
            raise UserError(_why_not_finite(model, validation_batches(shard, rows, length), where))
        results[name] = asdict(found) | {"documents": shard.num_documents, "bytes": shard.num_bytes}
        if mtp is None:
            del results[name]["mtp_acceptance"]
    return results if len(results) > 1 else next(iter(results.values()))
