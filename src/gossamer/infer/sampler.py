"""Choosing the next token from its logits.

The random number of a token is a function of the request's seed and the token's place alone. So a text does not change
with what is decoded beside it, when memory runs short and it is computed again, or with drafts: the model's own choice
at a place is made from the same number whether a draft foresaw it or not, and a draft is accepted if it is that choice.
That leaves the distribution untouched, and accepts a draft with the probability that the model gives it.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.infer.request import SamplingParams, TokenLogprobs

_FEW = 256  # likeliest tokens that are looked at first: they hold the nucleus nearly always


class Sampler:
    """Chooses one request's tokens.

    Args:
        params: how
        prompt: the request's, whose tokens the repetition penalty counts
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self._prompt = prompt
        self._made: Counter[int] = Counter()
        self._bias = torch.tensor(list(params.logit_bias), dtype=torch.int64)
        self._bias_values = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        self._seen = torch.tensor(sorted(set(prompt)) if params.repetition_penalty != 1 else [], dtype=torch.int64)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the temperature."""
        p = self.params
        return bool(p.logit_bias or p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1)

    def adjust(self, logits: Tensor) -> None:
        """Apply penalties and biases to one row of logits [V], in place."""
        p = self.params
        made = torch.tensor(list(self._made), dtype=torch.int64)
        if p.repetition_penalty != 1:
            seen = torch.cat([self._seen, made]).unique()
            values = logits[seen]
            logits[seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        if self._made and (p.presence_penalty or p.frequency_penalty):
            counts = torch.tensor(list(self._made.values()), dtype=torch.float32)
            logits[made] -= p.presence_penalty + p.frequency_penalty * counts
        if len(self._bias):
            logits[self._bias] += self._bias_values

    def count(self, token: int) -> None:
        """Take a token of the answer in."""
        self._made[token] += 1


def choose(logits: Tensor, samplers: Sequence[Sampler], places: Sequence[int]) -> list[int]:
    """Choose a token for each row.

    Args:
        logits: [R, V] float32 on the CPU, adjusted already; −inf for what is forbidden
        samplers: of the rows
        places: of the tokens in their texts
    """
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, (sampler, place) in enumerate(zip(samplers, places, strict=True)):
        if sampler.params.temperature > 0:
            tokens[row] = _draw(logits[row], sampler.params, uniform(sampler.seed, place))
    return tokens


def _draw(logits: Tensor, params: SamplingParams, u: float) -> int:
    """The token at which the cumulative probability passes u, of those that the parameters leave."""
    probabilities = (logits / params.temperature).softmax(-1)
    if not params.top_k and params.top_p == 1 and params.min_p == 0:
        return _pick(probabilities, u)
    few = min(max(_FEW, params.top_k), len(logits))
    likeliest, ids = probabilities.topk(few)
    kept = _filter(likeliest, params)
    if few < len(logits) and not params.top_k and bool(kept[-1]):  # more than these may be left
        likeliest, ids = probabilities.sort(descending=True, stable=True)
        kept = _filter(likeliest, params)
    return int(ids[_pick(likeliest * kept, u)])


def _filter(likeliest: Tensor, params: SamplingParams) -> Tensor:
    """Which of the probabilities, in falling order, stay: top-k, then the nucleus of what is left, then min-p."""
    kept = torch.ones_like(likeliest, dtype=torch.bool)
    if params.top_k:
        kept[params.top_k :] = False
    if params.top_p < 1:
        mass = likeliest * kept
        total = mass.sum() if params.top_k else 1.0
        before = mass.cumsum(-1) - mass  # the likeliest token has nothing before it and always stays
        kept &= before < params.top_p * total
    if params.min_p:
        kept &= likeliest >= params.min_p * likeliest[0]
    kept[0] = True
    return kept


def _pick(weights: Tensor, u: float) -> int:
    """The first place at which the running sum passes u times the whole."""
    sums = weights.double().cumsum(-1)
    index = int(torch.searchsorted(sums, u * sums[-1], right=True))
    return index if index < len(weights) and weights[index] > 0 else int(weights.nonzero()[-1])


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) for a place in a text: SplitMix64 (Steele, Lea, Flood 2014) of seed and place."""
    mask = (1 << 64) - 1
    return (_mix(_mix(seed & mask) + place * 0x9E3779B97F4A7C15 & mask) >> 11) / (1 << 53)


def _mix(z: int) -> int:
    mask = (1 << 64) - 1
    z = (z + 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def logprobs(logits: Tensor, token: int, alternatives: int) -> TokenLogprobs:
    """The chosen token's log-probability and those of the likeliest ones, from the model's own logits [V]."""
    normaliser = float(logits.logsumexp(-1))
    top = logits.topk(min(alternatives, len(logits)))
    pairs = tuple((int(i), float(x) - normaliser) for x, i in zip(top.values, top.indices, strict=True))
    return TokenLogprobs(token, float(logits[token]) - normaliser, pairs)
