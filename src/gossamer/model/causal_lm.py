"""Qwen3-Next as a language model: embedding, blocks, final norm, output head and multi-token prediction.

What departs from the usual:

- Packed documents: with `cu_seqlens` every document is computed as if it were alone, in positions, attention,
  convolution, state and labels.
- With labels the logits are never held: the output head and its loss are one operation.
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
from torch.utils.checkpoint import checkpoint

from gossamer import ops
from gossamer.errors import UserError
from gossamer.model.block import Block
from gossamer.model.config import ModelConfig
from gossamer.model.experts import Routing, load_balancing_loss, stack_routing
from gossamer.model.initialize import initialize
from gossamer.model.mtp import ONE_STEP, MTPTraining, MultiTokenPrediction
from gossamer.model.norm import RMSNorm
from gossamer.model.pool import BatchState
from gossamer.model.rotary import rotary_tables
from gossamer.model.sampled_vocabulary import SampledVocabulary
from gossamer.model.state import State
from gossamer.ops.checks import check_indices, check_number, describe
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths, positions


@dataclass
class Output:
    """What a forward pass gives.

    Attributes:
        logits: [B, T, V], or None when labels were given
        loss: mean over the predicted tokens of their negative log-likelihood, in nats
        mtp_loss: the multi-token-prediction head's, the weighted mean of its steps; None without one
        aux_loss: the load-balancing loss of this batch, summed over layers; None in a dense network
        routing: how the routers of the L layers with experts (the head's last) spread the tokens; None likewise
        predicted: how many tokens `loss` is the mean of, a scalar
        hidden: [B, T, hidden] after the final norm
        drafts: with labels, [B, T, hidden] for each step of the head, after its norm
        greedy: if asked for, the likeliest tokens [B, T]: the trunk's for the next place, then each step's of the head
            for the place its loss is about
    """

    logits: Tensor | None = None
    loss: Tensor | None = None
    mtp_loss: Tensor | None = None
    aux_loss: Tensor | None = None
    routing: Routing | None = None
    predicted: Tensor | None = None
    hidden: Tensor | None = None
    drafts: tuple[Tensor, ...] = ()
    greedy: tuple[Tensor, ...] = ()


class Trunk(nn.Module):
    """`model.*`: from token ids to the hidden states after the final norm.

    With `recompute` set, each block keeps only its input for the backward pass and is computed again there.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recompute = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [Block(config, mixer, config.is_sparse(index)) for index, mixer in enumerate(config.mixers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        rotary: tuple[Tensor, Tensor],
        cu_seqlens: Tensor | None,
        state: State | BatchState | None,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """[B, T] → hidden states [B, T, hidden] and the routing of each layer with experts."""
        x, layers = self.embed_tokens(input_ids), []
        for index, block in enumerate(self.layers):
            if self.recompute and torch.is_grad_enabled() and state is None:
                x, routing = checkpoint(block, x, rotary, cu_seqlens, None, counted, use_reentrant=False)
            else:
                x, routing = block(x, rotary, cu_seqlens, state.layers[index] if state else None, counted)
            if routing is not None:
                layers.append(routing)
        return self.norm(x), layers


class CausalLM(nn.Module):
    """A Qwen3-Next language model with random weights; `gossamer.load` gives one with trained weights.

    Args:
        config: sizes and switches
        random_weights: False leaves the weights as allocated, for a loader that sets them all
    """

    def __init__(self, config: ModelConfig, random_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.mtp = MultiTokenPrediction(config) if config.num_nextn_predict_layers else None
        if random_weights:
            initialize(self, config)

    def new_state(self) -> State:
        """An empty state to decode with: `model(ids, state=state)` reads and extends it."""
        return State(self.config)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: State | None = None,
        mtp: MTPTraining | None = ONE_STEP,
        divisors: Sequence[float] | None = None,
        last_only: bool = False,
        greedy: bool = False,
        vocabulary: SampledVocabulary | None = None,
    ) -> Output:
        """Compute logits, or with labels the losses.

        Args:
            input_ids: [B, T] integers
            labels: [B, T] integers, the tokens themselves (they are shifted here, inside each document); −100 where a
                token is not to be predicted. Tokens with no label at or behind them in their document are padding,
                which counts in no loss and no load.
            cu_seqlens: [N + 1] integers on the CPU, where documents begin in the flattened batch; None: each row is one
            state: of the tokens before these, extended in place; not together with cu_seqlens or labels
            mtp: with labels, how the multi-token-prediction head is taught; None leaves it out
            divisors: what the sums of the losses are divided by, for the next token and then for each step of the
                head; None: the tokens that each predicts here. A trainer gives the counts of all batches of a step.
            last_only: logits of the last token alone, [B, 1, V]
            greedy: with labels, also give the likeliest tokens
            vocabulary: with labels, those tokens alone get a logit, and all labels are among them

        Raises:
            UserError: an id or a label outside the vocabulary, or shapes, types or devices that do not fit.
        """
        if state is not None and (cu_seqlens is not None or labels is not None):
            raise UserError("a decoding state goes with neither cu_seqlens nor labels")
        input_ids = self._check_ids("input_ids", input_ids)
        batch, length = input_ids.shape
        lengths = document_lengths(batch, length, cu_seqlens)
        counted = None
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
            counted = tokens_that_count(labels, lengths)
        if state is not None:
            state.check(self.config, batch)
            places = state.positions(length, input_ids.device)
        else:
            places = positions(lengths, input_ids.device).view(batch, length)
        rotary = rotary_tables(places, self.config.rotary_dim, self.config.rope_theta)
        hidden, layers = self.model(input_ids, rotary, cu_seqlens, state, counted)
        if state is not None:
            state.length += length
        out = Output(hidden=hidden)
        if labels is None:
            out.logits = self.lm_head(hidden[:, -1:] if last_only else hidden)
        else:
            targets = targets_ahead(labels, lengths, 1)
            out.predicted = (targets != IGNORED).sum()
            out.loss = _loss(hidden, self.lm_head.weight, targets, divisors[0] if divisors else None, vocabulary)
            if self.mtp is not None and mtp is not None:
                documents = _Documents(lengths, rotary, cu_seqlens, counted)
                layers += self._teach_mtp(out, mtp, input_ids, labels, documents, divisors, vocabulary)
        if greedy:
            out.greedy = tuple(self._likeliest(states) for states in (hidden, *out.drafts))
        out.routing = stack_routing(layers)
        if out.routing is not None:
            out.aux_loss = load_balancing_loss(out.routing.load, out.routing.probability)
        return out

    def _teach_mtp(
        self,
        out: Output,
        mtp: MTPTraining,
        input_ids: Tensor,
        labels: Tensor,
        documents: _Documents,
        divisors: Sequence[float] | None,
        vocabulary: SampledVocabulary | None,
    ) -> list[Routing]:
        """Apply the head step after step; sets the drafts and the loss in `out`, returns the steps' mean routing."""
        assert self.mtp is not None and out.hidden is not None
        hidden, head = out.hidden, self.lm_head.weight
        if not mtp.trunk_gradient:
            hidden, head = hidden.detach(), head.detach()
        losses, steps = [], []
        for step, weight in enumerate(mtp.weights(), start=1):
            # A document's last tokens stand in for the ones after its end, where nothing is predicted.
            following = _ahead(input_ids, documents.lengths, step, fill=None)
            if documents.counted is not None:  # padding lies behind the end, too
                text = _ahead(documents.counted.view_as(input_ids), documents.lengths, step, fill=False)
                following = torch.where(text, following, input_ids)
            embedding = self.model.embed_tokens(following)
            if not mtp.trunk_gradient:
                embedding = embedding.detach()
            hidden, routing = self.mtp(embedding, hidden, *documents[1:])
            targets = targets_ahead(labels, documents.lengths, step + 1)
            losses.append(weight * _loss(hidden, head, targets, divisors[step] if divisors else None, vocabulary))
            out.drafts += (hidden,)
            steps.append(routing)
        out.mtp_loss = torch.stack(losses).sum()
        stacked = stack_routing([routing for routing in steps if routing is not None])
        return [] if stacked is None else [Routing(*(field.mean(0) for field in stacked))]

    @torch.no_grad()
    def _likeliest(self, hidden: Tensor) -> Tensor:
        """The token with the largest logit at every place, [B, T], a few rows' logits at a time."""
        rows = hidden.flatten(0, 1).split(1024)
        return torch.cat([self.lm_head(part).argmax(-1) for part in rows]).view(hidden.shape[:2])

    def _check_ids(self, name: str, ids: Tensor, ignored: int | None = None) -> Tensor:
        """[B, T] of the vocabulary's ids, as int64; see `check_indices`."""
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise UserError(f"{name} must be [B, T] of integers, not {describe(ids)}")
        vocab, device = self.config.vocab_size, self.lm_head.weight.device
        return check_indices("the model", name, ids, vocab, device, ignored, of="vocabulary")


class _Documents(NamedTuple):
    """Where the documents of a batch lie, as the trunk has used it and the head needs it again."""

    lengths: tuple[int, ...]
    rotary: tuple[Tensor, Tensor]
    cu_seqlens: Tensor | None
    counted: Tensor | None


def _loss(
    hidden: Tensor, head: Tensor, targets: Tensor, divisor: float | None, vocabulary: SampledVocabulary | None
) -> Tensor:
    """The sum of the targets' losses over `divisor`, or their mean."""
    labels, bias = targets, None
    if vocabulary is not None:
        head, labels, bias = vocabulary.narrowed(head, targets)
    total = ops.linear_cross_entropy(hidden.flatten(0, 1), head, labels.flatten(), bias)
    return total / ((targets != IGNORED).sum().clamp(min=1) if divisor is None else divisor)


def targets_ahead(labels: Tensor, lengths: tuple[int, ...], ahead: int) -> Tensor:
    """What is to be predicted `ahead` places before: [B, T] labels shifted inside documents, −100 past their ends."""
    return _ahead(labels, lengths, ahead, fill=IGNORED)


def tokens_that_count(labels: Tensor, lengths: tuple[int, ...]) -> Tensor | None:
    """Which tokens are no padding: those with a label at their place or behind it in their document.

    What lies behind a document's last label changes no loss. The tokens of a prompt that has no labels do, through the
    answer behind them.

    Args:
        labels: [B, T], −100 where there is none
        lengths: of the documents

    Returns:
        [B·T] bool, or None on a CPU if all of them count.
    """
    labelled = labels.flatten() != IGNORED
    if labels.device.type == "cpu" and bool(labelled.all()):
        return None
    through = labelled.cumsum(0)
    ends = torch.arange(len(through), device=labels.device) + _remaining(lengths, labels.device)
    return (through[ends] - through + labelled) > 0


def _ahead(tokens: Tensor, lengths: tuple[int, ...], ahead: int, fill: int | None) -> Tensor:
    """The token `ahead` places later in the same document; past its end `fill`, or the token itself if None."""
    flat = tokens.flatten()
    shifted = F.pad(flat[ahead:], (0, min(ahead, len(flat))))
    remaining = _remaining(lengths, tokens.device)
    past_end = remaining < ahead
    return torch.where(past_end, flat if fill is None else flat.new_full((), fill), shifted).view_as(tokens)


def _remaining(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """For each token how many follow it in its document, [tokens] int64."""
    last = torch.tensor(lengths, dtype=torch.int64).repeat_interleave(torch.tensor(lengths)) - 1
    return last.to(device) - positions(lengths, device)
