"""A start from bigrams: before the first step, embedding and head learn which token follows which.

That is what a network learns first, in some tens of steps, and it can be had for less. Without its blocks the network
predicts softmax(head · norm(embedding[t])), which depends on the token t only. So its loss over a whole text is its
loss over the table that counts which token follows which, and a step on all of the text costs what the head costs on
one batch of as many tokens as the table has rows. The blocks begin small, so their outputs hardly disturb what was
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

MAX_ROWS = 4096  # of the table: the tokens that most often have a follower
MAX_READ = 1 << 22  # tokens of a set that are counted
_BLOCK_BYTES = 8 << 20  # of logits held at once
_STEADY = 0.3  # share of the steps before the learning rate falls, in a straight line


@dataclass(frozen=True, eq=False)
class BigramTable:
    """How often which token follows which, as shares of all bigrams counted.

    Attributes:
        contexts: [R] int64, the token of each row
        weights: [R] float32, the share of all bigrams that begin with this token; they add up to 1
        rows: [N] int64, the row of each bigram that occurs, ascending
        followers: [N] int64, the second token of each bigram
        shares: [N] float32, the share of each bigram
    """

    contexts: Tensor
    weights: Tensor
    rows: Tensor
    followers: Tensor
    shares: Tensor

    def to(self, like: Tensor) -> BigramTable:
        """Return the table on the device of a tensor, with shares in its dtype."""
        weights, shares = self.weights.to(like.device, like.dtype), self.shares.to(like.device, like.dtype)
        contexts, rows, followers = (ids.to(like.device) for ids in (self.contexts, self.rows, self.followers))
        return BigramTable(contexts, weights, rows, followers, shares)


@dataclass(frozen=True)
class BigramStart:
    """The result of a start from bigrams.

    Attributes:
        bigrams: how many different ones were counted
        loss: before the last step, nats per token
        flops: of the head's products over the table's rows, forward and twice backward
    """

    bigrams: int
    loss: float
    flops: float


def start_from_bigrams(
    model: CausalLM, optimizers: Sequence[torch.optim.Optimizer], train: Mixture, steps: int, learning_rate: float
) -> BigramStart:
    """Count the bigrams of the training text and learn them; the arguments are those of `learn_bigrams`."""
    table, config = count_bigrams(train, model.config.vocab_size), model.config
    loss = learn_bigrams(model, optimizers, table, steps, learning_rate)
    flops = steps * 6.0 * len(table.contexts) * config.hidden_size * config.vocab_size
    return BigramStart(len(table.shares), loss, flops)


def count_bigrams(train: Mixture, vocab_size: int) -> BigramTable:
    """Count the bigrams inside the documents of the training text, each set by its weight."""
    keys, shares = [], []
    for name, file in train.token_files.items():
        found, counts = np.unique(_bigrams(file, vocab_size), return_counts=True)
        keys.append(found)
        shares.append(train.weights[name] * counts / counts.sum())
    joined, places = np.unique(np.concatenate(keys), return_inverse=True)
    share = np.bincount(places, np.concatenate(shares))
    by_token = np.bincount(joined // vocab_size, share, minlength=vocab_size)
    contexts = np.argsort(-by_token, kind="stable")[: min(MAX_ROWS, np.count_nonzero(by_token))]
    row_of = np.full(vocab_size, -1)
    row_of[contexts] = np.arange(len(contexts))
    rows = row_of[joined // vocab_size]
    in_table = np.flatnonzero(rows >= 0)
    in_table = in_table[np.argsort(rows[in_table], kind="stable")]
    whole = by_token[contexts].sum()
    return BigramTable(
        torch.from_numpy(contexts),
        torch.from_numpy(by_token[contexts] / whole).float(),
        torch.from_numpy(rows[in_table]),
        torch.from_numpy(joined[in_table] % vocab_size),
        torch.from_numpy(share[in_table] / whole).float(),
    )


def _bigrams(file: TokenFile, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return each token with the one that follows it in its document, as one number."""
    tokens = file.read(0, min(file.num_tokens, MAX_READ)).astype(np.int64)
    in_document = np.ones(max(len(tokens) - 1, 0), dtype=bool)
    ends = file.offsets[1:-1] - 1
    in_document[ends[ends < len(in_document)]] = False
    return (tokens[:-1] * vocab_size + tokens[1:])[in_document]


def learn_bigrams(
    model: CausalLM, optimizers: Sequence[torch.optim.Optimizer], table: BigramTable, steps: int, learning_rate: float
) -> float:
    """Take steps of the embedding and the head on the whole table; all else stays as it is.

    Args:
        model: the network
        optimizers: the network's own; their running means of the two go on from here
        table: from `count_bigrams`
        steps: how many
        learning_rate: of the first steps; it falls to 0 at the end

    Returns:
        The loss before the last step (nats per token).
    """
    embedding, head, loss = model.model.embed_tokens.weight, model.lm_head.weight, 0.0
    table = table.to(embedding)
    for step in range(steps):
        vectors = _full_tensor(embedding).detach().requires_grad_()
        states = ops.rms_norm(vectors[table.contexts], torch.ones_like(vectors[0]), model.config.rms_norm_eps)
        loss, dstates, dhead = loss_and_gradients(states.detach(), _full_tensor(head).detach(), table)
        states.backward(dstates)
        assert vectors.grad is not None
        embedding.grad = _sharded_like(vectors.grad, embedding)
        head.grad = _sharded_like(dhead, head) if head is not embedding else embedding.grad + _sharded_like(dhead, head)
        set_learning_rate(optimizers, learning_rate * min(1.0, (1 - step / steps) / (1 - _STEADY)))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return loss


@torch.no_grad()
def loss_and_gradients(states: Tensor, head: Tensor, table: BigramTable) -> tuple[float, Tensor, Tensor]:
    """Return the table's cross-entropy and its gradients with respect to states [R, hidden] and head [V, hidden]."""
    dstates, dhead = torch.empty_like(states), torch.zeros_like(head)
    loss = states.new_zeros(())
    height = max(1, _BLOCK_BYTES // (len(head) * head.itemsize))
    borders = [*range(0, len(states), height), len(states)]
    pairs = torch.searchsorted(table.rows, torch.tensor(borders, device=table.rows.device)).tolist()
    for start, end, first, last in zip(borders, borders[1:], pairs, pairs[1:], strict=False):
        x, weights, shares = states[start:end], table.weights[start:end], table.shares[first:last]
        places = (table.rows[first:last] - start) * len(head) + table.followers[first:last]
        logits = x @ head.mT
        normalizer = logits.logsumexp(1, keepdim=True)
        loss += (weights * normalizer[:, 0]).sum() - (shares * logits.flatten()[places]).sum()
        dlogits = logits.sub_(normalizer).exp_().mul_(weights.unsqueeze(1))
        dlogits.view(-1).index_add_(0, places, -shares)
        torch.mm(dlogits, head, out=dstates[start:end])
        dhead.addmm_(dlogits.mT, x)
    return float(loss), dstates, dhead


def _full_tensor(parameter: Tensor) -> Tensor:
    """Return all of a parameter that may be sharded over processes."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _sharded_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Shard a gradient that every process has as the parameter is sharded."""
    if not isinstance(parameter, DTensor):
        return gradient
    return distribute_tensor(gradient, parameter.device_mesh, parameter.placements, src_data_rank=None)
