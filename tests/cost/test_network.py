"""Parameters and FLOPs by formula against the real module's and against PyTorch's FLOP counter."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from parity_cases import CASES, TINY, Case
from torch.utils.flop_counter import FlopCounterMode

from gossamer import ops
from gossamer.cost.layer import delta_rule_flops
from gossamer.cost.network import Counts, count_network, flops_by_part, network_of
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.decode.pool import StatePool
from model_configs import configs

RELEASED = ModelConfig(rope_theta=1e7, max_position_embeddings=262144, intermediate_size=5120)  # 80B-A3B
# Sizes with the proportions of a real network: the products dominate, heads are as wide as a chunk is long.
MICRO = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    linear_num_key_heads=4,
    linear_num_value_heads=8,
    linear_key_head_dim=64,
    linear_value_head_dim=64,
    num_experts=64,
    num_experts_per_tok=4,
    moe_intermediate_size=128,
    shared_expert_intermediate_size=128,
)


def allocated_nowhere(config: ModelConfig) -> CausalLM:
    with torch.device("meta"):
        return CausalLM(config, random_weights=False)


def part_of(parameter: str, counts: Counts) -> str:
    """The part that a parameter belongs to; the shared expert's gate is counted with the shared expert."""
    name = parameter.replace("shared_expert_gate", "shared_expert")
    [part] = [part.name for part in counts.parts if name.startswith(f"{part.name}.")]
    return part


@settings(max_examples=40)
@given(config=configs())
@example(config=MICRO)
@example(config=RELEASED)
def test_parameters_are_the_modules_part_by_part(config: ModelConfig) -> None:
    counts, real = count_network(config), Counter[str]()
    model = allocated_nowhere(config)
    for name, parameter in model.named_parameters():  # a tied head comes once, as the embedding
        real[part_of(name, counts)] += parameter.numel()
    assert {part.name: part.parameters for part in counts.parts if part.parameters} == dict(real)
    assert counts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len({part.name for part in counts.parts}) == len(counts.parts)


def test_the_released_network() -> None:
    parts = count_network(RELEASED).parts
    head = [part for part in parts if part.kind == "mtp"]
    trunk = [part for part in parts if part.kind != "mtp"]
    assert sum(part.parameters for part in trunk) / 1e9 == pytest.approx(79.67, abs=0.01)
    assert sum(part.parameters for part in head) / 1e9 == pytest.approx(1.65, abs=0.01)
    assert sum(part.active_parameters for part in parts) / 1e9 == pytest.approx(3.6, abs=0.05)


def test_active_parameters_by_hand() -> None:
    config = ModelConfig(**TINY | {"num_hidden_layers": 2, "full_attention_interval": 2, "num_nextn_predict_layers": 1})
    linear = (
        32 * (2 * 16 + 2 * 48) + 32 * 8 + 48 * 32 + 4 * 80 + 4 + 4 + 12
    )  # qkvz, ba, out, conv, A_log, dt_bias, norm
    full = 32 * (2 * 64 + 2 * 32) + 64 * 32 + 2 * 16  # q with gates, k, v, o, norms
    experts = 8 * 32 + 2 * 3 * 32 * 20 + 3 * 32 * 24 + 32  # router, two of eight, the shared one, its gate
    embedding, head, norm = 32, 97 * 32, 32
    trunk = embedding + (2 * norm + linear + experts) + (2 * norm + full + experts) + norm + head
    mtp = 2 * 32 * 32 + 2 * norm + (2 * norm + full + experts) + norm  # the head is the trunk's
    assert count_network(config).active_parameters == trunk + mtp


def test_a_dense_network_is_active_as_a_whole_but_for_its_embedding() -> None:
    counts = count_network(ModelConfig(**TINY | {"num_experts": 0, "num_nextn_predict_layers": 1}))
    assert counts.parameters - counts.active_parameters == 97 * 32 - 32


# FLOPs. PyTorch's counter sees every matrix product, inside our autograd functions too. It does not see the CPU's fused
# attention, nor sums of element-wise products: attention is counted through its reference, the convolution not at all.


def addmm_in_place(total: torch.Size, a: torch.Size, b: torch.Size, **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_in_place})


def seen(found: FlopCounterMode, module: str, *products: str) -> int:
    """FLOPs inside a module, of these kinds of product alone if any are named."""
    counts = found.get_flop_counts().get(module, {})
    return sum(flops for product, flops in counts.items() if not products or str(product) in products)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_projections_experts_and_head_are_exact(case: Case) -> None:
    config, tokens = case.config, 2 * 70
    model = CausalLM(config)
    with torch.no_grad(), ops.forced(**ops.pytorch_only()), counter() as found:
        model(torch.zeros(2, 70, dtype=torch.int64))
    flops = {part.name: part.forward_flops for part in count_network(config, context=70).parts}
    for layer, mixer in enumerate(config.mixers):
        name = f"model.layers.{layer}"
        if mixer == "linear_attention":
            expected = flops[f"{name}.linear_attn"] - 2 * config.linear_conv_dim * config.linear_conv_kernel_dim
            expected -= delta_rule_flops(
                config.linear_num_key_heads,
                config.linear_num_value_heads,
                config.linear_key_head_dim,
                config.linear_value_head_dim,
            )
            assert seen(found, f"CausalLM.{name}.linear_attn", "aten.mm") == pytest.approx(tokens * expected)
        else:
            expected = flops[f"{name}.self_attn"] - 4 * config.num_attention_heads * config.head_dim * 71 / 2
            assert seen(found, f"CausalLM.{name}.self_attn", "aten.mm", "aten.addmm") == pytest.approx(
                tokens * expected
            )
        expected = sum(value for part, value in flops.items() if part.startswith(f"{name}.mlp"))
        assert seen(found, f"CausalLM.{name}.mlp") == tokens * expected
    assert seen(found, "CausalLM.lm_head") == tokens * flops["lm_head"]


def test_attention_counts_the_needed_half_of_the_scores() -> None:
    """The reference computes all T² scores, of which a causal mask leaves T (T + 1) / 2."""
    config, length = ModelConfig(**TINY | {"full_attention_interval": 1}), 70
    model = CausalLM(config)
    with torch.no_grad(), ops.forced(attention="reference"), counter() as found:
        model(torch.zeros(2, length, dtype=torch.int64))
    projections = 2 * (32 * (2 * 64 + 2 * 32) + 64 * 32)
    part = next(part for part in count_network(config, context=length).parts if part.kind == "full_attention")
    scores = seen(found, "CausalLM.model.layers.0.self_attn", "aten.bmm") / (2 * length)
    assert part.forward_flops - projections == pytest.approx(scores * (length + 1) / (2 * length))


@pytest.mark.parametrize("heads", [(2, 2), (2, 4), (4, 16)], ids=str)
@pytest.mark.parametrize("width", [(64, 64), (128, 64)], ids=str)
def test_the_delta_rule_is_counted_to_one_in_a_hundred(heads: tuple[int, int], width: tuple[int, int]) -> None:
    """In whole chunks; the inverse by blocks costs a trifle less than C³ / 3."""
    (key_heads, value_heads), (key_dim, value_dim), length = heads, width, 128
    q, v, g = torch.randn(1, length, key_heads, key_dim), torch.randn(1, length, value_heads, value_dim), 0.1
    gates = -g * torch.rand(1, length, value_heads)
    with ops.forced(delta_rule="chunked"), counter() as found:
        ops.delta_rule(q, q, v, gates, -gates)
    expected = length * delta_rule_flops(key_heads, value_heads, key_dim, value_dim)
    assert found.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_the_head_for_further_tokens_is_exact() -> None:
    config, tokens = ModelConfig(**TINY | {"num_nextn_predict_layers": 1}), 2 * 70
    model, ids = CausalLM(config), torch.zeros(2, 70, dtype=torch.int64)
    with torch.no_grad(), ops.forced(**ops.pytorch_only()), counter() as found:
        model(ids, labels=ids)
    parts = count_network(config, context=70).parts
    scores = 4 * config.num_attention_heads * config.head_dim * 71 / 2
    head = next(part.forward_flops for part in parts if part.name == "mtp.lm_head")
    mtp = sum(part.forward_flops for part in parts if part.kind == "mtp")
    assert seen(found, "CausalLM.mtp") == pytest.approx(tokens * (mtp - head - scores))
    # Both losses' logits are computed outside of any module.
    outside = seen(found, "Global") - seen(found, "CausalLM.model") - seen(found, "CausalLM.mtp")
    assert outside == tokens * 2 * head


def test_training_flops_are_the_counters() -> None:
    """Measured: within 4%; the blocks of the triangular inverse and of causal attention are counted as half-empty."""
    length = 512
    model = CausalLM(MICRO)
    ids = torch.randint(4096, (1, length))
    with ops.forced(**ops.pytorch_only() | {"attention": "reference"}), counter() as found:
        out = model(ids, labels=ids)
        (out.loss + out.mtp_loss + out.aux_loss).backward()
    counts = count_network(MICRO, context=length)
    assert found.get_total_flops() == pytest.approx(length * counts.training_flops, rel=0.05)
    assert counts.training_flops == pytest.approx(sum(counts.by_kind().values()))


def test_the_parts_are_the_whole_network() -> None:
    config = ModelConfig()
    counts = count_network(config, 512)
    once = flops_by_part(config, 512, mtp_steps=1)
    assert set(once) == {"linear_attention", "attention", "experts", "head", "mtp"}
    assert sum(once.values()) == pytest.approx(counts.training_flops)
    assert flops_by_part(config, 512, mtp_steps=3)["mtp"] == 3 * once["mtp"]
    assert "mtp" not in flops_by_part(config, 512, mtp_steps=0)


def test_a_sampled_head_costs_its_share() -> None:
    config = ModelConfig()
    whole, half = (flops_by_part(config, 512, 1, size) for size in (0, config.vocab_size // 2))
    assert half["head"] == pytest.approx(whole["head"] / 2)
    assert whole["mtp"] - half["mtp"] == pytest.approx(whole["head"] / 2), "it applies the same head once more"
    assert {part for part in whole if whole[part] != half[part]} == {"head", "mtp"}
    assert flops_by_part(config, 512, 1, 2 * config.vocab_size) == whole


@settings(max_examples=20)
@given(config=configs())
def test_cache_and_state_are_those_of_the_decoder(config: ModelConfig) -> None:
    page_size = 4
    pool = StatePool(config, 1, 1, page_size, 1, torch.device("cpu"), torch.bfloat16)
    network = network_of(config)
    layers = [*network.layers, *network.mtp_layers]
    assert sum(layer.mixer.state_bytes for layer in layers) == pool.snapshot(0).nbytes
    for index, layer in enumerate(layers):
        cached = sum(pages.nbytes for pages in pool.kv_pages.get(index, ()))
        assert layer.mixer.kv_cache_bytes * page_size == cached
