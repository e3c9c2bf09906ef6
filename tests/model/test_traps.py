"""Mistakes that released implementations of this family have made, a test for each.

Where packed documents, decoding and the multi-token-prediction head are concerned, test_parity.py and test_mtp.py test
more; here each trap is tested for itself, so that a failure names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import gradients
from parity_cases import TINY, pair
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import load_balancing_loss_func

from exactness import implementations
from gossamer import ops
from gossamer.certify.decoding import decode_in_parts
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import LINEAR, ModelConfig
from gossamer.model.deltanet import GatedDeltaNet
from gossamer.model.layer_spec import layer_specs
from gossamer.model.norm import GatedRMSNorm, RMSNorm

CONFIG = ModelConfig(**TINY)
LINEAR_ONLY = ModelConfig(**TINY | {"layer_types": [LINEAR] * 4})


def network(config: ModelConfig = CONFIG) -> CausalLM:
    return pair(config)[0].double()


def tokens(length: int, rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def edges(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, operation: str) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of every call of an operation."""
    calls: list[tuple[Any, ...]] = []
    function = getattr(ops, operation)
    with monkeypatch.context() as patch:
        patch.setattr(ops, operation, lambda *inputs, **named: (calls.append(inputs), function(*inputs, **named))[1])
        yield calls


@pytest.mark.parametrize("config", [LINEAR_ONLY, CONFIG], ids=["linear", "mixed"])
@pytest.mark.parametrize("before", [1, 2, 3, 64, 65])
def test_trap_1_a_packed_document_sees_nothing_of_the_one_before(config: ModelConfig, before: int) -> None:
    """Neither through the state nor through the convolution."""
    model, document = network(config), tokens(20)
    alone = model(document).logits
    for seed in (1, 2):
        packed = torch.cat([tokens(before, seed=seed), document], dim=1)
        logits = model(packed, cu_seqlens=edges(0, before, before + 20)).logits
        torch.testing.assert_close(logits[:, before:], alone)


@pytest.mark.parametrize("padding", [1, 2, 3, 5, 64])
def test_trap_2_padding_as_a_document_leaves_no_trace(padding: int) -> None:
    """On the left it bleeds through no convolution, on the right it decays no final state."""
    model, document, fill = network(), tokens(9), torch.zeros(1, padding, dtype=torch.int64)
    alone = model(document).logits
    left = model(torch.cat([fill, document], dim=1), cu_seqlens=edges(0, padding, padding + 9)).logits
    torch.testing.assert_close(left[:, padding:], alone)

    layer = model.model.layers[0].linear_attn
    x = torch.randn(1, 9, CONFIG.hidden_size, dtype=torch.float64)
    padded = torch.cat([x, torch.randn(1, padding, CONFIG.hidden_size, dtype=torch.float64)], dim=1)
    states: list[Tensor] = []
    original = ops.delta_rule
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "delta_rule", lambda *inputs: (result := original(*inputs), states.append(result[1]))[0])
        layer(x)
        layer(padded, edges(0, 9, 9 + padding))
    torch.testing.assert_close(states[1][:1], states[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_trap_2_a_zero_vector_has_a_finite_gradient(dtype: torch.dtype) -> None:
    """The embedding of a padding token is often zero; then so are q and k."""
    torch.manual_seed(0)
    layer = GatedDeltaNet(layer_specs(LINEAR_ONLY)[0])
    x = torch.zeros(1, 70, CONFIG.hidden_size, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        layer(x).float().sum().backward()
    for gradient in [x.grad, *(parameter.grad for parameter in layer.parameters())]:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_trap_3_a_log_is_finite_whatever_the_default_dtype(dtype: torch.dtype) -> None:
    """So many heads that a rate sampled from zero on would come as close to it as the dtype allows."""
    heads = {"linear_num_value_heads": 50_000, "linear_key_head_dim": 1, "linear_value_head_dim": 1, "hidden_size": 1}
    config = ModelConfig(**TINY | heads | {"linear_num_key_heads": 1, "num_hidden_layers": 1, "num_experts": 0})
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        layer = CausalLM(config).model.layers[0].linear_attn
    finally:
        torch.set_default_dtype(torch.float32)
    assert layer.A_log.isfinite().all()
    assert (layer.A_log > -4.7).all() and (layer.A_log < 2.8).all()  # log of 0.01 and of 16


@pytest.mark.parametrize("how", ["bfloat16 weights", "autocast"])
def test_trap_3_gates_are_computed_in_float32(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = CausalLM(LINEAR_ONLY), tokens(5)
    if how == "bfloat16 weights":
        model.to(torch.bfloat16)
    with recorded(monkeypatch, "delta_rule") as calls, torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        model(ids)
    assert len(calls) == 4
    for q, _, _, g, beta, *_ in calls:
        assert q.dtype == (torch.bfloat16 if how == "autocast" else torch.float32)  # a CPU widens what it computes
        assert g.dtype == beta.dtype == torch.float32


def test_trap_4_norms_are_one_plus_weight_but_for_the_gated_one() -> None:
    torch.manual_seed(0)
    x, gate = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    w = torch.randn(8)
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    norm, gated = RMSNorm(8, 1e-6), GatedRMSNorm(8, 1e-6)
    torch.testing.assert_close(norm(x), unit)  # as they start
    torch.testing.assert_close(gated(x, gate), unit * F.silu(gate))
    with torch.no_grad():
        norm.weight.copy_(w)
        gated.weight.copy_(w)
    torch.testing.assert_close(norm(x), unit * (1 + w))
    torch.testing.assert_close(gated(x, gate), unit * w * F.silu(gate))


def test_trap_4_which_norms_there_are() -> None:
    model = CausalLM(ModelConfig(**TINY | {"num_nextn_predict_layers": 1}))
    gated = {name for name, module in model.named_modules() if isinstance(module, GatedRMSNorm)}
    plain = {name for name, module in model.named_modules() if isinstance(module, RMSNorm)}
    assert gated == {f"model.layers.{layer}.linear_attn.norm" for layer in range(3)}
    assert plain == {name for name, _ in model.named_modules() if "norm" in name} - gated
    assert {"model.norm", "mtp.norm", "mtp.pre_fc_norm_hidden", "model.layers.3.self_attn.q_norm"} <= plain


@pytest.mark.parametrize("implementation", implementations("delta_rule"))
@pytest.mark.parametrize(("key_heads", "value_heads"), [(2, 4), (2, 6), (3, 6)])
def test_trap_5_value_head_h_reads_key_head_h_over_r(implementation: str, key_heads: int, value_heads: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 9, key_heads, 4).unbind()
    v, g, beta = torch.randn(1, 9, value_heads, 3), -torch.rand(1, 9, value_heads), torch.rand(1, 9, value_heads)
    with ops.forced(delta_rule=implementation):
        together, _ = ops.delta_rule(q, k, v, g, beta)
        for h in range(value_heads):
            key, one = slice(h // (value_heads // key_heads), h // (value_heads // key_heads) + 1), slice(h, h + 1)
            alone, _ = ops.delta_rule(q[:, :, key], k[:, :, key], v[:, :, one], g[:, :, one], beta[:, :, one])
            torch.testing.assert_close(together[:, :, one], alone)


def test_trap_6_key_heads_with_all_that_is_theirs_can_be_split() -> None:
    """As tensor parallelism would: rows of the interleaved projections, channels of [q | k | v], columns after it."""
    config = ModelConfig(**TINY | {"linear_num_key_heads": 3, "linear_num_value_heads": 6, "layer_types": [LINEAR] * 4})
    whole = network(config).model.layers[0].linear_attn
    x = torch.randn(2, 20, config.hidden_size, dtype=torch.float64)
    total = torch.zeros_like(x)
    one_head = ModelConfig(**TINY | {"linear_num_key_heads": 1, "linear_num_value_heads": 2})
    dk, dv = config.linear_key_head_dim, config.linear_value_head_dim
    for head in range(3):
        part = GatedDeltaNet(layer_specs(one_head)[0]).double()
        keys, values = slice(head * dk, (head + 1) * dk), slice(head * 2 * dv, (head + 1) * 2 * dv)
        q, k, v = whole.conv1d.weight.split([3 * dk, 3 * dk, 6 * dv])
        weights = {
            "in_proj_qkvz.weight": whole.in_proj_qkvz.weight.chunk(3)[head],
            "in_proj_ba.weight": whole.in_proj_ba.weight.chunk(3)[head],
            "conv1d.weight": torch.cat([q[keys], k[keys], v[values]]),
            "A_log": whole.A_log.chunk(3)[head],
            "dt_bias": whole.dt_bias.chunk(3)[head],
            "norm.weight": whole.norm.weight,
            "out_proj.weight": whole.out_proj.weight[:, values],
        }
        part.load_state_dict(weights)
        total += part(x)
    torch.testing.assert_close(total, whole(x))


def test_trap_7_the_head_reads_hidden_states_after_the_final_norm_beside_the_next_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network(ModelConfig(**TINY | {"num_nextn_predict_layers": 1}))
    ids, seen = tokens(8), []
    model.mtp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    model(ids, labels=ids)
    [(embedding, hidden, *_)] = seen
    before_norm: list[Tensor] = []
    model.model.norm.register_forward_hook(lambda module, inputs, output: before_norm.extend([inputs[0], output]))
    model(ids)
    torch.testing.assert_close(hidden, before_norm[1])
    assert not torch.allclose(hidden, before_norm[0])
    torch.testing.assert_close(embedding[:, :-1], model.model.embed_tokens(ids[:, 1:]))


@pytest.mark.parametrize("last", [6, 7])
def test_trap_7_the_loss_teaches_the_token_after_the_next(last: int) -> None:
    """With every other label left out, only place `last` − 2 has a gradient."""
    model = network(ModelConfig(**TINY | {"num_nextn_predict_layers": 1}))
    ids = tokens(8)
    labels = torch.full_like(ids, -100)
    labels[0, last] = ids[0, last]
    out = model(ids, labels=labels)
    (gradient,) = torch.autograd.grad(out.mtp_loss, out.drafts[0])
    assert gradient[0].abs().sum(-1).nonzero().flatten().tolist() == [last - 2]


@pytest.mark.parametrize("through", ["native", "PyTorch alone"])
def test_trap_8_a_rejected_draft_leaves_no_trace(through: str) -> None:
    """Neither in keys and values, nor in recurrent states, nor in those of the convolution."""
    model, ids = network().float(), tokens(80)
    with torch.no_grad(), ops.forced(**({} if through == "native" else ops.pytorch_only())):
        expected = model(ids).logits
        for prompt in (5, 63, 64):
            steps = [1, 2, 3, 4] * ((80 - prompt) // 10)
            lengths = [prompt, *steps, 80 - prompt - sum(steps)]
            logits = decode_in_parts(model, ids, lengths, rejected=3)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel_size", [1, 2, 4, 6])
def test_trap_9_prefill_shorter_than_the_convolution(kernel_size: int) -> None:
    model = network(ModelConfig(**TINY | {"linear_conv_kernel_dim": kernel_size}))
    ids = tokens(9, rows=2)
    with torch.no_grad():
        expected = model(ids).logits
        for split in ([1] * 9, [2, 1, 1, 5], [1, 2, 6], [3, 3, 3], [0, 4, 0, 5], [5, 4]):
            torch.testing.assert_close(decode_in_parts(model, ids, split), expected)


def test_trap_10_balancing_is_counted_once_under_recomputation() -> None:
    model, ids = network(), tokens(30, rows=2)
    kept = model(ids, labels=ids)
    expected = gradients(model, kept.loss + kept.aux_loss)
    model.model.recompute = True
    again = model(ids, labels=ids)
    torch.testing.assert_close(again.aux_loss, kept.aux_loss)
    actual = gradients(model, again.loss + again.aux_loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient)


def test_trap_10_balancing_is_per_layer_with_one_softmax() -> None:
    config = ModelConfig(**TINY | {"num_hidden_layers": 2, "num_experts": 2, "num_experts_per_tok": 1})
    model, logits = pair(config)[0], []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_pre_hook(
            lambda module, inputs: logits.append(F.linear(inputs[0], module.weight))
        )
    out = model(tokens(40))
    torch.testing.assert_close(out.routing.probability, torch.stack(logits).softmax(-1).mean(1))
    layers = [load_balancing_loss_func((one,), 2, 1) for one in logits]
    torch.testing.assert_close(out.aux_loss, sum(layers))
    assert abs(out.aux_loss - 2 * load_balancing_loss_func(tuple(logits), 2, 1)) > 1e-3  # what mixing would give


@pytest.mark.parametrize("implementation", implementations("delta_rule"))
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2])
def test_trap_11_epsilon_is_added_to_the_sum_of_squares(implementation: str, size: float) -> None:
    """One token from a zero state: o = (q̂ · k̂) β v / √d, with q and k so short that ε matters."""
    torch.manual_seed(0)
    q, k = size * torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    v, g, beta = torch.ones(1, 1, 1, 1).double(), torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()
    with ops.forced(delta_rule=implementation):
        o, _ = ops.delta_rule(q, k, v, g, beta)
    q_hat, k_hat = (x / (x.square().sum() + 1e-6).sqrt() for x in (q, k))
    torch.testing.assert_close(o.squeeze(), (q_hat * k_hat).sum() / 8**0.5)


def test_trap_14_what_runs_and_what_keeps_the_others_from_it_is_told() -> None:
    for device in ("cpu", "meta"):
        for name, told in ops.describe(torch.device(device)).items():
            operation = ops.OPERATIONS[name]
            assert told["runs"] == operation.choose(torch.device(device)).name
            assert told["implementations"].keys() == {one.name for one in operation.implementations}
            assert all(told["implementations"].values()), "an obstacle has words"
