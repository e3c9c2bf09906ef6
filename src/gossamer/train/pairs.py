"""A beginning from the pairs of neighbouring tokens: embedding and head learn a text's table of pairs, whole.

What a network learns first, in some tens of steps, is which token follows which. That can be had for less. Without its
blocks it says softmax(head · norm(embedding[t])), which depends on the token t alone; so its loss over a whole text is
its loss over the table that counts which token follows which, and a step on all of the text costs what the head costs
on one batch of as many tokens as the table has rows. The blocks begin small, so their outputs hardly disturb what was
learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from gossamer import ops
from gossamer.data.token_files import Mixture, TokenFile
from gossamer.model.causal_lm import CausalLM
from gossamer.train.optimizer import set_learning_rate

ROWS = 4096  # of the table: the tokens that most often have a follower
MOST_READ = 1 << 22  # tokens of a set that are counted
_BLOCK_BYTES = 8 << 20  # of logits held at once
_STEADY = 0.3  # share of the steps before the learning rate falls, in a straight line


@dataclass(frozen=True, eq=False)
class PairTable:
    """How often which token follows which, as shares of all pairs counted.

    Attributes:
        contexts: [R] int64, a row's token
        weights: [R] float32, the share of all pairs that begin with it; they add up to 1
        rows, followers: [N] int64, of each pair that occurs; ascending
        shares: [N] float32, of each such pair
    """

    contexts: Tensor
    weights: Tensor
    rows: Tensor
    followers: Tensor
    shares: Tensor

    def to(self, like: Tensor) -> PairTable:
        """The table on the device of a tensor, the shares in its dtype."""
        weights, shares = self.weights.to(like.device, like.dtype), self.shares.to(like.device, like.dtype)
        contexts, rows, followers = (ids.to(like.device) for ids in (self.contexts, self.rows, self.followers))
        return PairTable(contexts, weights, rows, followers, shares)


@dataclass(frozen=True)
class Beginning:
    """What a beginning from pairs came to.

    Attributes:
        pairs: different ones that were counted
        loss: before the last step, nats a token
        flops: of the head's products over the table's rows, forward and twice backward
    """

    pairs: int
    loss: float
    flops: float


def begin_with_pairs(
    model: CausalLM, optimizers: Sequence[torch.optim.Optimizer], train: Mixture, steps: int, learning_rate: float
) -> Beginning:
    """Count the pairs of the sets to learn from, and learn them: see `learn_pairs`."""
    table, config = count_pairs(train, model.config.vocab_size), model.config
    loss = learn_pairs(model, optimizers, table, steps, learning_rate)
    flops = steps * 6.0 * len(table.contexts) * config.hidden_size * config.vocab_size
    return Beginning(len(table.shares), loss, flops)


def count_pairs(train: Mixture, vocab_size: int) -> PairTable:
    """The pairs inside the documents of the sets to learn from, each set with its weight."""
    keys, shares = [], []
    for name, shard in train.token_files.items():
        found, counts = np.unique(_pairs(shard, vocab_size), return_counts=True)
        keys.append(found)
        shares.append(train.weights[name] * counts / counts.sum())
    joined, places = np.unique(np.concatenate(keys), return_inverse=True)
    share = np.bincount(places, np.concatenate(shares))
    by_token = np.bincount(joined // vocab_size, share, minlength=vocab_size)
    contexts = np.argsort(-by_token, kind="stable")[: min(ROWS, np.count_nonzero(by_token))]
    row_of = np.full(vocab_size, -1)
    row_of[contexts] = np.arange(len(contexts))
    rows = row_of[joined // vocab_size]
    kept = np.flatnonzero(rows >= 0)
    kept = kept[np.argsort(rows[kept], kind="stable")]
    whole = by_token[contexts].sum()
    return PairTable(
        torch.from_numpy(contexts),
        torch.from_numpy(by_token[contexts] / whole).float(),
        torch.from_numpy(rows[kept]),
        torch.from_numpy(joined[kept] % vocab_size),
        torch.from_numpy(share[kept] / whole).float(),
    )


def _pairs(shard: TokenFile, vocab_size: int) -> npt.NDArray[np.int64]:
    """Each token with the one that follows in its document, as one number."""
    tokens = shard.read(0, min(shard.num_tokens, MOST_READ)).astype(np.int64)
    inside = np.ones(max(len(tokens) - 1, 0), dtype=bool)
    ends = shard.offsets[1:-1] - 1
    inside[ends[ends < len(inside)]] = False
    return (tokens[:-1] * vocab_size + tokens[1:])[inside]


def learn_pairs(
    model: CausalLM, optimizers: Sequence[torch.optim.Optimizer], table: PairTable, steps: int, learning_rate: float
) -> float:
    """Take so many steps of the embedding and the head on the whole table; all else stays as it is.

    Args:
        optimizers: the network's own; their running means of the two go on from here
        learning_rate: at the beginning of the steps, at whose end it is 0

    Returns:
        The loss before the last step (nats a token).
    """
    embedding, head, loss = model.model.embed_tokens.weight, model.lm_head.weight, 0.0
    table = table.to(embedding)
    for step in range(steps):
        vectors = _whole(embedding).detach().requires_grad_()
        states = ops.rms_norm(vectors[table.contexts], torch.ones_like(vectors[0]), model.config.rms_norm_eps)
        loss, dstates, dhead = loss_and_gradients(states.detach(), _whole(head).detach(), table)
        states.backward(dstates)
        assert vectors.grad is not None
        embedding.grad = _spread(vectors.grad, embedding)
        head.grad = _spread(dhead, head) if head is not embedding else embedding.grad + _spread(dhead, head)
        set_learning_rate(optimizers, learning_rate * min(1.0, (1 - step / steps) / (1 - _STEADY)))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return loss


@torch.no_grad()
def loss_and_gradients(states: Tensor, head: Tensor, table: PairTable) -> tuple[float, Tensor, Tensor]:
    """The table's cross-entropy, and its gradients with respect to states [R, hidden] and head [V, hidden]."""
    dstates, dhead = torch.empty_like(states), torch.zeros_like(head)
    loss = states.new_zeros(())
    height = max(1, _BLOCK_BYTES // (len(head) * head.itemsize))
    borders = [*range(0, len(states), height), len(states)]
    pairs = torch.searchsorted(table.rows, torch.tensor(borders, device=table.rows.device)).tolist()
    for start, end, first, last in zip(borders, borders[1:], pairs, pairs[1:], strict=False):
        x, weights, shares = states[start:end], table.weights[start:end], table.shares[first:last]
        places = (table.rows[first:last] - start) * len(head) + table.followers[first:last]
        logits = x @ head.mT
        normaliser = logits.logsumexp(1, keepdim=True)
        loss += (weights * normaliser[:, 0]).sum() - (shares * logits.flatten()[places]).sum()
        dlogits = logits.sub_(normaliser).exp_().mul_(weights.unsqueeze(1))
        dlogits.view(-1).index_add_(0, places, -shares)
        torch.mm(dlogits, head, out=dstates[start:end])
        dhead.addmm_(dlogits.mT, x)
    return float(loss), dstates, dhead


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _spread(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient that every process has, as the parameter lies over them."""
    if not isinstance(parameter, DTensor):
        return gradient
    return distribute_tensor(gradient, parameter.device_mesh, parameter.placements, src_data_rank=None)
