"""operations.py: what it counts, and that it times every implementation of every operation."""

from __future__ import annotations

from dataclasses import replace

import breakdown
import operations
import pytest
import torch

from gossamer import ops
from gossamer.certify import timing
from gossamer.certify.inputs import inputs_of
from gossamer.certify.timing import BOTH, FORWARD, FRESH, Rates, operation_of, training_inputs
from gossamer.cost.network import count_network
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.deltanet import GatedDeltaNet

CPU = torch.device("cpu")


def test_every_able_implementation_is_timed_in_both_directions(config: ModelConfig) -> None:
    inputs = training_inputs(config, 2, 20, CPU, torch.float32)
    rows = timing.time_operations(config, inputs, 20, lambda: Rates(1e9, 1e9), seconds=0.0)
    able = {
        (name, one.name, direction)
        for name in (*ops.training_operations(), "delta_rule" + FRESH)
        for one in ops.OPERATIONS[operation_of(name)].implementations
        if not one.obstacle(CPU)
        for direction in (FORWARD, BOTH)
    }
    assert {(row["operation"], row["implementation"], row["direction"]) for row in rows} == able
    assert all(row["seconds"] > 0 and row["roofline_share"] > 0 for row in rows)
    assert {operation_of(row["operation"]) for row in rows if row["chosen"]} == set(ops.training_operations())
    assert "delta_rule chunked" in operations.report(rows)


def test_what_takes_too_long_is_left_out_and_what_fails_is_shown(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = training_inputs(config, 1, 4, CPU, torch.float32)
    monkeypatch.setattr(timing, "MAX_SECONDS", 0.0)
    rows = timing.time_operations(config, {"rms_norm": inputs["rms_norm"]}, 4, lambda: Rates(1e9, 1e9), 0.0)
    assert all("left out" in row["left_out"] for row in rows)
    monkeypatch.setattr(timing, "caller", lambda *_: lambda: 1 / 0)
    monkeypatch.setattr(timing, "MAX_SECONDS", 60.0)
    rows = timing.time_operations(config, {"rms_norm": inputs["rms_norm"]}, 4, lambda: Rates(1e9, 1e9), 0.0)
    assert {row.get("failure") for row in rows if row["direction"] == BOTH} == {"ZeroDivisionError: division by zero"}
    assert "division by zero" in operations.report(rows)


def test_flops_are_those_that_the_networks_counts_hold(config: ModelConfig) -> None:
    rows, length, config = 2, 20, replace(config, num_nextn_predict_layers=0)
    inputs = training_inputs(config, rows, length, CPU, torch.float32)
    inputs["linear_cross_entropy"]["labels"].clamp_(min=0)
    flops = {name: sum(timing.flops_of(name, config, inputs[name], length)) for name in inputs}
    layers = config.mixers.count("linear_attention"), config.mixers.count("full_attention")
    parts = count_network(config, length).parts
    experts = sum(part.training_flops for part in parts if part.name.endswith(".experts"))
    head = sum(part.training_flops for part in parts if part.kind == "head")
    assert flops["grouped_mlp"] * config.num_hidden_layers == pytest.approx(rows * length * experts)
    assert flops["linear_cross_entropy"] == pytest.approx(rows * length * head)
    found = breakdown.flops(config, rows, length)
    assert flops["delta_rule"] * layers[0] == pytest.approx(found["delta rule"])
    assert flops["short_conv"] * layers[0] == pytest.approx(found["convolution"])
    assert flops["attention"] * layers[1] == pytest.approx(found["attention"])
    assert sum(found.values()) == pytest.approx(rows * length * count_network(config, length).training_flops)
    # What is left of linear attention and attention are their projections: no part is counted twice.
    assert found["dense products"] > 0


def test_bytes_and_the_roofline() -> None:
    inputs = {"x": torch.zeros(3, 4), "ids": torch.zeros(5, dtype=torch.int64), "eps": 1e-6}
    forward, backward = timing.bytes_of(inputs, (torch.zeros(2),))
    assert (forward, backward) == (48 + 40 + 8, 48 + 40 + 8 + 48)
    assert timing.roofline(6.0, 4.0, Rates(gemm=2.0, copy=1.0)) == 4.0
    assert timing.roofline(6.0, 2.0, Rates(gemm=2.0, copy=1.0)) == 3.0


def test_the_delta_rules_peer_computes_the_same(config: ModelConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 70, heads, 16, generator=generator) for heads in (1, 1, 2))
    g, beta = -torch.rand(2, 70, 2, generator=generator), torch.rand(2, 70, 2, generator=generator)
    theirs = operations.their_delta_rule(config)(q, k, v, g, beta)[0]
    assert torch.allclose(ops.delta_rule(q, k, v, g, beta)[0], theirs, atol=1e-4)
    rows = [operations.delta_rule_peer(config, 2, 20, gates, seconds=0.0) for gates in ("trained", "fresh")]
    assert all(row["ratio"] > 0 for row in rows) and "2 × 20, fresh" in operations.report_peer(rows)
    assert set(operations.ratios({"delta_rule_peer": rows})) == {
        "delta rule over transformers, 2 × 20",
        "delta rule, a fresh network's gates over transformers, 2 × 20",
    }


def test_a_fresh_networks_gates_are_those_that_its_layers_compute(config: ModelConfig) -> None:
    """Rates up to 16, and between the tokens of a chunk products of decays in every range, the subnormal one too."""
    fresh, trained = (inputs_of("delta_rule", config, [64], gates)["g"][0] for gates in ("fresh", "trained"))
    own = [layer for layer in CausalLM(config).modules() if isinstance(layer, GatedDeltaNet)]
    assert own
    for layer in own:
        rates = -layer.A_log.exp() * torch.nn.functional.softplus(layer.dt_bias)
        assert fresh.mean(0).min() - 1 <= rates.min() and rates.max() <= fresh.mean(0).max() + 1
    # e^-103 and less is 0 in float32, from there to e^-87 a subnormal number.
    sums = fresh.cumsum(0)
    assert bool(((sums < -87.4) & (sums > -103)).any()) and sums.min() < -500
    assert trained.cumsum(0).min() > -30
