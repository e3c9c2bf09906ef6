"""The multi-token-prediction head against one put together from transformers' parts.

transformers has the trunk, the decoder layer and the norms, but no such head. Here it is written document by document,
without stand-ins for tokens past a document's end: the k-th step has inputs for k fewer tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import gradients, largest_relative
from parity_cases import QWEN3_5, QWEN3_5_MOE, TINY, in_their_layout, pair
from torch import Tensor, nn
from transformers import AutoConfig

from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.mtp import MTPTraining

DOCUMENTS = [7, 1, 2, 0, 66, 3, 1, 60]  # in two rows of 70
VARIANTS: dict[str, dict[str, Any]] = {
    "experts": {},
    "dense": {"num_experts": 0},
    # Layers of the trunk are dense here, but the head has experts whenever the network has any.
    "tied, some layers dense": {"tie_word_embeddings": True, "mlp_only_layers": [0, 1], "decoder_sparse_step": 4},
    "qwen3.5, dense": QWEN3_5,
    "qwen3.5, experts": QWEN3_5_MOE,
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


class Head(nn.Module):
    """Parameters named as in the checkpoint, `mtp.*`."""

    def __init__(self, config: ModelConfig, layer: type[nn.Module], norm: type[nn.Module]) -> None:
        super().__init__()
        values = config.to_dict() | {"num_hidden_layers": 1, "mlp_only_layers": [], "decoder_sparse_step": 1}
        theirs = AutoConfig.for_model(**values | {"layer_types": ["full_attention"]})
        theirs._attn_implementation, theirs._experts_implementation = "sdpa", "eager"
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([layer(theirs, layer_idx=0)])
        self.norm, self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = (
            norm(config.hidden_size, config.rms_norm_eps) for _ in range(3)
        )

    def forward(self, embedding: Tensor, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        joined = torch.cat([self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)], dim=-1)
        return self.norm(self.layers[0](self.fc(joined), position_embeddings=rotary))


class Reference(nn.Module):
    """transformers' network with the head on top."""

    def __init__(self, theirs: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.model, self.lm_head = theirs.model, theirs.lm_head
        self.mtp = Head(config, type(theirs.model.layers[0]), type(theirs.model.norm))

    def forward(self, document: Tensor, labels: Tensor, steps: int) -> list[tuple[Tensor, Tensor]]:
        """For each step (logits [T − step, V], summed loss) of a document [T]."""
        ids, result = document.unsqueeze(0), []
        hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state  # after the final norm
        for step in range(1, steps + 1):
            length = len(document) - step
            if length <= 0:
                break
            embedding = self.model.embed_tokens(ids[:, step:])
            rotary = self.model.rotary_emb(embedding, torch.arange(length).unsqueeze(0))
            hidden = self.mtp(embedding, hidden[:, :length], rotary)
            logits = self.lm_head(hidden[0])
            loss = F.cross_entropy(logits[: length - 1], labels[step + 1 :], ignore_index=-100, reduction="sum")
            result.append((logits, loss))
        return result


def both(changes: dict[str, Any]) -> tuple[CausalLM, Reference]:
    config = ModelConfig(**TINY | {"num_nextn_predict_layers": 1} | changes)
    ours, theirs = pair(config)
    with torch.no_grad():
        for parameter in ours.mtp.parameters():
            parameter.normal_(std=0.2)
    reference = Reference(theirs, config)
    reference.mtp.load_state_dict(ours.mtp.state_dict())
    return ours, reference


def batch(documents: list[int], rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and labels, one in ten of which is not to be predicted, and where the documents begin."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(TINY["vocab_size"], (rows, sum(documents) // rows), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.1, -100)
    return ids, labels, torch.tensor([0, *documents]).cumsum(0).int()


@variants
@pytest.mark.parametrize("weights", [[1.0], [4 / 7, 2 / 7, 1 / 7]], ids=["one step", "three steps"])
def test_logits_loss_and_every_gradient(changes: dict[str, Any], weights: list[float]) -> None:
    steps = len(weights)
    ours, reference = both(changes)
    ids, labels, cu_seqlens = batch(DOCUMENTS)
    out = ours(ids, labels, cu_seqlens, mtp=MTPTraining(steps=steps, decay=0.5))

    pieces = zip(ids.flatten().split(DOCUMENTS), labels.flatten().split(DOCUMENTS), strict=True)
    results = [reference(piece, label, steps) if len(piece) else [] for piece, label in pieces]
    assert len(out.drafts) == steps
    losses = []
    for step, weight in enumerate(weights, start=1):
        logits = ours.lm_head(out.drafts[step - 1]).flatten(0, 1).split(DOCUMENTS)
        predicted = sum(int((label[step + 1 :] != -100).sum()) for label in labels.flatten().split(DOCUMENTS))
        losses.append(weight * sum(result[step - 1][1] for result in results if len(result) >= step) / predicted)
        for got, result in zip(logits, results, strict=True):
            if len(result) >= step:
                want = result[step - 1][0]
                torch.testing.assert_close(got[: len(want)], want, atol=2e-4, rtol=0)
    expected = sum(losses)
    torch.testing.assert_close(out.mtp_loss, expected, atol=1e-5, rtol=0)
    actual = in_their_layout(ours.config, gradients(ours, out.mtp_loss))
    assert largest_relative(actual, gradients(reference, expected)) < 1e-4


@variants
def test_packed_documents_are_documents_apart(changes: dict[str, Any]) -> None:
    ours = both(changes)[0].double()
    ids, labels, cu_seqlens = batch(DOCUMENTS)
    together = ours(ids, labels, cu_seqlens).mtp_loss
    total, predicted = 0.0, 0
    for document, label in zip(ids.flatten().split(DOCUMENTS), labels.flatten().split(DOCUMENTS), strict=True):
        if count := int((label[2:] != -100).sum()):
            total += ours(document.unsqueeze(0), label.unsqueeze(0)).mtp_loss * count
            predicted += count
    torch.testing.assert_close(together, total / predicted)
    assert largest_relative(gradients(ours, together), gradients(ours, total / predicted)) < 1e-11


@pytest.mark.parametrize("length", [1, 2])
def test_documents_too_short_to_predict_anything(length: int) -> None:
    """The head predicts the token after the next: two tokens leave it nothing, one leaves the trunk nothing either."""
    ours, _ = both({})
    ids, _, _ = batch([length], rows=1)
    out = ours(ids, ids)
    assert out.mtp_loss.item() == 0
    assert (out.loss.item() > 0) == (length == 2)
    assert all(gradient.isfinite().all() for gradient in gradients(ours, out.loss + out.mtp_loss).values())


def test_left_out_and_absent() -> None:
    ours, _ = both({})
    ids, labels, _ = batch(DOCUMENTS)
    left_out = ours(ids, labels, mtp=None)
    assert left_out.mtp_loss is None and not left_out.drafts
    torch.testing.assert_close(left_out.loss, ours(ids, labels).loss)
    assert CausalLM(ModelConfig(**TINY))(ids, labels).mtp_loss is None


def test_without_trunk_gradient_only_the_head_learns() -> None:
    ours, _ = both({})
    ids, labels, _ = batch(DOCUMENTS)
    free = gradients(ours, ours(ids, labels).mtp_loss)
    bound = gradients(ours, ours(ids, labels, mtp=MTPTraining(trunk_gradient=False)).mtp_loss)
    for name, gradient in bound.items():
        torch.testing.assert_close(gradient, free[name] if name.startswith("mtp.") else torch.zeros_like(gradient))


def test_the_heads_balancing_is_added_to_the_trunks() -> None:
    ours, _ = both({})
    ids, labels, _ = batch(DOCUMENTS)
    out = ours(ids, labels)
    trunk = ours(ids, labels, mtp=None)
    assert len(out.routing.load) == len(trunk.routing.load) + 1 == 5
    head = 8 * (out.routing.load[-1] * out.routing.probability[-1]).sum()
    torch.testing.assert_close(out.aux_loss, trunk.aux_loss + head)
