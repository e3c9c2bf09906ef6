"""The network as a whole: what it returns, what it refuses, and how its weights begin."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parity import gradients
from parity_cases import CASES, TINY, Case, pair
from torch import Tensor

from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig

CONFIG = ModelConfig(**TINY | {"num_nextn_predict_layers": 1})


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_mean_over_predicted_tokens() -> None:
    model, ids = CausalLM(CONFIG), tokens(2, 9)
    labels = ids.clone()
    labels[0, :4] = -100
    out = model(ids, labels=labels)
    assert out.predicted.item() == 8 + 5
    expected = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(out.loss, expected)
    assert out.logits is None


def test_nothing_to_predict_is_a_loss_of_zero() -> None:
    model, ids = CausalLM(CONFIG), tokens(2, 5)
    out = model(ids, labels=torch.full_like(ids, -100))
    assert out.loss.item() == out.mtp_loss.item() == out.predicted.item() == 0
    assert not any(gradient.any() for gradient in gradients(model, out.loss + out.mtp_loss).values())


def test_no_token_is_predicted_across_documents() -> None:
    model, ids = CausalLM(CONFIG), tokens(1, 6)
    out = model(ids, labels=ids, cu_seqlens=torch.tensor([0, 1, 1, 4, 6], dtype=torch.int32))
    assert out.predicted.item() == 0 + 2 + 1


def test_last_only_is_the_last_of_all() -> None:
    model, ids = CausalLM(CONFIG), tokens(2, 9)
    last = model(ids, last_only=True).logits
    assert last.shape == (2, 1, CONFIG.vocab_size)
    torch.testing.assert_close(last, model(ids).logits[:, -1:])


def test_an_empty_sequence_has_no_logits() -> None:
    with torch.no_grad():
        assert CausalLM(CONFIG)(tokens(2, 0)).logits.shape == (2, 0, CONFIG.vocab_size)


@pytest.mark.parametrize("wrong", [-1, 97, 2**40])
def test_a_token_outside_the_vocabulary_is_refused(wrong: int) -> None:
    ids = tokens(1, 5)
    ids[0, 2] = wrong
    with pytest.raises(UserError, match=f"token id {wrong} is outside the vocabulary of 97"):
        CausalLM(CONFIG)(ids)


@pytest.mark.parametrize("beside", ["labels", "cu_seqlens"])
def test_a_state_beside_what_it_does_not_go_with_is_refused(beside: str) -> None:
    model, ids = CausalLM(CONFIG), tokens(1, 5)
    values = {"labels": ids, "cu_seqlens": torch.tensor([0, 5])}
    with pytest.raises(UserError, match="state"):
        model(ids, state=model.new_state(), **{beside: values[beside]})


@pytest.mark.parametrize("edges", [[0, 9], [0, 11], [1, 10], [0, 6, 5, 10]], ids=str)
def test_wrong_document_edges_are_refused(edges: list[int]) -> None:
    with pytest.raises(UserError, match="cu_seqlens"):
        CausalLM(CONFIG)(tokens(2, 5), cu_seqlens=torch.tensor(edges))


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.name)
def test_recomputation_changes_no_number(case: Case) -> None:
    model, ids = pair(case.config)[0], tokens(2, 20)
    cu_seqlens = torch.tensor([0, 7, 8, 40], dtype=torch.int32)
    kept = gradients(model, model(ids, ids, cu_seqlens).loss)
    model.model.recompute = True
    again = gradients(model, model(ids, ids, cu_seqlens).loss)
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


def test_a_tied_head_is_the_embedding() -> None:
    model = CausalLM(ModelConfig(**TINY | {"tie_word_embeddings": True}))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


@pytest.mark.parametrize("ids", [torch.zeros(3, dtype=torch.int64), torch.zeros(1, 3)])
def test_input_ids_of_another_shape_or_type_are_refused(ids) -> None:
    model = CausalLM(ModelConfig(**TINY))
    with pytest.raises(UserError, match="input_ids must be"):
        model(ids)
