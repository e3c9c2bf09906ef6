"""Muon: what it orthogonalizes, and the step it takes."""

import pytest
import torch

from gossamer.model.causal_lm import CausalLM
from gossamer.train.muon import Muon, matrix_splits


def test_fused_projections_are_cut_into_heads_and_parts(tiny_config):
    model = CausalLM(tiny_config)
    splits = matrix_splits(model)
    mixer = model.model.layers[0].linear_attn  # 1 key head of 8, 2 value heads of 8
    weight = mixer.in_proj_qkvz.weight
    q, k, first, second, *gates = splits[weight](weight)
    assert [part.shape for part in (q, k, first, second, *gates)] == [(1, 8, 32)] * 6
    assert torch.equal(torch.cat([q, k, first, second, *gates], dim=1)[0], weight)
    attention = model.model.layers[1].self_attn  # 2 heads of 16, query and gate
    query, gate = splits[attention.q_proj.weight](attention.q_proj.weight)
    assert torch.equal(query[1], attention.q_proj.weight[32:48])
    assert torch.equal(gate[0], attention.q_proj.weight[16:32])
    experts = model.model.layers[0].mlp.experts
    gates_of_experts, ups = splits[experts.gate_up_proj](experts.gate_up_proj)
    assert gates_of_experts.shape == ups.shape == (4, 16, 32)


def test_a_step_moves_each_matrix_by_the_stated_size():
    torch.manual_seed(2)
    weight = torch.nn.Parameter(torch.zeros(6, 24))
    optimizer = Muon({weight: lambda parameter: [parameter]}, lr=0.1, momentum=0.9, weight_decay=0.0)
    weight.grad = torch.randn(6, 24)
    optimizer.step()
    # An orthogonal 6 x 24 matrix has root mean square 1 / sqrt(24): the step's is 0.1 * 0.2.
    assert weight.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)


def test_weight_decay_is_decoupled():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Muon({weight: lambda parameter: [parameter]}, lr=0.1, momentum=0.9, weight_decay=0.5)
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    assert torch.allclose(weight, torch.full((4, 4), 0.95))
