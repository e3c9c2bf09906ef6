"""Memory of a chip: the trainer's estimate, whose peaks are measured, and shares of it under other layouts."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from gossamer.cost.layout import Layout
from gossamer.cost.memory import StepMemory
from gossamer.cost.network import Network, network_of
from gossamer.ops.registry import OPERATIONS
from gossamer.plan.search import chip_memory
from gossamer.run.memory import estimate_peak
from gossamer.train.recipe import load_recipe

CPU = torch.device("cpu")
NATIVE = frozenset(name for name, operation in OPERATIONS.items() if operation.choose(CPU).name == "native")


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["nano", "micro", "80b-a3b"])
def test_the_planner_says_what_the_trainer_estimates(
    name: str, accumulation: int, recompute: bool, processes: int
) -> None:
    recipe = load_recipe(
        name,
        {
            "training.precision": "fp32", "optimizer.kind": "adamw", "training.recompute": recompute,
            "training.gradient_accumulation": accumulation,
        },
    )  # fmt: skip
    training, estimate = recipe.training, estimate_peak(recipe, CPU, processes)
    layout = Layout(processes, rows=max(1, training.batch_size // processes), recompute=recompute)
    found = chip_memory(
        network_of(recipe.model), layout, training.sequence_length, accumulation, training.mtp_steps, 4, NATIVE
    )
    assert asdict(found) == {name: pytest.approx(getattr(estimate, name), abs=8) for name in asdict(found)}
    assert found.total == pytest.approx(estimate.tensors, abs=32)


def memory(work: Network, layout: Layout, micro_batches: int = 4, trained: float = 1.0) -> StepMemory:
    return chip_memory(work, layout, 4096, micro_batches, 1, trained=trained)


def test_what_is_spread_is_shared(released: Network) -> None:
    small, large = memory(released, Layout(data=64, expert=8)), memory(released, Layout(data=256, expert=8))
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(small, name) == pytest.approx(4 * getattr(large, name), rel=1e-6)
    whole = memory(released, Layout(data=64, expert=8, spread_weights=False))
    resident = released.dense_parameters + released.vocabulary_parameters + released.expert_parameters // 8
    assert whole.weights == 2 * resident  # in bfloat16
    assert whole.workspace < small.workspace  # nothing is gathered


@pytest.mark.parametrize("axis", ["tensor", "pipeline", "expert"])
def test_every_axis_saves_weights(released: Network, axis: str) -> None:
    few, many = {"data": 64, "spread_weights": False}, {"data": 64, "spread_weights": False, axis: 4}
    few_memory, many_memory = memory(released, Layout(**few)), memory(released, Layout(**many))
    assert many_memory.weights < 0.99 * few_memory.weights
    assert few_memory.weights == 2 * released.parameters


def test_a_pipeline_keeps_several_micro_batches(released: Network) -> None:
    layout = Layout(data=64, pipeline=8, spread_weights=False)
    two, three, many = (memory(released, layout, count).activations for count in (2, 3, 100))
    kept = three - two
    assert kept > 0 and many - two == 6 * kept


def test_recomputation_and_shorter_parts_of_rows_keep_less(released: Network) -> None:
    plain = memory(released, Layout(data=64)).activations
    assert memory(released, Layout(data=64, recompute=True)).activations < 0.3 * plain
    assert memory(released, Layout(data=32, context=2)).activations == pytest.approx(plain / 2, rel=0.1)


def test_adapters_need_neither_gradients_nor_moments_of_the_rest(released: Network) -> None:
    full, adapters = memory(released, Layout(data=64)), memory(released, Layout(data=64), trained=0.005)
    assert adapters.gradients + adapters.optimizer < 0.01 * (full.gradients + full.optimizer)
    assert adapters.weights == pytest.approx(full.weights * (2 + 0.02) / 4, rel=1e-3)
