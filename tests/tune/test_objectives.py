"""The losses of tuning: TRL's numbers and gradients, whatever rows and micro-batches the answers lie in."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from answers import answers, assert_close, learner_of, pairs, ratings, reference, sample, step_of
from gossamer.data.chat.rows import ExampleBatch, padding_row, rows_of
from gossamer.data.chat.samples import Example
from gossamer.model.causal_lm import CausalLM, Output
from gossamer.train.config import TuningConfig
from gossamer.train.objective import NEXT_TOKEN, Objective, targets_per_document
from gossamer.train.world import SINGLE_PROCESS
from gossamer.tune.objectives import KtoObjective, PairObjective, objective_of, trained_examples
from parallel_runs import Case

LOSSES = ("sigmoid", "norm", "ipo", "simpo")


# The same log-probabilities in TRL's own code.


def logprobs_of(rows: list[ExampleBatch], seed: int) -> list[Tensor]:
    """Random log-probabilities of the targets of each row."""
    random = torch.Generator().manual_seed(seed)
    counts = [int(targets_per_document(row).sum()) for row in rows]
    return [(-3 * torch.rand(count, generator=random, dtype=torch.float64)).requires_grad_() for count in counts]


def padded(logprobs: list[Tensor], rows: list[ExampleBatch], order: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The log-probabilities of (example, side) after (example, side), [documents, longest], and which are targets."""
    found = {}
    for row, values in zip(rows, logprobs, strict=True):
        parts = values.split(targets_per_document(row).tolist())
        found |= dict(zip(zip(row.examples, row.sides, strict=True), parts, strict=True))
    length = max(len(found[key]) for key in order)
    lines = [torch.nn.functional.pad(found[key], (0, length - len(found[key]))) for key in order]
    mask = torch.stack([torch.arange(length) < len(found[key]) for key in order])
    return torch.stack(lines), mask


def trainer(**attributes: Any) -> MagicMock:
    """A double for all of a trainer but its loss."""
    self = MagicMock(**attributes)
    self.accelerator.device, self.aux_loss_enabled, self.ld_alpha = torch.device("cpu"), False, None
    self.accelerator.gather = self.accelerator.gather_for_metrics = lambda value: value
    self.use_weighting, self.precompute_ref_logps, self._metrics = False, True, {"train": defaultdict(list)}
    return self


def outputs(logprobs: Tensor) -> SimpleNamespace:
    measures = dict.fromkeys(("entropy", "mean_logits"), logprobs.detach())
    return SimpleNamespace(log_probs=logprobs, is_top1=logprobs.detach() > -1, **measures)


def inputs(mask: Tensor) -> dict[str, Tensor]:
    """Completions behind a prompt of one token."""
    whole = torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], 1)
    return {
        "input_ids": torch.zeros(whole.shape, dtype=torch.int64),
        "completion_mask": whole.long(),
        "attention_mask": whole,
    }


def losses_of(objective: Objective, rows: list[ExampleBatch], logprobs: list[Tensor]) -> dict[str, Tensor]:
    """The values of a step, whose first is the loss that is minimized."""
    divisors = torch.tensor([objective.counts(row) for row in rows]).sum(0).clamp(min=1).tolist()
    sums: dict[str, Tensor] = {"minimized": torch.zeros((), dtype=torch.float64)}
    for row, values in zip(rows, logprobs, strict=True):
        for name, (weight, loss) in objective.losses(Output(token_logprobs=values), row, divisors).items():
            sums[name] = sums.get(name, 0.0) + loss.detach()
            sums["minimized"] = sums["minimized"] + weight * loss
    return sums


def assert_same(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    own, other = (torch.autograd.grad(loss, leaves) for loss in (ours, theirs))
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("loss", "name"), [("sigmoid", "sigmoid"), ("norm", "sigmoid_norm"), ("ipo", "ipo")])
@settings(max_examples=5)
@given(beta=st.floats(0.01, 5), seed=st.integers(0, 999))
def test_pairs_as_in_trl(loss: str, name: str, beta: float, seed: int) -> None:
    dpo = pytest.importorskip("trl.trainer.dpo_trainer")
    examples = pairs()
    before, rows = reference(examples, seed), rows_of(examples, range(len(examples)), 30)
    logprobs = logprobs_of(rows, seed)
    found = losses_of(PairObjective(loss, beta, reference=before), rows, logprobs)

    lines, mask = padded(logprobs, rows, [(example, side) for side in (0, 1) for example in range(len(examples))])
    self = trainer(loss_types=[name], loss_weights=[1.0], f_divergence_type="reverse_kl", beta=beta)
    given_ = inputs(mask) | {
        f"ref_{side}_logps": torch.from_numpy(before[:, at]) for at, side in enumerate(("chosen", "rejected"))
    }
    theirs = dpo.DPOTrainer._compute_loss(self, lambda **_: outputs(lines), given_, False)
    assert_same(found["minimized"], theirs, logprobs)
    if loss == "sigmoid":
        logged = self._metrics["train"]
        for ours, their_name in (
            ("accuracy", "accuracies"),
            ("margin", "margins"),
            ("reward_chosen", "chosen"),
            ("reward_rejected", "rejected"),
        ):
            assert float(found[ours]) == pytest.approx(logged[f"rewards/{their_name}"][0], rel=1e-6), ours


def test_pairs_without_a_reference_as_in_trl() -> None:
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    examples = pairs()
    rows = rows_of(examples, range(len(examples)), 30)
    logprobs = logprobs_of(rows, 1)
    found = losses_of(PairObjective("simpo", 2.0, 0.7), rows, logprobs)
    lines, mask = padded(logprobs, rows, [(example, side) for side in (0, 1) for example in range(len(examples))])
    means = (lines.sum(1) / mask.sum(1)).chunk(2)
    self = trainer(loss_type="simpo", beta=2.0, simpo_gamma=0.7, label_smoothing=0.0, alpha=0.0)
    theirs, chosen, rejected = cpo.CPOTrainer.cpo_loss(self, *means)
    assert_same(found["minimized"], theirs.mean(), logprobs)
    torch.testing.assert_close(found["reward_chosen"], chosen.mean())
    torch.testing.assert_close(found["margin"], (chosen - rejected).mean())


@settings(max_examples=5)
@given(beta=st.floats(0.01, 2), seed=st.integers(0, 999), shift=st.sampled_from([-3.0, 2.0]))
def test_ratings_as_in_trl(beta: float, seed: int, shift: float) -> None:
    """Of one batch, with the weights of the two kinds that the objective asks for; z is above 0 or cut there."""
    kto = pytest.importorskip("trl.trainer.kto_trainer")
    examples = ratings(6)
    examples[-1] = replace(examples[-1], samples=(*examples[-1].samples, sample(3, 4)))
    before = reference(examples, seed)
    objective = KtoObjective.of_examples(examples, before, beta, 30)
    rows = rows_of(trained_examples(examples), range(len(examples)), 30)
    logprobs = logprobs_of(rows, seed)
    moved = torch.from_numpy(before[:, 1]) + shift + torch.linspace(-1, 1, len(examples))

    def behind_other_prompts(row: ExampleBatch) -> Tensor:
        counts = targets_per_document(row)
        return (moved[list(row.examples)] / counts).repeat_interleave(counts)

    objective = objective.of_step(rows, behind_other_prompts, SINGLE_PROCESS)
    found = losses_of(objective, rows, logprobs)

    lines, mask = padded(logprobs, rows, [(example, 0) for example in range(len(examples))])
    good = sum(bool(one.label) for one in examples)
    weights = {"desirable_weight": 6 / (2 * good), "undesirable_weight": 6 / (2 * (6 - good))}
    self = trainer(loss_type="kto", beta=beta, calculate_KL=True, **weights)
    self._compute_kl_logps = lambda *_: moved
    given_ = inputs(mask) | {
        "label": torch.tensor([bool(one.label) for one in examples]),
        "ref_logps": torch.from_numpy(before[:, 0]),
        "ref_KL_logps": torch.from_numpy(before[:, 1]),
    }
    theirs = kto.KTOTrainer._compute_loss(self, lambda **_: outputs(lines), given_, False)
    assert_same(found["minimized"], theirs, logprobs)
    logged = self._metrics["train"]
    assert (logged["kl"][0] > 0) == (shift > 0)
    for ours, their_name in (
        ("kl", "kl"),
        ("reward_chosen", "rewards/chosen"),
        ("reward_rejected", "rewards/rejected"),
    ):
        assert float(found[ours]) == pytest.approx(logged[their_name][0], rel=1e-5), ours


# Fixed points, and what the objectives say of themselves.


def unmoved(rows: list[ExampleBatch], examples: list[Example]) -> tuple[list[Tensor], np.ndarray]:
    """Log-probabilities, and a reference that has the same."""
    logprobs, sums = logprobs_of(rows, 0), np.full((len(examples), 2), np.nan)
    for row, values in zip(rows, logprobs, strict=True):
        parts = values.split(targets_per_document(row).tolist())
        sums[list(row.examples), list(row.sides)] = [float(part.detach().sum()) for part in parts]
    return logprobs, sums


@pytest.mark.parametrize(("loss", "at_start"), [("sigmoid", math.log(2)), ("norm", math.log(2)), ("ipo", 25.0)])
def test_pairs_before_the_first_step(loss: str, at_start: float) -> None:
    examples = pairs()
    rows = rows_of(examples, range(len(examples)), 30)
    logprobs, sums = unmoved(rows, examples)
    found = losses_of(PairObjective(loss, 0.1, reference=sums), rows, logprobs)
    assert float(found["minimized"].detach()) == pytest.approx(at_start)
    assert {name: float(found[name]) for name in ("margin", "reward_chosen", "reward_rejected")} == pytest.approx(
        {"margin": 0, "reward_chosen": 0, "reward_rejected": 0}, abs=1e-12
    )


@pytest.mark.parametrize("labels", [(True, False, False, False, True), (True,) * 5, (False,) * 5])
def test_ratings_before_the_first_step(labels: tuple[bool, ...]) -> None:
    examples = [replace(one, label=label) for one, label in zip(ratings(), labels, strict=True)]
    rows = rows_of(trained_examples(examples), range(len(examples)), 30)
    logprobs, sums = unmoved(rows, examples)
    found = losses_of(KtoObjective.of_examples(examples, sums, 0.1, 30), rows, logprobs)
    assert float(found["minimized"].detach()) == pytest.approx(0.5)


def test_the_chosen_answers_own_loss_is_added_with_its_weight() -> None:
    examples = pairs()
    before, rows = reference(examples), rows_of(examples, range(len(examples)), 30)
    logprobs = logprobs_of(rows, 0)
    alone = losses_of(PairObjective("sigmoid", reference=before), rows, logprobs)
    found = losses_of(PairObjective("sigmoid", sft_weight=0.3, reference=before), rows, logprobs)
    lines, mask = padded(logprobs, rows, [(example, 0) for example in range(len(examples))])
    expected = -(lines.sum(1) / mask.sum(1)).mean()
    torch.testing.assert_close(found["sft_loss"], expected.detach())
    assert_same(found["minimized"], alone["minimized"] + 0.3 * expected, logprobs)


def test_an_example_that_a_step_has_twice_counts_twice() -> None:
    """At the end of an epoch, when the next one begins in the same step; even in one row."""
    examples = pairs(2)
    objective = PairObjective("sigmoid", reference=reference(examples))
    twice, apart = rows_of(examples, [0, 1, 0, 0], 1000), rows_of(examples, [0, 1, 0, 0], 10)
    assert len(twice) == 1 and len(apart) == 4
    by_example = {example: logprobs_of([row], 0)[0] for row in apart for example in row.examples[:1]}
    parts = [by_example[row.examples[0]] for row in apart]
    joined = torch.cat([by_example[example] for example in twice[0].examples[::2]])
    torch.testing.assert_close(losses_of(objective, twice, [joined]), losses_of(objective, apart, parts))


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_row_of_padding_gives_nothing_but_has_a_gradient(method: str) -> None:
    examples = pairs() if method == "dpo" else ratings()
    objective = objective_of(TuningConfig(method=method, row_tokens=30), examples, reference(examples))
    nothing = torch.zeros(0, requires_grad=True)
    found = losses_of(objective, [padding_row()], [nothing])
    assert not any(float(value.detach()) for value in found.values())
    assert torch.autograd.grad(found["minimized"], nothing)[0].shape == (0,)


def test_the_objective_of_a_tuning() -> None:
    examples, rated = pairs(), ratings()
    sums = reference(examples)
    assert objective_of(TuningConfig(method="sft"), [], None) is NEXT_TOKEN
    found = objective_of(TuningConfig(method="dpo", loss="norm", sft_weight=0.5), examples, sums)
    assert isinstance(found, PairObjective)
    assert (found.loss, found.beta, found.sft_weight) == ("norm", 5.0, 0.5) and found.reference is sums
    found = objective_of(TuningConfig(method="kto", beta=0.3, row_tokens=99), rated, reference(rated))
    assert isinstance(found, KtoObjective) and (found.beta, found.row_tokens) == (0.3, 99)
    assert [len(one.samples) for one in found.elsewhere] == [1] * 5
    assert [len(one.samples) for one in trained_examples([*examples, *rated])] == [2] * 4 + [1] * 5


# Rows and micro-batches.


@cache
def network(experts: int) -> CausalLM:
    return Case(experts=experts, dtype="float32").model()


def objective_for(method: str) -> tuple[list[Example], Objective]:
    if method == "sft":
        return answers(), NEXT_TOKEN
    examples = ratings() if method == "kto" else pairs()
    if method == "kto":
        return trained_examples(examples), KtoObjective.of_examples(examples, reference(examples), 0.1, 20)
    before = None if method == "simpo" else reference(examples)
    return examples, PairObjective(method, 0.1, sft_weight=0.3, reference=before)


@cache
def one_row(method: str, experts: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    examples, objective = objective_for(method)
    return step_of(learner_of(network(experts), objective), rows_of(examples, range(len(examples)), 1000))


@pytest.mark.parametrize("experts", [0, 8], ids=["dense", "experts"])
@pytest.mark.parametrize("method", ["sft", *LOSSES, "kto"])
@settings(max_examples=2)
@given(data=st.data())
def test_it_does_not_matter_which_rows_answers_lie_in(method: str, experts: int, data: st.DataObject) -> None:
    """In any order, in rows of any size, in any number of micro-batches: values and gradients are those of one row."""
    examples, objective = objective_for(method)
    order = data.draw(st.permutations(range(len(examples))))
    rows = rows_of(examples, order, data.draw(st.sampled_from([1, 20, 30])))
    if data.draw(st.booleans()):
        rows.append(padding_row())
    assert len(rows) > 1
    values, gradients = step_of(learner_of(network(experts), objective), rows)
    expected, expected_gradients = one_row(method, experts)
    for name in ("loss", "mtp_loss", *(["kl"] if method == "kto" else [])):
        assert float(values[name]) == pytest.approx(float(expected[name]), rel=1e-5, abs=1e-5), name
    assert len(gradients) == len(expected_gradients) > 30
    assert_close(gradients, expected_gradients, 1e-5)
