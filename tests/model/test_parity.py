"""Exactness against transformers' networks of the family: the figures of benchmarks/parity.py below their limits."""

from __future__ import annotations

from typing import Any

import parity
import pytest
import torch
from parity_cases import CASES, TINY, Case, pair
from transformers.models.qwen3_next.modeling_qwen3_next import load_balancing_loss_func

from gossamer.model.config import ModelConfig

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
FLOAT32, FLOAT64 = torch.float32, torch.float64


@every_case
def test_logits_loss_and_every_gradient(case: Case) -> None:
    figures = parity.forward_and_backward(case)
    assert figures["logits"] < 1e-4  # of logits of about 5 to 10
    assert figures["loss"] < 1e-5
    assert figures["gradients"] < 1e-4
    assert figures["fp32 ours"] < 2 * figures["fp32 theirs"] + 1e-5  # what float32 loses, transformers loses too


@every_case
def test_bfloat16_is_no_worse_than_theirs(case: Case) -> None:
    figures = parity.bfloat16(case)
    assert figures["bf16 theirs"] > 1e-2  # or nothing was rounded
    assert figures["bf16 ours"] < 1.5 * figures["bf16 theirs"]


def in_both_types(float32_limit: float) -> pytest.MarkDecorator:
    """Every case in float64, and some in float32; the others in float32 are slow."""
    rows = [pytest.param(case, FLOAT64, 1e-11, id=f"{case.name}-float64") for case in CASES]
    for number, case in enumerate(CASES):
        marks = [pytest.mark.slow] if number % 6 else []
        rows.append(pytest.param(case, FLOAT32, float32_limit, id=f"{case.name}-float32", marks=marks))
    return pytest.mark.parametrize(("case", "dtype", "limit"), rows)


@in_both_types(3e-4)
def test_decoding_is_the_whole_sequence(case: Case, dtype: torch.dtype, limit: float) -> None:
    """Step by step and cut in two at every point, around the ends of the convolution and of a chunk, too.

    In float32 the widest networks, whose logits are about 10, differ by 1e-4.
    """
    assert parity.decoding(case, dtype, length=7)["decoding"] < limit


@in_both_types(1e-4)
def test_packed_documents_are_documents_apart(case: Case, dtype: torch.dtype, limit: float) -> None:
    assert parity.packed(case, dtype)["packed"] < limit


def test_the_measurements_are_not_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight in a hundred moved by a tenth shows in every figure against transformers."""

    def slightly_different(config: ModelConfig, seed: int = 0) -> Any:
        ours, theirs = pair(config, seed)
        with torch.no_grad():
            ours.model.layers[0].linear_attn.in_proj_qkvz.weight[0] *= 1.1
        return ours, theirs

    monkeypatch.setattr(parity, "pair", slightly_different)
    figures = parity.forward_and_backward(CASES[0])
    assert figures["logits"] > 1e-3
    assert figures["loss"] > 1e-5
    assert figures["gradients"] > 1e-3


def test_the_page_is_written_from_the_figures() -> None:
    rows = {case.name: parity.decoding(case, length=3) for case in CASES[:2]}
    page = parity.page(rows)
    assert f"| released | {rows['released']['decoding']:.1e} |" in page
    assert all(case.covers in page for case in CASES)


# Load balancing.


def router_logits(theirs: Any, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return theirs(input_ids=ids, use_cache=False, output_router_logits=True).router_logits


def test_balancing_loss_of_one_layer_with_its_gradient() -> None:
    case = next(case for case in CASES if case.name == "linear-only")
    ours, theirs = pair(case.config)
    ids = parity.token_ids(case.config)
    expected = theirs(input_ids=ids, use_cache=False, output_router_logits=True).aux_loss
    actual = ours(ids).aux_loss
    torch.testing.assert_close(actual, expected)
    # Nothing behind the router takes part in this loss.
    theirs_gradients, ours_gradients = parity.gradients(theirs, expected), parity.gradients(ours, actual)
    reached = {name: gradient for name, gradient in theirs_gradients.items() if gradient.any()}
    assert "model.layers.1.mlp.gate.weight" in reached
    assert "model.layers.2.mlp.gate_proj.weight" not in reached
    assert parity.largest_relative({name: ours_gradients[name] for name in reached}, reached) < 1e-4
    assert not any(gradient.any() for name, gradient in ours_gradients.items() if name not in reached)


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_balancing_loss_is_the_sum_of_the_layers_own(case: Case) -> None:
    ours, theirs = pair(case.config)
    ids = parity.token_ids(case.config)
    layers = router_logits(theirs, ids)
    alone = [load_balancing_loss_func((logits,), TINY["num_experts"], TINY["num_experts_per_tok"]) for logits in layers]
    assert len(alone) == sum(case.config.is_sparse(layer) for layer in range(case.config.num_hidden_layers)) > 1
    torch.testing.assert_close(ours(ids).aux_loss, sum(alone))


def test_balancing_loss_of_packed_documents_is_that_of_all_their_tokens() -> None:
    ours, theirs = pair(CASES[0].config)
    ids = parity.token_ids(CASES[0].config)
    documents = [document.unsqueeze(0) for document in ids.flatten().split([90, 50])]
    layers = [torch.cat(both) for both in zip(*(router_logits(theirs, ids) for ids in documents), strict=True)]
    expected = sum(load_balancing_loss_func((logits,), 8, 2) for logits in layers)
    cu_seqlens = torch.tensor([0, 90, 140], dtype=torch.int32)
    torch.testing.assert_close(ours(ids, cu_seqlens=cu_seqlens).aux_loss, expected)
    torch.testing.assert_close(ours(ids, ids, cu_seqlens).aux_loss, expected)


def test_a_dense_network_has_none() -> None:
    case = next(case for case in CASES if case.name == "dense")
    assert pair(case.config)[0](parity.token_ids(case.config)).aux_loss is None
