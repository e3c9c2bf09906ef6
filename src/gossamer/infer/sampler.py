"""Choosing the next token from its logits.

The random numbers of a token are a function of the request's seed and the token's place alone (ops/draw). So a text
does not change with what is decoded beside it, when memory runs short and it is computed again, or with drafts: the
model's own choice at a place is made with the same numbers whether a draft foresaw it or not, and a draft counts if it
is that choice. That leaves the distribution untouched. Drafts are drawn with the numbers of their places, too, so that
they are mostly the model's choice where the head's distribution is like the model's.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer import ops
from gossamer.infer.request import SamplingParams, TokenLogprobs

_FEW = 256  # likeliest tokens that are looked at first: they hold the nucleus nearly always
_MASK = (1 << 64) - 1


class Sampler:
    """Chooses one request's tokens.

    Args:
        params: how
        prompt: the request's, whose tokens the repetition penalty counts

    Attributes:
        cuts: whether tokens are left out for being unlikely
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.cuts = params.temperature > 0 and bool(params.top_k or params.top_p < 1 or params.min_p)
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

    def key(self, place: int) -> int:
        """Of the random numbers of a place in the text."""
        return random_key(self.seed, place) if self.params.temperature else 0

    def count(self, token: int) -> None:
        """Take a token of the answer in."""
        self._made[token] += 1


def choose(logits: Tensor, samplers: Sequence[Sampler], places: Sequence[int]) -> list[int]:
    """Choose a token for each row.

    Args:
        logits: [R, V] float32 on the CPU, adjusted already; −inf for what is forbidden
        samplers: of the rows
        places: of the tokens in their texts

    Returns:
        Tokens, −1 for a row whose largest logit is not finite.
    """
    if any(sampler.cuts for sampler in samplers):
        rows = zip(logits, samplers, strict=True)
        logits = torch.stack([_cut(row, sampler.params) if sampler.cuts else row for row, sampler in rows])
    keys = [sampler.key(place) for sampler, place in zip(samplers, places, strict=True)]
    temperatures = torch.tensor([sampler.params.temperature for sampler in samplers])
    tokens: list[int] = ops.draw(logits, temperatures, torch.tensor(keys)).tolist()
    return tokens


def _cut(logits: Tensor, params: SamplingParams) -> Tensor:
    """−inf for what top-k, nucleus and min-p leave out of a row [V]."""
    probabilities = (logits / params.temperature).softmax(-1)
    few = min(max(_FEW, params.top_k), len(logits))
    likeliest, ids = probabilities.topk(few)
    if bool(likeliest[0].isnan()):  # the largest logit is not finite
        return logits
    kept = _filter(likeliest, params)
    if few < len(logits) and not params.top_k and bool(kept[-1]):  # more than these may be left
        likeliest, ids = probabilities.sort(descending=True, stable=True)
        kept = _filter(likeliest, params)
    left = ids[kept]
    return torch.full_like(logits, float("-inf")).index_copy_(0, left, logits[left])


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


def random_key(seed: int, place: int) -> int:
    """64 bits, as a signed number, for a place in a text: SplitMix64 (Steele, Lea, Flood 2014) of seed and place."""
    bits = _mix(_mix(seed & _MASK) + place * 0x9E3779B97F4A7C15 & _MASK)
    return bits - (bits >> 63 << 64)


def _mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def logprobs(logits: Tensor, token: int, alternatives: int) -> TokenLogprobs:
    """The chosen token's log-probability and those of the likeliest ones, from the model's own logits [V]."""
    normaliser = float(logits.logsumexp(-1))
    top = logits.topk(min(alternatives, len(logits)))
    pairs = tuple((int(i), float(x) - normaliser) for x, i in zip(top.values, top.indices, strict=True))
    return TokenLogprobs(token, float(logits[token]) - normaliser, pairs)
