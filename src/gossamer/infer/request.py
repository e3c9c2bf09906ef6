"""What is asked of the engine and what it answers: requests go in, deltas come out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from gossamer.errors import FieldError, UserError, did_you_mean
from gossamer.typed import Range, check_fields, reject_unknown_fields

FinishReason = Literal["stop", "length", "abort", "error"]
GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]
ErrorCause = Literal["grammar", "logits"]
MAX_LOGPROBS = 128  # alternatives for each token


@dataclass(frozen=True)
class Grammar:
    """What the text must match, as llguidance reads it.

    Attributes:
        kind: what `text` is
        text: a JSON schema as JSON, a regular expression or a Lark grammar; empty for `json_object`, any JSON object
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            kinds = get_args(GrammarKind)
            raise UserError(
                f"grammar: unknown kind {self.kind!r}{did_you_mean(self.kind, kinds)}; known: {', '.join(kinds)}"
            )


_Penalty = Annotated[float, Range(-math.inf, math.inf)]  # that is, any finite number


@reject_unknown_fields
@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen: logits are changed in the order of this list, then one token is sampled.

    A token is a function of the model, the tokens before it and `seed`: neither other requests nor speculation change
    it.

    Attributes:
        max_tokens: maximum number of tokens
        repetition_penalty: logits of tokens in prompt or answer are divided by it if positive, multiplied if negative
            (arXiv 1909.05858); 1 turns it off
        presence_penalty: subtracted from the logit of every token that the answer holds
        frequency_penalty: subtracted from a token's logit as often as the answer holds the token
        logit_bias: added, by token id; −inf forbids a token
        grammar: tokens that would break it are forbidden
        temperature: logits are divided by it; 0 takes the likeliest token
        top_k: number of likeliest tokens to sample from; 0: all
        top_p: only the smallest set of likeliest tokens with at least this much probability (arXiv 1904.09751); 1: all
        min_p: only tokens with at least this part of the likeliest one's probability (arXiv 2407.01082)
        seed: the same seed gives the same tokens; None: a different one each time
        stop: strings that end the text; it ends before them
        stop_token_ids: tokens that end the text, beside the tokenizer's end of text
        ignore_eos: the tokenizer's end of text does not end it (`stop_token_ids` still do)
        logprobs: each token comes with its log-probability and those of so many likeliest tokens, under the model's own
            distribution (temperature 1, nothing forbidden or penalized); None: without
    """

    max_tokens: Annotated[int, Range(1, math.inf)]
    temperature: Annotated[float, Range(0, math.inf)] = 1.0
    top_k: Annotated[int, Range(0, math.inf)] = 0
    top_p: Annotated[float, Range(0, 1, excludes_minimum=True)] = 1.0
    min_p: Annotated[float, Range(0, 1)] = 0.0
    repetition_penalty: Annotated[float, Range(0, math.inf, excludes_minimum=True)] = 1.0
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, Range(0, MAX_LOGPROBS)] | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        check_fields(self, except_for=("logit_bias",))
        if not all(self.stop):
            raise FieldError("stop", f" = {list(self.stop)}: must be strings of at least one character")
        for token, bias in self.logit_bias.items():
            if not bias < math.inf:
                raise FieldError("logit_bias", f" of token {token} = {bias}: must be a number or −inf")


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Attributes:
        id: a name that no other unfinished request has
        prompt: token ids, at least one
        sampling: how tokens are chosen
        boundaries: positions in the prompt, in tokens from its beginning, after which another request is likely to go
            on differently (ends of messages): the state there is stored for prefix reuse
        adapter: the adapter that is added to the model's weights; "" for the model itself
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    boundaries: tuple[int, ...] = ()
    adapter: str = ""


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probabilities of one token of an answer and of its alternatives.

    Attributes:
        token: the id that was chosen
        logprob: its log-probability, in nats
        top: the likeliest ids with their log-probabilities, likeliest first; as many as were asked for
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Usage:
    """How many tokens a finished request took.

    Attributes:
        prompt_tokens: tokens of the prompt
        completion_tokens: tokens of the answer, a final end-of-text or stop token included
        cached_tokens: tokens of the prompt whose state was found in the prefix cache
        drafted: tokens that the multi-token-prediction head proposed
        accepted: proposed tokens that the model itself chose
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
        id: the id of the request
        token_ids: new tokens, without the one that ends the text; where a stop string ends it, with the tokens that
            spell it
        text: new characters that are certain; those that may yet become a stop string are held back, so that text and
            tokens need not arrive together
        logprobs: one for each of `token_ids`, if asked for
        finish_reason: None while more is to come. "stop": a stop string, a stop token, the end of text, or a grammar
            that allows nothing more; "length": max_tokens; "abort"; "error"
        usage: the request's tokens, together with the finish reason
        error: one line, where the finish reason is "error"
        cause: the reason of an error that concerns the client. "grammar": the grammar, or what else the request
            forbids, leaves no token or takes too long; "logits": those of the model are not finite
    """

    id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None
    cause: ErrorCause | None = None
