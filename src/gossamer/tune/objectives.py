"""What tuning minimizes: the losses of answers, of pairs of answers, and of answers that are rated.

ℓ is the log-probability of a sample's targets at temperature 1 over the whole vocabulary, |y| how many they are, and
Δ = Σ ℓ − Σ ℓ_ref, where the reference is the network before its first step. Losses are divided by the pairs or samples
of the whole step, over micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.data.chat.rows import ExampleBatch, padding_row, rows_of
from gossamer.data.chat.samples import Example
from gossamer.data.packing import Batch
from gossamer.model.causal_lm import Output
from gossamer.train.config import TuningConfig
from gossamer.train.objective import NEXT_TOKEN, Losses, Objective, targets_per_document
from gossamer.train.world import World

__all__ = ["KtoObjective", "PairObjective", "document_sums", "needs_reference", "objective_of", "trained_examples"]

PairLoss = Literal["sigmoid", "norm", "ipo", "simpo"]
Sums = npt.NDArray[np.float64]


def needs_reference(tuning: TuningConfig) -> bool:
    """Whether a method compares with the network before its first step."""
    return tuning.method == "kto" or (tuning.method == "dpo" and tuning.loss != "simpo")


def trained_examples(examples: Sequence[Example]) -> list[Example]:
    """Return the examples as rows of training hold them: of a rating the completion behind its own prompt alone.

    The other sample of a rating is only measured, in rows of its own (`KtoObjective.of_step`).
    """
    return [one if one.label is None else replace(one, samples=one.samples[:1]) for one in examples]


def objective_of(tuning: TuningConfig, examples: Sequence[Example], reference: Sums | None) -> Objective:
    """Return what a tuning learns.

    Args:
        tuning: with the method of its examples, and the tokens of a row
        examples: those that batches hold the numbers of
        reference: [examples, 2] sums of log-probabilities before the first step, if `needs_reference`
    """
    if tuning.method == "dpo":
        return PairObjective(tuning.loss, tuning.pair_beta, tuning.gamma, tuning.sft_weight, reference)
    if tuning.method == "kto":
        assert reference is not None and tuning.row_tokens is not None
        return KtoObjective.of_examples(
            examples, reference, 0.1 if tuning.beta is None else tuning.beta, tuning.row_tokens
        )
    return NEXT_TOKEN


@dataclass(frozen=True, eq=False)
class PairObjective(Objective):
    """A loss of pairs, which the chosen answer should lead by what the network has learned.

    With Δ of the chosen answer (w) and of the rejected one (l):

    - sigmoid: −log σ(β (Δ_w − Δ_l)), arXiv 2305.18290
    - norm: −log σ(β (Δ_w/|y_w| − Δ_l/|y_l|)), arXiv 2411.15124
    - ipo: (Δ_w/|y_w| − Δ_l/|y_l| − 1/(2β))², arXiv 2310.12036, by token
    - simpo: −log σ(β (Σℓ_w/|y_w| − Σℓ_l/|y_l|) − γ), arXiv 2405.14734

    Attributes:
        loss: which of them
        beta: β
        gamma: γ
        sft_weight: weight of −Σℓ_w/|y_w| beside it (arXiv 2404.19733)
        reference: [examples, 2] sums of the log-probabilities of chosen and rejected answers before the first step;
            None for simpo
    """

    needs_logprobs = True

    loss: PairLoss = "sigmoid"
    beta: float = 0.1
    gamma: float = 0.5
    sft_weight: float = 0.0
    reference: Sums | None = None

    def __post_init__(self) -> None:
        assert (self.reference is None) == (self.loss == "simpo")

    def counts(self, batch: Batch) -> list[int]:
        """Count the pairs."""
        return [sum(side == 0 for side in _examples_of(batch).sides)]

    def losses(self, out: Output, batch: Batch, divisors: Sequence[int]) -> Losses:
        """Return the loss of the pairs and that of chosen answers; measured are accuracy, margin and rewards."""
        batch, (pairs, *_) = _examples_of(batch), divisors
        logprobs, lengths = _answers(out, batch)
        chosen, rejected = (indices.to(logprobs.device) for indices in _sides(batch))
        rewards = self.beta * self._scores(logprobs, lengths, batch)
        margin = rewards[chosen] - rewards[rejected]
        losses: Losses = {"loss": (1.0, self._of_margin(margin).sum() / pairs)}
        if self.sft_weight:
            losses["sft_loss"] = (self.sft_weight, -(logprobs / lengths)[chosen].sum() / pairs)
        measures = {
            "accuracy": (margin > 0).to(margin.dtype),
            "margin": margin,
            "reward_chosen": rewards[chosen],
            "reward_rejected": rewards[rejected],
        }
        return losses | {name: (0.0, value.detach().sum() / pairs) for name, value in measures.items()}

    def _scores(self, logprobs: Tensor, lengths: Tensor, batch: ExampleBatch) -> Tensor:
        """Return what is compared between the answers of a pair."""
        if self.reference is not None:
            logprobs = logprobs - _reference_of(self.reference, batch, logprobs)
        return logprobs if self.loss == "sigmoid" else logprobs / lengths

    def _of_margin(self, margin: Tensor) -> Tensor:
        """Return the loss of each pair from β times the difference of its answers' scores."""
        match self.loss:
            case "ipo":
                return (margin / self.beta - 1 / (2 * self.beta)).square()
            case "simpo":
                return -F.logsigmoid(margin - self.gamma)
        return -F.logsigmoid(margin)


@dataclass(frozen=True, eq=False)
class KtoObjective(Objective):
    """The loss of answers that are rated, each by itself (arXiv 2402.01306).

    λ_D (1 − σ(β (Δ − z))) for good ones and λ_U (1 − σ(β (z − Δ))) for the others, where z = max(0, mean Δ of the
    step's completions, each behind another prompt) is what the network has moved anyway; no gradient goes through it.
    The good and the others of all examples weigh as much together, and an example weighs 1 in the mean.

    Attributes:
        labels: [examples] whether each is good
        reference: [examples, 2] sums of the log-probabilities of each completion before the first step, behind its own
            prompt and behind the other one, NaN where there is no other one
        elsewhere: the completions behind other prompts, by the numbers of their examples
        beta: β
        row_tokens: tokens of a row in which these are measured
        kl: z of the step
    """

    needs_logprobs = True

    labels: npt.NDArray[np.bool_]
    reference: Sums
    elsewhere: Sequence[Example]
    beta: float
    row_tokens: int
    kl: float = 0.0

    @classmethod
    def of_examples(cls, examples: Sequence[Example], reference: Sums, beta: float, row_tokens: int) -> KtoObjective:
        """Return the objective of rated examples as `build_examples` makes them."""
        elsewhere = [replace(one, samples=one.samples[1:] or one.samples) for one in examples]
        labels = np.array([bool(one.label) for one in examples])
        return cls(labels, reference, elsewhere, beta, row_tokens)

    def of_step(
        self, batches: Sequence[Batch], token_logprobs: Callable[[Batch], Tensor], world: World
    ) -> KtoObjective:
        """Return the objective with z, from a pass over the step's completions behind other prompts."""
        taken = [example for batch in batches for example in _examples_of(batch).examples]
        indices = [example for example in taken if not np.isnan(self.reference[example, 1])]
        rows = rows_of(self.elsewhere, indices, self.row_tokens) if indices else []
        rows += [padding_row()] * (world.max_over_ranks(len(rows)) - len(rows))
        moved = torch.zeros(2, device=world.device)  # the sum over completions, and how many they are
        for row in rows:
            logprobs, _ = document_sums(token_logprobs(row), row)
            before = torch.from_numpy(self.reference[list(row.examples), 1]).to(logprobs)
            moved += torch.stack([(logprobs - before).sum(), logprobs.new_tensor(len(logprobs))])
        total, count = world.all_reduce(moved).tolist()
        return replace(self, kl=max(0.0, total / max(count, 1)))

    def counts(self, batch: Batch) -> list[int]:
        """Count the samples, the good ones and the others."""
        good = int(self.labels[list(_examples_of(batch).examples)].sum())
        total = len(_examples_of(batch).examples)
        return [total, good, total - good]

    def losses(self, out: Output, batch: Batch, divisors: Sequence[int]) -> Losses:
        """Return the loss of the samples; measured are accuracy, the rewards of good and bad answers, and z."""
        batch, (total, *totals) = _examples_of(batch), divisors
        logprobs, _ = _answers(out, batch)
        is_good = torch.from_numpy(self.labels[list(batch.examples)]).to(logprobs.device)
        rewards = self.beta * (logprobs - _reference_of(self.reference, batch, logprobs))
        lead = torch.where(is_good, 1.0, -1.0).to(rewards) * (rewards - self.beta * self.kl)
        weights = torch.where(is_good, *self._weights()).to(rewards)
        values = {"loss": (1.0, (weights * torch.sigmoid(-lead)).sum() / total)}
        rewards, lead = rewards.detach(), lead.detach()
        measures = {
            "accuracy": (lead > 0).sum() / total,
            "reward_chosen": rewards[is_good].sum() / totals[0],
            "reward_rejected": rewards[~is_good].sum() / totals[1],
            "kl": rewards.new_tensor(self.kl * len(rewards) / total),
        }
        return values | {name: (0.0, value) for name, value in measures.items()}

    def _weights(self) -> tuple[float, float]:
        """Return λ_D and λ_U."""
        total, good = len(self.labels), int(self.labels.sum())
        if good in (0, total):
            return 1.0, 1.0
        return total / (2 * good), total / (2 * (total - good))


def _examples_of(batch: Batch) -> ExampleBatch:
    """Return a batch of examples as such; the learner knows it as any other."""
    assert isinstance(batch, ExampleBatch)
    return batch


def document_sums(logprobs: Tensor, batch: ExampleBatch) -> tuple[Tensor, Tensor]:
    """Add up the log-probabilities of each document's targets.

    Args:
        logprobs: [targets] in the order of the batch
        batch: the batch, on the CPU

    Returns:
        The sums and the numbers of targets, [documents] each, none for padding.
    """
    counts = targets_per_document(batch)
    document_of = torch.repeat_interleave(counts).to(logprobs.device)
    sums = logprobs.new_zeros(len(counts)).index_add(0, document_of, logprobs)
    documents = len(batch.examples)
    return sums[:documents], counts[:documents].to(logprobs.device)


def _answers(out: Output, batch: ExampleBatch) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each answer and its length."""
    assert out.token_logprobs is not None
    return document_sums(out.token_logprobs, batch)


def _sides(batch: ExampleBatch) -> tuple[Tensor, Tensor]:
    """Return which documents are the chosen and the rejected answers, int64 [pairs] each, in the same order."""
    examples, sides = torch.tensor(batch.examples, dtype=torch.int64), torch.tensor(batch.sides, dtype=torch.int64)
    chosen, rejected = (documents[examples[documents].argsort(stable=True)] for documents in _both(sides))
    assert torch.equal(examples[chosen], examples[rejected]), "a pair is in one row"
    return chosen, rejected


def _both(sides: Tensor) -> tuple[Tensor, Tensor]:
    return (sides == 0).nonzero()[:, 0], (sides == 1).nonzero()[:, 0]


def _reference_of(reference: Sums, batch: ExampleBatch, like: Tensor) -> Tensor:
    """Return the log-probabilities of each document before the first step, [documents]."""
    return torch.from_numpy(reference[list(batch.examples), list(batch.sides)]).to(like)
