"""How well a model predicts text that it has not learned from: loss, perplexity and bits per byte.

`Validator` measures a run's held-out sets between its steps, `evaluate_run` a finished model on any text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gossamer import device as devices
from gossamer import hub
from gossamer.data.config import CorpusConfig
from gossamer.data.dataset import Dataset, prepare, prepare_for_evaluation
from gossamer.data.packing import Batch, validation_batches
from gossamer.data.progress import ProgressDisplay
from gossamer.data.token_files import TokenFile
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError, did_you_mean
from gossamer.hub.find import RUN_CONFIG
from gossamer.model.causal_lm import CausalLM, targets_ahead
from gossamer.model.mtp import MTPTraining
from gossamer.model.nonfinite import NOT_FINITE, explain_nonfinite
from gossamer.model.quantize import quantize_to_int8
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths
from gossamer.reading import TextErrors
from gossamer.train.config import TrainingConfig
from gossamer.train.recipe import load_recipe
from gossamer.train.step import Learner
from gossamer.train.world import SINGLE_PROCESS, World
from gossamer.units import decimal_size

__all__ = [
    "Evaluation",
    "FinalEvaluation",
    "Tally",
    "Validator",
    "bytes_of_tokens",
    "evaluate",
    "evaluate_run",
    "tally",
    "validation_set",
]

_COUNTED_AT_ONCE = 1 << 22  # tokens
_LENGTH, _ROWS = 512, 8  # of a batch in which text is measured that no recipe comes with


@dataclass(frozen=True)
class Evaluation:
    """How well a text was predicted.

    Attributes:
        loss: mean negative log-likelihood of a token, in nats
        perplexity: e^loss
        bits_per_byte: bits for a UTF-8 byte of the text, by which models with different tokenizers compare, those that
            rewrite the text (Unicode normalization, lower case) included; see `bytes_of_tokens`
        tokens: how many tokens were predicted
        mtp_acceptance: for each step of the multi-token-prediction head, the share of places where its likeliest token
            was the trunk's own, as at all earlier steps: the greedy drafts that decoding would accept
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    mtp_acceptance: tuple[float, ...] = ()


@dataclass(frozen=True)
class Tally:
    """Sums over a text, from which an `Evaluation` follows; those of its parts add up to that of the whole.

    Attributes:
        counts: [3] nats, tokens and bytes; float64 on the CPU
        drafts: [2, steps] drafts accepted and drafts in all, for each step of the multi-token-prediction head
    """

    counts: Tensor = field(repr=False)
    drafts: Tensor = field(repr=False)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.counts + other.counts, self.drafts + other.drafts)

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
        return int(self.counts[1])

    def evaluation(self) -> Evaluation:
        """Return the means.

        Raises:
            UserError: there was no token to predict.
        """
        nats, tokens, size = self.counts.tolist()
        if not tokens or not size:
            raise UserError("nothing to evaluate: the text holds no token to predict")
        accepted, drafted = self.drafts
        rates = tuple((accepted / drafted.clamp(min=1)).tolist())
        loss = nats / tokens
        return Evaluation(loss, math.exp(min(loss, 700.0)), nats / math.log(2) / size, int(tokens), rates)


def evaluate(
    model: CausalLM,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    mtp: MTPTraining | None = None,
    world: World = SINGLE_PROCESS,
) -> Evaluation:
    """Measure the model on this process's share of batches; the result is of all processes' together.

    Arguments and errors are those of `tally` and `Tally.evaluation`.
    """
    return tally(model, batches, token_bytes, mtp, world).evaluation()


@torch.no_grad()
def tally(
    model: CausalLM,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    mtp: MTPTraining | None = None,
    world: World = SINGLE_PROCESS,
) -> Tally:
    """Add up the losses of this process's share of batches; the result is of all processes' together.

    Args:
        model: put in evaluation mode meanwhile
        batches: this process's share
        token_bytes: [V] the bytes of text that each token of the vocabulary stands for, from `bytes_of_tokens`
        mtp: how the multi-token-prediction head was taught; None leaves it out
        world: the processes that share the batches
    """
    device = next(model.parameters()).device
    counts = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes; on the CPU
    drafts = torch.zeros(2, mtp.steps if mtp else 0, dtype=torch.int64)  # accepted, in all
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
    return Tally(world.all_reduce(counts), world.all_reduce(drafts))


def bytes_of_tokens(file: TokenFile, tokenizer: Tokenizer) -> np.ndarray:
    """Return the bytes of original text that each token stands for, float64 [V]; over `file` they add up to its bytes.

    These are the bytes of the token's own spelling where the tokenizer keeps the text. Where it rewrites the text, all
    of them are scaled by the same factor: a part of the file is counted as if it were rewritten like the whole.
    """
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for begin in range(0, file.num_tokens, _COUNTED_AT_ONCE):
        ids = file.read(begin, min(_COUNTED_AT_ONCE, file.num_tokens - begin))
        counts += np.bincount(ids, minlength=len(counts))
    spelled = tokenizer.num_bytes_per_token().astype(np.float64)
    total = float(counts @ spelled)
    if not total:  # only unknown tokens
        return np.full(len(counts), file.num_bytes / file.num_tokens)
    return spelled * (file.num_bytes / total)


def _acceptance(greedy: list[Tensor], labels: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return for each step of the head how many drafts the trunk would accept and how many there were, [2, steps]."""
    trunk, *steps = greedy
    counts, accepted = [], torch.ones_like(labels, dtype=torch.bool)
    for step, draft in enumerate(steps, start=1):
        # The trunk `step` places later knows the text up to there, and its likeliest token is what the draft must be.
        has_target = targets_ahead(labels, lengths, step + 1) != IGNORED
        accepted &= draft == targets_ahead(trunk, lengths, step)
        counts.append(torch.stack([(accepted & has_target).sum(), has_target.sum()]))
    return torch.stack(counts, dim=1)


# A run.


class InTime(Protocol):
    """Yields as many of the batches as there is time for, and at least `min_batches`."""

    def __call__(self, batches: Iterator[Batch], min_batches: int = 1) -> Iterator[Batch]: ...


class FinalEvaluation(NamedTuple):
    """The last evaluation of a held-out set.

    Attributes:
        comparable: over the text that the evaluations before it read; None where that is the whole, or there were none
        whole: over all that was read
    """

    comparable: Evaluation | None
    whole: Evaluation


def validation_set(training: TrainingConfig, dataset: Dataset) -> str:
    """Return the name of the held-out set whose loss tells which weights are the best.

    Raises:
        UserError: `training.best_checkpoint_by` names none.
    """
    name = training.best_checkpoint_by or next(iter(dataset.validation))
    if name not in dataset.validation:
        hint = did_you_mean(name, dataset.validation) or f"; there is {', '.join(dataset.validation)}"
        raise UserError(f"training.best_checkpoint_by {name!r} is no held-out set{hint}")
    return name


class Validator:
    """Measures a network in training on every held-out set.

    Args:
        training: how rows are made of the text, and how much of a set is read
        dataset: the sets
        learner: the network
        world: the processes, which share the rows
        best_by: the set whose loss decides which checkpoint is the best, from `validation_set`
    """

    def __init__(
        self, training: TrainingConfig, dataset: Dataset, learner: Learner, world: World, best_by: str
    ) -> None:
        self.training, self.dataset, self.learner, self.world = training, dataset, learner, world
        self.best_by = best_by
        self._token_bytes: dict[str, np.ndarray] = {}  # by set

    def measure(self) -> Iterator[tuple[str, Evaluation]]:
        """Measure set by set, as during the run; yields each set's name and evaluation."""
        for name, file in self.dataset.validation.items():
            yield name, self._tally(name, self._batches(file, self.training.eval_tokens)).evaluation()

    def measure_last(self, in_time: InTime) -> Iterator[tuple[str, FinalEvaluation]]:
        """Measure set by set, as at the end of the run: over more text, as far as `in_time` allows.

        It begins with the text that the evaluations before it read, and measures that part by itself as well: a curve
        of losses over different texts would bend where nothing was learned or forgotten.
        """
        max_tokens = self.training.final_eval_tokens
        before = self.training.eval_tokens if self.training.eval_every else 0
        for name, file in self.dataset.validation.items():
            if not 0 < before < max_tokens:
                whole = self._tally(name, in_time(self._batches(file, max_tokens)))
                yield name, FinalEvaluation(None, whole.evaluation())
            else:
                first = self._tally(name, self._batches(file, before))
                rest = self._tally(name, in_time(self._batches(file, max_tokens, before), min_batches=0))
                comparable = first.evaluation() if rest.tokens else None
                yield name, FinalEvaluation(comparable, (first + rest).evaluation())

    def share_of_last(self, tokens: int) -> float:
        """Return what reading so many tokens, of all sets together, is of the reading at the run's end."""
        max_tokens = self.training.final_eval_tokens
        return tokens / sum(min(max_tokens, file.num_tokens) for file in self.dataset.validation.values())

    def _batches(self, file: TokenFile, max_tokens: int, after_tokens: int = 0) -> Iterator[Batch]:
        rows, length = self.training.batch_size, self.training.sequence_length
        return validation_batches(file, rows, length, max_tokens, self.world.rank, self.world.size, after_tokens)

    def _tally(self, name: str, batches: Iterator[Batch]) -> Tally:
        if name not in self._token_bytes:
            self._token_bytes[name] = bytes_of_tokens(self.dataset.validation[name], self.dataset.tokenizer)
        return tally(self.learner.model, batches, self._token_bytes[name], self.learner.mtp, self.world)


# Finished models.


def evaluate_run(
    run: Path,
    paths: Sequence[str] = (),
    errors: TextErrors = "strict",
    device: str = "auto",
    weights: str = "stored",
    progress: bool = True,
) -> dict[str, Any]:
    """Measure the model of a run, or of any Hugging Face directory of the family, on text.

    Args:
        run: a run's folder or a Hugging Face directory
        paths: files and folders; none: the run's own held-out text, which a bare model directory does not have
        errors: strict or replace, for text that is not UTF-8
        device: auto, cpu, cuda …
        weights: stored, or int8 for the weights as the engine rounds them under that option
        progress: say on standard error how far it is

    Returns:
        The values of an `Evaluation` with the text's documents and bytes, mtp_acceptance only for a model with such a
        head; of several held-out sets, each under its name.
    """
    target = devices.resolve(device)
    devices.keep_freed_memory()
    directory = hub.find_model(run)
    model, tokenizer = hub.load(directory, device=target), Tokenizer.load(directory)
    tokenizer.check_embedding(model.config.vocab_size, directory)
    if weights == "int8":
        quantize_to_int8(model)
    length, rows = _LENGTH, _ROWS
    if paths:
        sets = {"": prepare_for_evaluation(tuple(paths), CorpusConfig(errors=errors), tokenizer, progress)}
    else:
        if not (run / RUN_CONFIG).is_file():
            raise UserError(f"{run} is a model without held-out text of its own; name text with --data PATH")
        recipe = load_recipe(run / RUN_CONFIG)
        if recipe.tuning is not None:
            raise UserError(f"{run} was tuned on examples, which are no text to measure on; name some with --data PATH")
        length, rows = recipe.training.sequence_length, recipe.training.batch_size
        sets = prepare(recipe.corpus, tokenizer, progress).validation
    mtp = None if model.mtp is None else MTPTraining()
    results: dict[str, dict[str, Any]] = {}
    for name, file in sets.items():
        batches = _with_progress(validation_batches(file, rows, length), file, name, progress)
        found = evaluate(model, batches, bytes_of_tokens(file, tokenizer), mtp)
        if not math.isfinite(found.loss):
            raise UserError(_why_not_finite(model, validation_batches(file, rows, length), target))
        results[name] = asdict(found) | {"documents": file.num_documents, "bytes": file.num_bytes}
        if mtp is None:
            del results[name]["mtp_acceptance"]
    return results if len(results) > 1 else next(iter(results.values()))


@torch.no_grad()
def _why_not_finite(model: CausalLM, batches: Iterable[Batch], device: torch.device) -> str:
    """Return a line that says where the first row without a finite loss stops being finite."""
    for batch in batches:
        for ids in batch.input_ids.to(device):
            logits = model(ids.unsqueeze(0)).logits
            if not bool(logits.isfinite().all()):
                return explain_nonfinite(model, ids).line
    return f"{NOT_FINITE} for all of the text together"


def _with_progress(batches: Iterable[Batch], file: TokenFile, name: str, enabled: bool) -> Iterator[Batch]:
    """Yield the batches, and say on standard error how much of the text they have been."""
    title = f"measuring on {decimal_size(file.num_bytes)}{f' of {name}' if name else ''}"
    with ProgressDisplay(enabled).stage(title, file.num_bytes) as advance:
        for batch in batches:
            yield batch
            share = int((batch.labels != IGNORED).sum()) / file.num_tokens
            advance(round(share * file.num_bytes))
