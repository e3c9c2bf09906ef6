"""Qwen3-Next as a language model: embedding, blocks, final norm, output head and multi-token prediction.

What departs from the usual:

- Packed documents: with `cu_seqlens` every document is computed by itself, in positions, attention,
  convolution, state and labels.
- With labels the logits are never stored: the output head and its loss are one operation.
- The multi-token-prediction head is part of the model, in training and in the checkpoint.
- The load-balancing loss is a sum over layers, each layer balanced for itself; what the routers did is returned too,
  so that a trainer can balance over more than one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import ops
from gossamer.errors import UserError
from gossamer.model.config import ModelConfig
from gossamer.model.experts import Routing, load_balancing_loss, stack_routing
from gossamer.model.initialize import initialize
from gossamer.model.linear import Linear
from gossamer.model.mtp import ONE_STEP, MTPTraining, MultiTokenPrediction
from gossamer.model.rotary import rotary_tables
from gossamer.model.sampled_vocabulary import SampledVocabulary
from gossamer.model.trunk import Trunk
from gossamer.ops.checks import check_indices, check_number, describe
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths, positions


@dataclass
class Output:
    """The results of a forward pass.

    Attributes:
        logits: [B, T, V], or None when labels were given
        loss: mean negative log-likelihood of the predicted tokens, in nats
        mtp_loss: loss of the multi-token-prediction head, the weighted mean of its steps; None without a head
        aux_loss: load-balancing loss of this batch, summed over layers; None in a dense network
        routing: how the routers of the L layers with experts, the head's last, spread the tokens; None in a dense
            network
        predicted: how many tokens `loss` is the mean of, a scalar
        token_logprobs: if asked for, the log-probability of every target, [predicted] in the order of the flattened
            batch; `loss` is made of them
        hidden: [B, T, hidden] after the final norm
        drafts: with labels, [B, T, hidden] for each step of the head, after its norm
        greedy: if asked for, the most likely tokens [B, T]: first the trunk's for the next position, then those of each
            step of the head, for the position that its loss is about
    """

    logits: Tensor | None = None
    loss: Tensor | None = None
    mtp_loss: Tensor | None = None
    aux_loss: Tensor | None = None
    routing: Routing | None = None
    predicted: Tensor | None = None
    token_logprobs: Tensor | None = None
    hidden: Tensor | None = None
    drafts: tuple[Tensor, ...] = ()
    greedy: tuple[Tensor, ...] = ()


class CausalLM(nn.Module):
    """A Qwen3-Next language model. It begins with random weights; `gossamer.load` gives one with trained weights.

    Args:
        config: sizes and switches
        random_weights: False leaves the weights as allocated, for a loader that sets them all
    """

    def __init__(self, config: ModelConfig, random_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.mtp = MultiTokenPrediction(config) if config.num_nextn_predict_layers else None
        if random_weights:
            initialize(self, config)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        mtp: MTPTraining | None = ONE_STEP,
        divisors: Sequence[float] | None = None,
        greedy: bool = False,
        vocabulary: SampledVocabulary | None = None,
        token_logprobs: bool = False,
    ) -> Output:
        """Compute logits, or with labels the losses.

        Args:
            input_ids: [B, T] integers
            labels: [B, T] integers, the tokens themselves (they are shifted here, inside each document); −100 where a
                token is not to be predicted. A token with no label at its position or behind it in its document is
                padding, which counts in no loss and no load.
            cu_seqlens: [N + 1] integers on the CPU, where documents begin in the flattened batch; None: each row is one
            mtp: with labels, how the multi-token-prediction head is taught; None leaves it out
            divisors: what the sums of the losses are divided by, for the next token and then for each step of the
                head; None: the number of tokens that each predicts here. A trainer gives the counts of all batches of
                a step.
            greedy: with labels, also give the most likely tokens
            vocabulary: with labels, the only tokens that get a logit; all labels are among them
            token_logprobs: with labels, also give the log-probability of every target, over the whole vocabulary

        Raises:
            UserError: an id or a label lies outside the vocabulary, or shapes, types or devices do not fit; or
                log-probabilities are asked for of a sampled vocabulary, which has none.
        """
        input_ids = self._check_ids("input_ids", input_ids)
        batch, length = input_ids.shape
        lengths = document_lengths(batch, length, cu_seqlens)
        token_mask = None
        if labels is not None:
            labels = self._check_ids("labels", labels, ignored=IGNORED)
            if labels.shape != input_ids.shape:
                raise UserError(f"labels {list(labels.shape)} must be {list(input_ids.shape)}, as input_ids are")
            steps = mtp.steps if self.mtp is not None and mtp is not None else 0
            if divisors is not None:
                if not isinstance(divisors, (list, tuple)) or len(divisors) < 1 + steps:
                    raise UserError(f"divisors must be {1 + steps} numbers, for the loss and each step of the head")
                for divisor in divisors:
                    check_number("the model", "a divisor", divisor)
            token_mask = padding_mask(labels, lengths)
        rotary = self._rotary(lengths, input_ids)
        hidden, routings = self.model(input_ids, rotary, cu_seqlens, token_mask)
        out = Output(hidden=hidden)
        if labels is None:
            out.logits = self.lm_head(hidden)
        else:
            targets = targets_ahead(labels, lengths, 1)
            out.predicted = (targets != IGNORED).sum()
            if token_logprobs:
                if vocabulary is not None:
                    raise UserError("token_logprobs: a sampled vocabulary gives no log-probabilities; leave it out")
                head = self.lm_head.weight
                out.token_logprobs = ops.token_logprobs(hidden.flatten(0, 1), head, targets.flatten())
                out.loss = -out.token_logprobs.sum() / _divisor(targets, divisors, 0)
            else:
                out.loss = _loss(hidden, self.lm_head.weight, targets, _divisor(targets, divisors, 0), vocabulary)
            if self.mtp is not None and mtp is not None:
                documents = _Documents(lengths, rotary, cu_seqlens, token_mask)
                routings += self._mtp_loss(out, mtp, input_ids, labels, documents, divisors, vocabulary)
        if greedy:
            out.greedy = tuple(self._most_likely(states) for states in (hidden, *out.drafts))
        out.routing = stack_routing(routings)
        if out.routing is not None:
            out.aux_loss = load_balancing_loss(out.routing.load, out.routing.probability)
        return out

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """Compute the hidden states after the final norm, [B, T] → [B, T, hidden]; each row is a document."""
        input_ids = self._check_ids("input_ids", input_ids)
        lengths = document_lengths(len(input_ids), input_ids.shape[1], None)
        hidden, _ = self.model(input_ids, self._rotary(lengths, input_ids), None)
        return hidden

    def _rotary(self, lengths: tuple[int, ...], input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cos and sin of each token's position in its document."""
        token_positions = positions(lengths, input_ids.device).view(input_ids.shape)
        return rotary_tables(token_positions, self.config.rotary_dim, self.config.rope_theta)

    def _mtp_loss(
        self,
        out: Output,
        mtp: MTPTraining,
        input_ids: Tensor,
        labels: Tensor,
        documents: _Documents,
        divisors: Sequence[float] | None,
        vocabulary: SampledVocabulary | None,
    ) -> list[Routing]:
        """Apply the head step after step: set drafts and loss in `out`, and return the mean routing of the steps."""
        assert self.mtp is not None and out.hidden is not None
        hidden, head = out.hidden, self.lm_head.weight
        if not mtp.trunk_gradient:
            hidden, head = hidden.detach(), head.detach()
        losses, steps = [], []
        for step, weight in enumerate(mtp.weights(), start=1):
            # A document's last tokens stand in for the ones after its end, where nothing is predicted.
            next_token_ids = _ahead(input_ids, documents.lengths, step, fill=None)
            if documents.token_mask is not None:  # padding lies behind the end, too
                is_text = _ahead(documents.token_mask.view_as(input_ids), documents.lengths, step, fill=False)
                next_token_ids = torch.where(is_text, next_token_ids, input_ids)
            embedding = self.model.embed(next_token_ids)
            if not mtp.trunk_gradient:
                embedding = embedding.detach()
            hidden, routing = self.mtp(embedding, hidden, documents.rotary, documents.cu_seqlens, documents.token_mask)
            targets = targets_ahead(labels, documents.lengths, step + 1)
            losses.append(weight * _loss(hidden, head, targets, _divisor(targets, divisors, step), vocabulary))
            out.drafts += (hidden,)
            steps.append(routing)
        out.mtp_loss = torch.stack(losses).sum()
        stacked = stack_routing([routing for routing in steps if routing is not None])
        return [] if stacked is None else [Routing(*(field.mean(0) for field in stacked))]

    @torch.no_grad()
    def _most_likely(self, hidden: Tensor) -> Tensor:
        """Find the token with the largest logit at every position, [B, T], with the logits of a few rows at a time."""
        rows = hidden.flatten(0, 1).split(1024)
        return torch.cat([self.lm_head(part).argmax(-1) for part in rows]).view(hidden.shape[:2])

    def _check_ids(self, name: str, ids: Tensor, ignored: int | None = None) -> Tensor:
        """Return ids [B, T] as int64, or refuse what are none of the vocabulary's; see `check_indices`."""
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise UserError(f"{name} must be [B, T] of integers, not {describe(ids)}")
        vocab, device = self.config.vocab_size, self.lm_head.weight.device
        return check_indices("the model", name, ids, vocab, device, ignored, of="vocabulary")


class _Documents(NamedTuple):
    """Where the documents of a batch lie: what the trunk has used and the head needs again."""

    lengths: tuple[int, ...]
    rotary: tuple[Tensor, Tensor]
    cu_seqlens: Tensor | None
    token_mask: Tensor | None


def _loss(
    hidden: Tensor, head: Tensor, targets: Tensor, divisor: float | Tensor, vocabulary: SampledVocabulary | None
) -> Tensor:
    """Divide the sum of the targets' losses by `divisor`."""
    labels, bias = targets, None
    if vocabulary is not None:
        head, labels, bias = vocabulary.select(head, targets)
    total = ops.linear_cross_entropy(hidden.flatten(0, 1), head, labels.flatten(), bias)
    return total / divisor


def _divisor(targets: Tensor, divisors: Sequence[float] | None, step: int) -> float | Tensor:
    """Return what the loss of a step of the head, 0 for the next token, is divided by; see `CausalLM.forward`."""
    return (targets != IGNORED).sum().clamp(min=1) if divisors is None else divisors[step]


def targets_ahead(labels: Tensor, lengths: tuple[int, ...], ahead: int) -> Tensor:
    """Shift labels [B, T] to where they are predicted, `ahead` positions before; −100 past the ends of documents."""
    return _ahead(labels, lengths, ahead, fill=IGNORED)


def padding_mask(labels: Tensor, lengths: tuple[int, ...]) -> Tensor | None:
    """Tell padding from tokens, which have a label at their position or behind it in their document.

    What lies behind a document's last label changes no loss. The tokens of a prompt that has no labels do, through the
    answer behind them.

    Args:
        labels: [B, T], −100 where there is none
        lengths: tokens of each document

    Returns:
        [B·T] bool, false for padding; on a CPU None if there is no padding.
    """
    labeled = labels.flatten() != IGNORED
    if labels.device.type == "cpu" and bool(labeled.all()):
        return None
    through = labeled.cumsum(0)
    ends = torch.arange(len(through), device=labels.device) + _remaining(lengths, labels.device)
    return (through[ends] - through + labeled) > 0


def _ahead(tokens: Tensor, lengths: tuple[int, ...], ahead: int, fill: int | None) -> Tensor:
    """Return the token `ahead` positions later in the same document; past its end `fill`, or itself if None."""
    flat = tokens.flatten()
    shifted = F.pad(flat[ahead:], (0, min(ahead, len(flat))))
    remaining = _remaining(lengths, tokens.device)
    past_end = remaining < ahead
    return torch.where(past_end, flat if fill is None else flat.new_full((), fill), shifted).view_as(tokens)


def _remaining(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Count for each token how many follow it in its document, [tokens] int64."""
    last = torch.tensor(lengths, dtype=torch.int64).repeat_interleave(torch.tensor(lengths)) - 1
    return last.to(device) - positions(lengths, device)
