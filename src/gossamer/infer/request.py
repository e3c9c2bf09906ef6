"""What is asked of the engine and what it answers: requests in, deltas out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from gossamer.errors import UserError, names_meant, nearest

FinishReason = Literal["stop", "length", "abort", "error"]
GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]
ErrorCause = Literal["grammar", "logits"]
MOST_LOGPROBS = 128  # alternatives a token


@dataclass(frozen=True)
class Grammar:
    """What the text must match, as llguidance reads it.

    Attributes:
        kind: of `text`
        text: a JSON schema as JSON, a regular expression or a Lark grammar; empty for `json_object`, any JSON object
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            kinds = get_args(GrammarKind)
            raise UserError(
                f"grammar: unknown kind {self.kind!r}{nearest(self.kind, kinds)}; known: {', '.join(kinds)}"
            )


@names_meant
@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Logits are changed in the order of this list, then one token is drawn.

    A token is a function of the model, the tokens before it and `seed`: neither other requests nor speculation change
    it.

    Attributes:
        max_tokens: that are made at most
        repetition_penalty: logits of tokens in prompt or answer are divided by it if positive, multiplied if negative
            (arXiv 1909.05858); 1: off
        presence_penalty: subtracted from the logit of every token that the answer holds
        frequency_penalty: subtracted as often as the answer holds the token
        logit_bias: added, by token id; −inf forbids a token
        grammar: tokens that would break it are forbidden
        temperature: logits are divided by it; 0 takes the likeliest token
        top_k: only so many likeliest tokens; 0: all
        top_p: only the smallest set of likeliest tokens with at least this much probability (arXiv 1904.09751); 1: all
        min_p: only tokens at least so probable, as a part of the likeliest one's probability (arXiv 2407.01082)
        seed: None: another one each time
        stop: strings that end the text; it ends before them
        stop_token_ids: tokens that end the text, beside the tokenizer's end of text
        ignore_eos: the tokenizer's end of text does not end it (`stop_token_ids` still do)
        logprobs: None: none; otherwise each token comes with its log-probability and those of so many likeliest tokens,
            under the model's own distribution (temperature 1, nothing forbidden or penalised)
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1")
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (all) or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        _check("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(name, getattr(self, name), math.isfinite(getattr(self, name)), "a finite number")
        _check("seed", self.seed, self.seed is None or isinstance(self.seed, int), "an integer")
        for token, bias in self.logit_bias.items():
            _check(f"logit_bias of token {token}", bias, bias < math.inf, "a number or −inf")
        _check("stop", self.stop, all(self.stop), "strings of at least one character")
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, 0 <= self.logprobs <= MOST_LOGPROBS, f"from 0 to {MOST_LOGPROBS}")


def _check(name: str, value: object, fits: bool, wanted: str) -> None:
    if not fits:
        raise UserError(f"{name}: {value!r} must be {wanted}")


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Attributes:
        id: no two requests that are under way share one
        prompt: token ids, at least one
        sampling: how to continue
        boundaries: places in the prompt, in tokens from its beginning, behind which another request is likely to go on
            differently (ends of messages): the state there is kept for prefix reuse
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    boundaries: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenLogprobs:
    """Attributes:
    token: the id that was chosen
    logprob: its log-probability, in nats
    top: the likeliest ids with theirs, likeliest first; as many as were asked for
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Usage:
    """What a finished request took, in tokens.

    Attributes:
        prompt_tokens: of the prompt
        completion_tokens: that were made, a final end-of-text or stop token included
        cached_tokens: of the prompt, whose state was found in the prefix cache
        drafted: proposed by the multi-token-prediction head
        accepted: of those, that the model itself chose
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    drafted: int
    accepted: int


@dataclass(frozen=True)
class Delta:
    """What a step adds to a request's answer.

    Attributes:
        id: the request's
        token_ids: new tokens, without the one that ends the text; where a stop string ends it, with the tokens that
            spell it
        text: new characters that are certain; those that may yet become a stop string are held back, so that
            text and tokens need not arrive together
        logprobs: one for each of `token_ids`, if asked for
        finish_reason: None while more is to come. "stop": a stop string, a stop token, the end of text, or the grammar
            allows nothing more; "length": max_tokens; "abort"; "error"
        usage: with the finish reason
        error: one line, with "error"
        cause: of an error whose line is for who asked: "grammar": his grammar, or what else he forbids, leaves no token
            or takes too long; "logits": the model's are not finite
    """

    id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None
    cause: ErrorCause | None = None
