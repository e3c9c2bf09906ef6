"""Sampling the next token from its logits.

The random numbers of a token are a function of the request's seed and the token's position alone (`ops.sample_tokens`).
So a text does not change with what is decoded beside it, when memory runs short and it is computed again, or with
drafts: the model's own token at a position is sampled with the same numbers whether a draft foresaw it or not, and a
draft is accepted if it is that token. That leaves the distribution untouched. Drafts are sampled with the numbers of
their positions, too, so that they are mostly the model's token where the head's distribution is like the model's.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer import ops
from gossamer.infer.request import SamplingParams, TokenLogprobs

_NUM_CANDIDATES = 256  # most likely tokens that are looked at first: they hold the nucleus nearly always
_MASK = (1 << 64) - 1


class Sampler:
    """One request's way of choosing tokens.

    Args:
        params: how tokens are chosen
        prompt: the request's tokens, which the repetition penalty counts

    Attributes:
        params: how tokens are chosen
        seed: seed of the random numbers
        truncates: whether tokens are left out for being unlikely
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.truncates = params.temperature > 0 and bool(params.top_k or params.top_p < 1 or params.min_p)
        self._generated: Counter[int] = Counter()
        self._bias = torch.tensor(list(params.logit_bias), dtype=torch.int64)
        self._bias_values = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        self._prompt_tokens = torch.tensor(
            sorted(set(prompt)) if params.repetition_penalty != 1 else [], dtype=torch.int64
        )

    @property
    def has_adjustments(self) -> bool:
        """Whether logits are changed before the temperature."""
        p = self.params
        return bool(p.logit_bias or p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1)

    def adjust(self, logits: Tensor) -> None:
        """Apply penalties and biases to one row of logits [V], in place."""
        p = self.params
        generated = torch.tensor(list(self._generated), dtype=torch.int64)
        if p.repetition_penalty != 1:
            seen = torch.cat([self._prompt_tokens, generated]).unique()
            values = logits[seen]
            logits[seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        if self._generated and (p.presence_penalty or p.frequency_penalty):
            counts = torch.tensor(list(self._generated.values()), dtype=torch.float32)
            logits[generated] -= p.presence_penalty + p.frequency_penalty * counts
        if len(self._bias):
            logits[self._bias] += self._bias_values

    def key(self, position: int) -> int:
        """Return the key of the random numbers for a position in the text."""
        return random_key(self.seed, position) if self.params.temperature else 0

    def count(self, token: int) -> None:
        """Count a token of the answer, for the penalties."""
        self._generated[token] += 1


def sample(logits: Tensor, samplers: Sequence[Sampler], positions: Sequence[int]) -> list[int]:
    """Sample a token for each row.

    Args:
        logits: [R, V] float32 on the CPU, adjusted already; −inf for what is forbidden
        samplers: one for each row
        positions: where each token lies in its text

    Returns:
        The tokens; −1 for a row whose largest logit is not finite.
    """
    if any(sampler.truncates for sampler in samplers):
        rows = zip(logits, samplers, strict=True)
        logits = torch.stack([_truncate(row, sampler.params) if sampler.truncates else row for row, sampler in rows])
    keys = [sampler.key(position) for sampler, position in zip(samplers, positions, strict=True)]
    temperatures = torch.tensor([sampler.params.temperature for sampler in samplers])
    tokens: list[int] = ops.sample_tokens(logits, temperatures, torch.tensor(keys)).tolist()
    return tokens


def _truncate(logits: Tensor, params: SamplingParams) -> Tensor:
    """Set to −inf what top-k, nucleus and min-p leave out of a row [V]."""
    probabilities = (logits / params.temperature).softmax(-1)
    count = min(max(_NUM_CANDIDATES, params.top_k), len(logits))
    candidates, ids = probabilities.topk(count)
    if bool(candidates[0].isnan()):  # the largest logit is not finite
        return logits
    is_allowed = _filter(candidates, params)
    if count < len(logits) and not params.top_k and bool(is_allowed[-1]):  # there may be more than these
        candidates, ids = probabilities.sort(descending=True, stable=True)
        is_allowed = _filter(candidates, params)
    allowed = ids[is_allowed]
    return torch.full_like(logits, float("-inf")).index_copy_(0, allowed, logits[allowed])


def _filter(candidates: Tensor, params: SamplingParams) -> Tensor:
    """Return which probabilities, in falling order, are allowed: by top-k, then the nucleus of those, then min-p."""
    is_allowed = torch.ones_like(candidates, dtype=torch.bool)
    if params.top_k:
        is_allowed[params.top_k :] = False
    if params.top_p < 1:
        mass = candidates * is_allowed
        total = mass.sum() if params.top_k else 1.0
        before = mass.cumsum(-1) - mass  # 0 for the most likely token, which is therefore always allowed
        is_allowed &= before < params.top_p * total
    if params.min_p:
        is_allowed &= candidates >= params.min_p * candidates[0]
    is_allowed[0] = True
    return is_allowed


def random_key(seed: int, position: int) -> int:
    """Make 64 bits, as a signed number, of a seed and a position in a text by SplitMix64 (Steele, Lea, Flood 2014)."""
    bits = _mix(_mix(seed & _MASK) + position * 0x9E3779B97F4A7C15 & _MASK)
    return bits - (bits >> 63 << 64)


def _mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def logprobs(logits: Tensor, token: int, alternatives: int) -> TokenLogprobs:
    """Return the log-probabilities of a token and of the most likely ones, from the model's own logits [V]."""
    normalizer = float(logits.logsumexp(-1))
    top = logits.topk(min(alternatives, len(logits)))
    likely = zip(top.values, top.indices, strict=True)
    pairs = tuple((int(i), float(x) - normalizer) for x, i in likely if x > float("-inf"))
    return TokenLogprobs(token, float(logits[token]) - normalizer, pairs)
