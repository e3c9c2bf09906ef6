"""What a tuning trains: factors beside frozen weights or the drafting head, and memory for nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from engines import CONFIG, network
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.low_rank import low_rank_state
from gossamer.train.config import OptimizerConfig, TuningConfig
from gossamer.train.optimizer import build_optimizers
from gossamer.train.trained import choose_trained

ROW = torch.randint(1, 50, (1, 40), generator=torch.Generator().manual_seed(3))


def after_a_step(tuning: TuningConfig) -> tuple[CausalLM, set[str], set[str]]:
    """A network of bfloat16 after a step: what had a gradient, and what has optimizer state, by their names."""
    model = copy.deepcopy(network(dtype=torch.bfloat16)).requires_grad_(True)
    choose_trained(model, tuning)
    names = {parameter: name for name, parameter in model.named_parameters()}
    (optimizer,) = build_optimizers(model, OptimizerConfig(kind="adamw", learning_rate=1e-2))
    out = model(ROW, labels=ROW)
    (out.loss + out.mtp_loss).backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    optimizer.step()
    return model, with_gradient, {names[parameter] for parameter in optimizer.state}


def test_adapters_have_gradients_and_moments_and_frozen_weights_have_neither() -> None:
    model, with_gradient, with_state = after_a_step(TuningConfig(lora=True, rank=4))
    factors = low_rank_state(model)
    assert with_gradient == with_state == factors.keys()
    assert all(factor.dtype == torch.float32 for factor in factors.values())
    frozen = {name: parameter for name, parameter in model.named_parameters() if name not in factors}
    assert {parameter.dtype for parameter in frozen.values()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in frozen.values())


def test_the_drafting_head_alone_learns_in_float32() -> None:
    model, with_gradient, with_state = after_a_step(TuningConfig(drafts=True))
    head = {name for name, _ in model.named_parameters() if name.startswith("mtp.")}
    assert with_gradient == with_state == head
    assert all((parameter.dtype == torch.float32) == (name in head) for name, parameter in model.named_parameters())


def test_both_together() -> None:
    model, with_gradient, _ = after_a_step(TuningConfig(lora=True, rank=4, drafts=True))
    assert with_gradient == low_rank_state(model).keys() | {name for name in with_gradient if name.startswith("mtp.")}
    assert any(name.startswith("mtp.") for name in with_gradient)


def test_a_base_without_a_head_has_none_to_train() -> None:
    model = CausalLM(replace(CONFIG, num_nextn_predict_layers=0))
    with pytest.raises(UserError, match="no multi-token-prediction head"):
        choose_trained(model, TuningConfig(drafts=True))
