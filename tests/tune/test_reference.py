"""Log-probabilities before the first step: those of each answer by itself, and not computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from answers import learner_of, pairs, ratings, step_of
from gossamer.data.chat.rows import rows_of
from gossamer.model.causal_lm import CausalLM
from gossamer.tune import reference as module
from gossamer.tune.objectives import PairObjective
from gossamer.tune.reference import reference_logprobs, weights_digest
from parallel_runs import Case


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return Case(dtype="float32").model()


def test_they_are_the_sums_of_each_answer_alone(model: CausalLM, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2)
    examples = ratings()
    found = reference_logprobs(model, examples, 20, tmp_path)
    assert found.shape == (5, 2) and np.isnan(found).tolist() == [[False] * 2] * 4 + [[False, True]]
    for sums, example in zip(found, examples, strict=True):
        for total, one in zip(sums, example.samples, strict=False):
            ids, labels = torch.from_numpy(one.input_ids)[None], torch.from_numpy(one.labels)[None]
            alone = model(ids, labels=labels, mtp=None, divisors=[1.0]).loss
            assert total == pytest.approx(-float(alone.detach()), rel=1e-5)


def test_they_are_computed_once_for_the_same_weights_and_examples(
    model: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = pairs()
    first = reference_logprobs(model, examples, 20, tmp_path)
    computed: list[int] = []
    compute = module._computed
    monkeypatch.setattr(module, "_computed", lambda *given: (computed.append(1), compute(*given))[1])
    assert np.array_equal(reference_logprobs(model, examples, 1000, tmp_path), first) and not computed
    reference_logprobs(model, examples[:3], 20, tmp_path)
    assert len(computed) == 1
    digest = weights_digest(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-6
    assert weights_digest(model) != digest
    reference_logprobs(model, examples, 20, tmp_path)
    assert len(computed) == 2
    (place,) = list((tmp_path / "reference").glob("*.json"))[:1]
    place.write_text("damaged")
    for given in (examples, examples[:3]):
        reference_logprobs(model, given, 20, tmp_path)
    assert len(computed) in (2, 3)  # the damaged one may be that of the former weights


def test_the_first_step_has_moved_nothing(model: CausalLM, tmp_path: Path) -> None:
    examples = pairs()
    objective = PairObjective("sigmoid", reference=reference_logprobs(model, examples, 20, tmp_path))
    values, _ = step_of(learner_of(model, objective), rows_of(examples, [2, 0, 3, 1], 30))
    assert float(values["loss"]) == pytest.approx(np.log(2), abs=1e-6)
    assert float(values["margin"]) == pytest.approx(0, abs=1e-5)
