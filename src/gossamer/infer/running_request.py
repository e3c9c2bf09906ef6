"""A request as the engine runs it: its tokens, what the model has computed of them, and what may be shown already."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gossamer.data.tokenizer import Tokenizer
from gossamer.infer.grammar import Matcher
from gossamer.infer.request import Delta, ErrorCause, FinishReason, Request, TokenLogprobs, Usage
from gossamer.infer.sampler import Sampler


class RunningRequest:
    """A request from its submission to its end, with the memory that it has while it runs.

    Attributes:
        id: name of the request, as its client gave it
        prompt: ids of the prompt's tokens
        sampling: how its tokens are chosen
        boundaries: positions of the prompt behind which the state is worth keeping
        tokens: prompt and answer
        max_length: the largest number of tokens, prompt and answer together
        matcher: the position in the grammar; None without one
        sampler: chooses tokens from logits
        num_computed: tokens that the states hold
        num_to_replay: tokens of the last step that are accepted, which the next step takes into the states
        is_decoding: whether the prompt is computed; then each step has one token and its drafts
        drafts: tokens that the multi-token-prediction head expects behind `tokens`
        num_mtp_computed: positions whose keys and values the multi-token-prediction head has
        pending_hidden: final hidden states of the positions that the head has yet to see, in parts [n, hidden] that are
            joined when the head runs; empty without the head
        last_hidden: [1, hidden] of the last computed position, for the prefix cache; None without the head
        snapshot_points: positions of the prompt where a snapshot is to be taken, last one first
        slot: where its recurrent states lie while it runs; None otherwise
        pages: where its keys and values lie while it runs
        num_cached: prompt tokens that were found in the prefix cache when it first ran; None before that
        num_drafted: tokens that the head has proposed
        num_accepted: proposed tokens that were accepted
        finish_reason: why the answer has ended; None while it goes on
        runs_alone: whether a batch with it has failed, so that it runs by itself
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, matcher: Matcher | None) -> None:
        self.id, self.prompt, self.sampling = request.id, request.prompt, request.sampling
        self.boundaries, self.matcher = request.boundaries, matcher
        self.sampler = Sampler(request.sampling, request.prompt)
        self.tokens = list(request.prompt)
        self.max_length = len(request.prompt) + request.sampling.max_tokens
        self.num_cached: int | None = None
        self.num_drafted = self.num_accepted = 0
        self.runs_alone = False
        self.finish_reason: FinishReason | None = None
        self.slot: int | None = None
        self.pages: list[int] = []
        self.snapshot_points: list[int] = []
        self._eot = tokenizer.eot_id
        self._stop_filter = StopStringFilter(tokenizer, request.sampling.stop)
        self._new_ids: list[int] = []
        self._new_text = ""
        self._new_logprobs: list[TokenLogprobs] = []
        self.reset()

    def reset(self) -> None:
        """Go back to before the first token was computed; tokens and text stay."""
        self.num_computed = self.num_to_replay = self.num_mtp_computed = 0
        self.is_decoding = False
        self.drafts: list[int] = []
        self.pending_hidden: list[Tensor] = []
        self.last_hidden: Tensor | None = None

    @property
    def is_constrained(self) -> bool:
        """Whether `constrain` changes anything."""
        return self.matcher is not None or self.sampler.has_adjustments

    @property
    def is_ready(self) -> bool:
        """Whether the next token can be chosen as soon as its logits are there."""
        return self.matcher is None or self.matcher.is_ready

    @property
    def has_slow_grammar(self) -> bool:
        """Whether the grammar takes long, so that no step is to wait for it."""
        return self.matcher is not None and not self.matcher.is_quick

    def close(self) -> None:
        """Free what the request holds outside of the scheduler's memory."""
        if self.matcher is not None:
            self.matcher.close()

    def constrain(self, logits: Tensor) -> None:
        """Change the next token's logits [V], in place, by penalties, biases and the grammar."""
        if self.sampler.has_adjustments:
            self.sampler.adjust(logits)
        if self.matcher is not None:
            logits.masked_fill_(~self.matcher.allowed(), float("-inf"))

    def append(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Append a token to the answer; sets `finish_reason` if the answer ends with it."""
        self.finish_reason = self._append(token, logprobs)

    def _append(self, token: int, logprobs: TokenLogprobs | None) -> FinishReason | None:
        self.tokens.append(token)
        self.sampler.count(token)
        if self.matcher is not None:
            self.matcher.consume(token)
        ends_text = token == self._eot and (self.matcher is not None or not self.sampling.ignore_eos)
        if ends_text or token in self.sampling.stop_token_ids:
            return "stop"
        self._new_ids.append(token)
        if logprobs is not None:
            self._new_logprobs.append(logprobs)
        self._new_text += self._stop_filter.push(token)
        if self._stop_filter.has_stopped or (self.matcher is not None and self.matcher.has_ended):
            return "stop"
        return "length" if len(self.tokens) == self.max_length else None

    def delta(
        self, reason: FinishReason | None = None, error: str | None = None, cause: ErrorCause | None = None
    ) -> Delta | None:
        """Return what was added since the last delta; None if nothing was and the answer goes on.

        Args:
            reason: why the answer ends; None while it goes on
            error: what went wrong, in one line
            cause: what the error is about, see `Delta`
        """
        text = self._new_text + (self._stop_filter.finish() if reason is not None else "")
        ids, logprobs = tuple(self._new_ids), tuple(self._new_logprobs)
        self._new_ids, self._new_text, self._new_logprobs = [], "", []
        if reason is None and not ids and not text:
            return None
        has_logprobs = self.sampling.logprobs is not None
        usage = self._usage() if reason is not None else None
        return Delta(self.id, ids, text, logprobs if has_logprobs else None, reason, usage, error, cause)

    def _usage(self) -> Usage:
        prompt = len(self.prompt)
        return Usage(prompt, len(self.tokens) - prompt, self.num_cached or 0, self.num_drafted, self.num_accepted)


class StopStringFilter:
    """The text of one answer: it shows whole characters, and nothing that may yet become a stop string.

    Args:
        tokenizer: what the tokens belong to
        stop: strings before which the text ends

    Attributes:
        has_stopped: whether a stop string is complete
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._stream = tokenizer.stream()
        self._stop = tuple(stop)
        self._withheld = ""
        self.has_stopped = False

    def push(self, token: int) -> str:
        """Add a token and give the text that it makes certain; what lies before a stop string if one is complete."""
        return self._release(self._stream.push(token))

    def finish(self) -> str:
        """Return what was withheld, at the end of the text: no stop string came of it."""
        if self.has_stopped:
            return ""
        text = self._release(self._stream.finish())
        rest, self._withheld = ("" if self.has_stopped else self._withheld), ""
        return text + rest

    def _release(self, new: str) -> str:
        text = self._withheld + new
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.has_stopped, self._withheld = True, ""
            return text[: min(found)]
        withheld = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._withheld = text[len(text) - withheld :]
        return text[: len(text) - withheld]


def _overlap(text: str, stop: str) -> int:
    """Count the characters at the end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
