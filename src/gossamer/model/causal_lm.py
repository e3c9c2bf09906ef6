"""Qwen3-Next as a language model: embedding, blocks, final norm, output head and multi-token prediction.

What departs from the usual:

- Packed documents: with `cu_seqlens` every document is computed as if it were alone, in positions, attention,
  convolution, state and labels.
- With labels the logits are never held: the output head and its loss are one operation.
- The multi-token-prediction head is part of the model, in training and in the checkpoint.
- The load-balancing loss is a sum over layers, each layer balanced for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import ops
from gossamer.errors import UserError
from gossamer.model.block import Block
from gossamer.model.config import ModelConfig
from gossamer.model.initialize import initialize
from gossamer.model.mtp import MultiTokenPrediction
from gossamer.model.norm import RMSNorm
from gossamer.model.rotary import rotary_tables
from gossamer.model.state import State
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths, positions


@dataclass
class Output:
    """What a forward pass gives.

    Attributes:
        logits: [B, T, V], or None when labels were given
        loss: mean over the predicted tokens of their negative log-likelihood, in nats
        mtp_loss: the same for the multi-token-prediction head, None without one
        aux_loss: sum over layers of the load-balancing losses, None in a dense network
        predicted: how many tokens `loss` is the mean of, a scalar
    """

    logits: Tensor | None = None
    loss: Tensor | None = None
    mtp_loss: Tensor | None = None
    aux_loss: Tensor | None = None
    predicted: Tensor | None = None


class Trunk(nn.Module):
    """`model.*`: from token ids to the hidden states after the final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [Block(config, mixer, config.is_sparse(index)) for index, mixer in enumerate(config.mixers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None, state: State | None
    ) -> tuple[Tensor, list[Tensor]]:
        """[B, T] → hidden states [B, T, hidden] and the balancing loss of each layer with experts."""
        x, losses = self.embed_tokens(input_ids), []
        for index, block in enumerate(self.layers):
            x, balance = block(x, rotary, cu_seqlens, state.layers[index] if state else None)
            if balance is not None:
                losses.append(balance)
        return self.norm(x), losses


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
        mtp: bool = True,
        last_only: bool = False,
    ) -> Output:
        """Compute logits, or with labels the losses.

        Args:
            input_ids: [B, T] int64
            labels: [B, T] int64, the tokens themselves (they are shifted here, inside each document); −100 where a
                token is not to be predicted
            cu_seqlens: [N + 1] integers on the CPU, where documents begin in the flattened batch; None: each row is one
            state: of the tokens before these, extended in place; not together with cu_seqlens or labels
            mtp: with labels, compute the multi-token-prediction loss too
            last_only: logits of the last token alone, [B, 1, V]

        Raises:
            UserError: a token id outside the vocabulary, or shapes that do not fit.
        """
        if state is not None and (cu_seqlens is not None or labels is not None):
            raise UserError("a decoding state goes with neither cu_seqlens nor labels")
        batch, length = input_ids.shape
        lengths = document_lengths(batch, length, cu_seqlens)
        self._check_ids(input_ids)
        if state is not None:
            places = state.positions(length, input_ids.device)
        else:
            places = positions(lengths, input_ids.device).view(batch, length)
        rotary = rotary_tables(places, self.config.rotary_dim, self.config.rope_theta)
        hidden, balance = self.model(input_ids, rotary, cu_seqlens, state)
        if state is not None:
            state.length += length
        if labels is None:
            logits = self.lm_head(hidden[:, -1:] if last_only else hidden)
            return Output(logits=logits, aux_loss=_total(balance))

        loss, predicted = self._loss(hidden, labels, lengths, ahead=1)
        mtp_loss = None
        if self.mtp is not None and mtp:
            # The last token of a document stands in for the next one, which does not exist; nothing is predicted there.
            embedding = self.model.embed_tokens(_ahead(input_ids, lengths, 1, fill=None))
            draft, mtp_balance = self.mtp(embedding, hidden, rotary, cu_seqlens)
            mtp_loss, _ = self._loss(draft, labels, lengths, ahead=2)
            balance += [] if mtp_balance is None else [mtp_balance]
        return Output(loss=loss, mtp_loss=mtp_loss, aux_loss=_total(balance), predicted=predicted)

    def _loss(self, hidden: Tensor, labels: Tensor, lengths: tuple[int, ...], ahead: int) -> tuple[Tensor, Tensor]:
        targets = _ahead(labels, lengths, ahead, fill=IGNORED).flatten()
        predicted = (targets != IGNORED).sum()
        total = ops.linear_cross_entropy(hidden.flatten(0, 1), self.lm_head.weight, targets)
        return total / predicted.clamp(min=1), predicted

    def _check_ids(self, input_ids: Tensor) -> None:
        if input_ids.device.type != "cpu" or not input_ids.numel():
            return  # an accelerator would have to be waited for; there the embedding itself refuses
        low, high = torch.aminmax(input_ids)
        if low < 0 or high >= self.config.vocab_size:
            wrong = int(low) if low < 0 else int(high)
            raise UserError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size}")


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


def _total(losses: list[Tensor]) -> Tensor | None:
    return torch.stack(losses).sum() if losses else None
