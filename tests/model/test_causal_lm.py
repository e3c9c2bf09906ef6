"""The network as a whole: what it returns, what it refuses, and how its weights begin."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parity import gradients
from parity_cases import CASES, TINY, Case, pair
from torch import Tensor

from gossamer import ops
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.experts import Router
from gossamer.model.mtp import MTPTraining
from gossamer.model.sampled_vocabulary import SampledVocabulary

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


def test_log_probabilities_of_targets_are_in_the_order_of_the_flattened_batch() -> None:
    model, ids = CausalLM(CONFIG), tokens(2, 9)
    labels, cu_seqlens = ids.clone(), torch.tensor([0, 4, 9, 18])
    labels[0, 5:7] = labels[1, :3] = -100
    plain = model(ids, labels=labels, cu_seqlens=cu_seqlens)
    out = model(ids, labels=labels, cu_seqlens=cu_seqlens, token_logprobs=True)
    logprobs = model(ids, cu_seqlens=cu_seqlens).logits.log_softmax(-1).flatten(0, 1)
    # A document's first token has nothing before it; the others are predicted where their predecessor is.
    expected = [logprobs[at - 1, labels.flatten()[at]] for at in (1, 2, 3, 7, 8, *range(12, 18))]
    torch.testing.assert_close(out.token_logprobs, torch.stack(expected))
    for name in ("loss", "mtp_loss"):
        torch.testing.assert_close(getattr(out, name), getattr(plain, name))
        own, other = (torch.autograd.grad(getattr(of, name), model.lm_head.weight)[0] for of in (out, plain))
        torch.testing.assert_close(own, other)


def test_nothing_to_predict_is_a_loss_of_zero() -> None:
    model, ids = CausalLM(CONFIG), tokens(2, 5)
    out = model(ids, labels=torch.full_like(ids, -100))
    assert out.loss.item() == out.mtp_loss.item() == out.predicted.item() == 0
    assert not any(gradient.any() for gradient in gradients(model, out.loss + out.mtp_loss).values())


def test_no_token_is_predicted_across_documents() -> None:
    model, ids = CausalLM(CONFIG), tokens(1, 6)
    out = model(ids, labels=ids, cu_seqlens=torch.tensor([0, 1, 1, 4, 6], dtype=torch.int32))
    assert out.predicted.item() == 0 + 2 + 1


def test_an_empty_sequence_has_no_logits() -> None:
    with torch.no_grad():
        assert CausalLM(CONFIG)(tokens(2, 0)).logits.shape == (2, 0, CONFIG.vocab_size)


@pytest.mark.parametrize("wrong", [-1, 97, 2**40])
def test_a_token_outside_the_vocabulary_is_refused(wrong: int) -> None:
    ids = tokens(1, 5)
    ids[0, 2] = wrong
    with pytest.raises(UserError, match=f"id {wrong} is outside the vocabulary of 97"):
        CausalLM(CONFIG)(ids)


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


# Padding.


@pytest.mark.parametrize("where", ["a document of its own", "behind a document's last label", "whole rows", "before"])
def test_padding_counts_neither_in_losses_nor_in_loads(where: str) -> None:
    model, ids = CausalLM(CONFIG), tokens(2, 9)
    for router in (module for module in model.modules() if isinstance(module, Router)):
        router.weight.data *= 20  # decided enough for padding to be seen
    rows, length, first = (5, 9, 0) if where == "whole rows" else (2, 30, 21 if where == "before" else 0)
    inputs, labels = torch.zeros(rows, length, dtype=torch.int64), torch.full((rows, length), -100)
    inputs[:2, first : first + 9] = labels[:2, first : first + 9] = ids
    edges = {"a document of its own": [0, 9, 30, 39, 60], "before": [0, 21, 30, 51, 60]}.get(where)
    cu_seqlens = None if edges is None else torch.tensor(edges)
    bare = model(ids, labels=ids, mtp=MTPTraining(2))
    padded = model(inputs, labels=labels, cu_seqlens=cu_seqlens, mtp=MTPTraining(2))
    for name in ("loss", "mtp_loss", "aux_loss", "predicted"):
        torch.testing.assert_close(getattr(padded, name), getattr(bare, name), msg=name)
    torch.testing.assert_close(padded.routing, bare.routing)
    assert bare.routing.tokens.unique().tolist() == [18]


def test_a_prompt_without_labels_counts_and_a_batch_without_any_is_nothing() -> None:
    model, ids = CausalLM(CONFIG), tokens(2, 9)
    labels = ids.clone()
    labels[:, :5] = -100
    torch.testing.assert_close(model(ids, labels=labels).routing, model(ids, labels=ids).routing)
    nothing = model(ids, labels=torch.full_like(ids, -100))
    assert not nothing.routing.load.any() and nothing.aux_loss == 0 and nothing.loss == 0


# What is no input.


def wrong_calls(ids: Tensor) -> dict[str, tuple[dict[str, object], str]]:
    beyond, below, sparse = ids.clone(), ids.clone(), ids.to_sparse()
    beyond[1, 3], below[1, 3] = CONFIG.vocab_size, -1
    wrong = {
        "of floats": (ids.float(), "of float32"),
        "of truth values": (ids > 0, "of bool"),
        "far beyond": (ids + 10**6, "outside the vocabulary of 97"),
        "one beyond": (beyond, r"\[1, 3\]: id 97 is outside the vocabulary of 97"),
        "one below": (below, r"\[1, 3\]: id -1 is outside the vocabulary of 97"),
        "elsewhere": (ids.to("meta"), "is on meta"),
        "sparse": (sparse, "sparse_coo"),
        "a row": (ids[0], r"\[9\]"),
        "a list": (ids.tolist(), "list"),
    }
    calls = {
        f"{name} {what}": ({name: x}, words) for name in ("input_ids", "labels") for what, (x, words) in wrong.items()
    }
    edges = {
        "of floats": (torch.tensor([0.0, 18.0]), "of float32"),
        "of several rows": (torch.tensor([[0, 18]]), r"\[1, 2\]"),
        "elsewhere": (torch.tensor([0, 18], device="meta"), "meta"),
        "a list": ([0, 18], "list"),
        "a number": (torch.tensor(18), "cu_seqlens"),
        "empty": (torch.tensor([], dtype=torch.int64), "cu_seqlens"),
        "huge": (torch.tensor([0, 2**40, 18]), "must not decrease"),
    }
    calls |= {f"cu_seqlens {what}": ({"cu_seqlens": x}, words) for what, (x, words) in edges.items()}
    return calls | {
        "labels too short": ({"labels": ids[:, :8]}, r"labels \[2, 8\] must be \[2, 9\]"),
        "divisors too few": ({"divisors": [1.0]}, "divisors"),
        "a vocabulary without a label": (
            {"vocabulary": SampledVocabulary(torch.tensor([96]), torch.zeros(1)), "labels": ids % 96}, "not among",
        ),
        "log-probabilities over a sampled vocabulary": (
            {"vocabulary": SampledVocabulary(torch.arange(97), torch.zeros(97)), "token_logprobs": True},
            "gives no log-probabilities",
        ),
        "a vocabulary beyond": (
            {"vocabulary": SampledVocabulary(torch.arange(200), torch.zeros(200))}, "token 199 is outside",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("through", ["native", "PyTorch alone", "the references"])
@pytest.mark.parametrize("call", wrong_calls(torch.zeros(2, 9, dtype=torch.int64)))
def test_what_is_no_input_is_refused_whatever_runs(call: str, through: str) -> None:
    ids = tokens(2, 9)
    changed, words = wrong_calls(ids)[call]
    choice = {
        "native": {},
        "PyTorch alone": ops.pytorch_only(),
        "the references": dict.fromkeys(ops.OPERATIONS, "reference"),
    }
    with ops.forced(**choice[through]), pytest.raises(UserError, match=words):
        CausalLM(CONFIG)(**{"input_ids": ids, "labels": ids} | changed)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_ids_of_any_integer_type_are_the_same(dtype: torch.dtype) -> None:
    model, ids = CausalLM(CONFIG), tokens(2, 9)
    wide = model(ids, labels=ids, cu_seqlens=torch.tensor([0, 4, 18]))
    narrow = model(ids.to(dtype), labels=ids.to(dtype), cu_seqlens=torch.tensor([0, 4, 18], dtype=dtype))
    transposed = model(ids.T.contiguous().T, labels=ids.T.contiguous().T, cu_seqlens=torch.tensor([0, 4, 18]))
    assert wide.loss == narrow.loss == transposed.loss and wide.mtp_loss == narrow.mtp_loss


@pytest.mark.parametrize("through", ["native", "PyTorch alone"])
def test_gradients_of_gradients_are_refused(through: str) -> None:
    model, ids = CausalLM(CONFIG), tokens(2, 9)
    with ops.forced(**({} if through == "native" else ops.pytorch_only())):
        loss = model(ids, labels=ids).loss
        with pytest.raises(UserError, match="create_graph=True"):
            torch.autograd.grad(loss, list(model.parameters()), create_graph=True, allow_unused=True)
