"""Which parameters weight decay pulls on, and steps with a gradient that is too long."""

import copy
import math

import pytest
import torch
from torch import nn

from gossamer.model.causal_lm import CausalLM
from gossamer.train.config import OptimizerConfig
from gossamer.train.optimizer import build_optimizers, is_decayed, set_learning_rate, step_clipped
from gossamer.train.parallel import grad_norm
from gossamer.train.world import World


def test_decay_reaches_matrices_and_the_query_and_key_norms(tiny_config):
    model = CausalLM(tiny_config)
    decayed = {name for name, parameter in model.named_parameters() if is_decayed(name, parameter)}
    assert "model.layers.1.self_attn.q_norm.weight" in decayed
    assert "model.layers.1.self_attn.k_norm.weight" in decayed
    assert "model.layers.0.linear_attn.in_proj_qkvz.weight" in decayed
    assert "model.layers.0.mlp.experts.gate_up_proj" in decayed
    for free in ("linear_attn.A_log", "linear_attn.dt_bias", "linear_attn.norm.weight", "input_layernorm.weight"):
        assert f"model.layers.0.{free}" not in decayed
    assert "model.norm.weight" not in decayed


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_group(tiny_config, kind):
    model = CausalLM(tiny_config)
    optimizers = build_optimizers(model, OptimizerConfig(kind, weight_decay=0.25))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}


def test_muon_leaves_embeddings_head_router_convolution_and_vectors_to_adamw(tiny_config):
    model = CausalLM(tiny_config)
    muon, adamw = build_optimizers(model, OptimizerConfig("muon"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    stepped = {names[id(parameter)] for group in adamw.param_groups for parameter in group["params"]}
    kinds = (
        "norm",
        "embed_tokens",
        "lm_head",
        "gate.weight",
        "conv1d",
        "in_proj_ba",
        "A_log",
        "dt_bias",
        "expert_gate",
    )
    assert all(any(kind in name for kind in kinds) for name in stepped)
    assert all(
        model.get_parameter(name).ndim == 2
        for name in stepped
        if "weight" in name and "norm" not in name and "conv1d" not in name
    )
    taken = {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]}
    assert "model.layers.0.linear_attn.in_proj_qkvz.weight" in taken
    assert "mtp.fc.weight" in taken


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_input_embedding_alone_steps_by_its_own_multiple(tiny_config, kind):
    model = CausalLM(tiny_config)
    optimizers = build_optimizers(model, OptimizerConfig(kind, embedding_lr_factor=4))
    set_learning_rate(optimizers, 0.5)
    rates = {
        name: group["lr"]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is one for one in group["params"])
    }
    assert rates.pop("model.embed_tokens.weight") == 2.0
    assert set(rates.values()) == {0.5}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("limit", [0.5, 1e6, math.inf])
def test_a_step_is_that_of_the_gradient_as_pytorch_clips_it(tiny_config, kind, fused, limit, monkeypatch):
    monkeypatch.setenv("GOSSAMER_DEVICE_FLAGS", f"fused_adamw={'yes' if fused else 'no'}")
    model = CausalLM(tiny_config)
    for number, parameter in enumerate(model.parameters()):
        if number % 5 != 4:  # one without a gradient is left alone
            parameter.grad = torch.randn_like(parameter)
    theirs = copy.deepcopy(model)
    for mine, other in zip(model.parameters(), theirs.parameters(), strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    norm = grad_norm(model.parameters(), World())
    assert norm.item() == pytest.approx(nn.utils.clip_grad_norm_(theirs.parameters(), limit).item())
    for optimizer in build_optimizers(model, OptimizerConfig(kind)):
        step_clipped(optimizer, norm, limit)
        assert not hasattr(optimizer, "grad_scale")  # it would shorten the next step's as well
    for optimizer in build_optimizers(theirs, OptimizerConfig(kind)):
        optimizer.step()
    for (name, mine), other in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)
