"""Which parameters weight decay pulls on."""

from gossamer.model.causal_lm import CausalLM
from gossamer.train.config import OptimizerConfig
from gossamer.train.optimizer import build_optimizer, is_decayed


def test_decay_reaches_matrices_and_the_query_and_key_norms(tiny_config):
    model = CausalLM(tiny_config)
    decayed = {name for name, parameter in model.named_parameters() if is_decayed(name, parameter)}
    assert "model.layers.3.self_attn.q_norm.weight" in decayed
    assert "model.layers.3.self_attn.k_norm.weight" in decayed
    assert "model.layers.0.linear_attn.in_proj_qkvz.weight" in decayed
    assert "model.layers.0.mlp.experts.gate_up_proj" in decayed
    for free in ("linear_attn.A_log", "linear_attn.dt_bias", "linear_attn.norm.weight", "input_layernorm.weight"):
        assert f"model.layers.0.{free}" not in decayed
    assert "model.norm.weight" not in decayed


def test_every_parameter_is_in_exactly_one_group(tiny_config):
    model = CausalLM(tiny_config)
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.25))
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
