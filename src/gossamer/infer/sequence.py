"""A request under way: its tokens, how far the model has taken them in, and where its states lie."""

from __future__ import annotations

from torch import Tensor

from gossamer.data.tokenizer import Tokenizer
from gossamer.infer.grammar import Matcher
from gossamer.infer.request import Delta, ErrorCause, FinishReason, Request, TokenLogprobs, Usage
from gossamer.infer.sampler import Sampler
from gossamer.infer.text import TextOut


class Sequence:
    """What belongs to a request for as long as it lasts, and what it has only while it runs.

    Attributes:
        tokens: prompt and answer
        computed: tokens that the states hold
        kept: tokens of the last step that count; they are replayed in the next one
        decoding: the prompt is computed, one token and its drafts follow a step
        drafts: what the head proposes to come after `tokens`
        head: places that the multi-token-prediction head has seen
        unseen: final hidden states of the others, in pieces [n, hidden] that are joined when the head runs; none
            without the head
        last: [1, hidden] of the last place computed, for the prefix cache; None without the head
        points: places of the prompt where a snapshot is to be taken, last one first
        slot, pages: where its states lie while it runs
        cached: prompt tokens that were found in the prefix cache when it first ran; None before
        reason: why the answer has ended; None while it goes on
        alone: a batch with it has failed; it runs by itself
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, matcher: Matcher | None) -> None:
        self.request, self.matcher = request, matcher
        self.sampler = Sampler(request.sampling, request.prompt)
        self.tokens = list(request.prompt)
        self.limit = len(request.prompt) + request.sampling.max_tokens
        self.cached: int | None = None
        self.drafted = self.accepted = 0
        self.alone = False
        self.reason: FinishReason | None = None
        self._eot = tokenizer.eot_id
        self._text_out = TextOut(tokenizer, request.sampling.stop)
        self._ids: list[int] = []
        self._text = ""
        self._logprobs: list[TokenLogprobs] = []
        self.slot: int | None = None
        self.pages: list[int] = []
        self.points: list[int] = []
        self.forget()

    def forget(self) -> None:
        """Back to before its first token was computed; what was said stays said."""
        self.computed = self.kept = self.head = 0
        self.decoding = False
        self.drafts: list[int] = []
        self.unseen: list[Tensor] = []
        self.last: Tensor | None = None

    @property
    def constrained(self) -> bool:
        """Whether `constrain` changes anything."""
        return self.matcher is not None or self.sampler.adjusts

    @property
    def ready(self) -> bool:
        """Whether its next token can be chosen as soon as its logits are there."""
        return self.matcher is None or self.matcher.ready

    @property
    def slow(self) -> bool:
        """Whether its grammar takes long, so that it is not to hold up a step."""
        return self.matcher is not None and not self.matcher.quick

    def close(self) -> None:
        """It is over: free what it holds outside of the scheduler's memory."""
        if self.matcher is not None:
            self.matcher.close()

    def constrain(self, logits: Tensor) -> None:
        """Change the next token's logits [V], in place, as the request wants them."""
        if self.sampler.adjusts:
            self.sampler.adjust(logits)
        if self.matcher is not None:
            logits.masked_fill_(~self.matcher.allowed(), float("-inf"))

    def take(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Go on by a token of the answer; sets `reason` if the answer ends with it."""
        self.reason = self._take(token, logprobs)

    def _take(self, token: int, logprobs: TokenLogprobs | None) -> FinishReason | None:
        sampling = self.request.sampling
        self.tokens.append(token)
        self.sampler.count(token)
        if self.matcher is not None:
            self.matcher.consume(token)
        ends = token == self._eot and (self.matcher is not None or not sampling.ignore_eos)
        if ends or token in sampling.stop_token_ids:
            return "stop"
        self._ids.append(token)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self._text += self._text_out.push(token)
        if self._text_out.stopped or (self.matcher is not None and self.matcher.ended):
            return "stop"
        return "length" if len(self.tokens) == self.limit else None

    def delta(
        self, reason: FinishReason | None = None, error: str | None = None, cause: ErrorCause | None = None
    ) -> Delta | None:
        """What was added since the last one; None if nothing was and it goes on."""
        text = self._text + (self._text_out.finish() if reason is not None else "")
        ids, entries = tuple(self._ids), tuple(self._logprobs)
        self._ids, self._text, self._logprobs = [], "", []
        if reason is None and not ids and not text:
            return None
        wanted = self.request.sampling.logprobs is not None
        usage = self._usage() if reason is not None else None
        return Delta(self.request.id, ids, text, entries if wanted else None, reason, usage, error, cause)

    def _usage(self) -> Usage:
        prompt = len(self.request.prompt)
        return Usage(prompt, len(self.tokens) - prompt, self.cached or 0, self.drafted, self.accepted)
