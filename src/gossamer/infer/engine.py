"""The engine: requests of any lengths decoded together, one model step at a time."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from multiprocessing.connection import wait
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError, exception_line, shorten
from gossamer.infer.draft_length import DraftLength
from gossamer.infer.drafter import Drafter
from gossamer.infer.grammar import GrammarError, Grammars, Matcher
from gossamer.infer.options import EngineOptions, EngineStats
from gossamer.infer.request import Delta, ErrorCause, FinishReason, Grammar, Request
from gossamer.infer.running_request import RunningRequest
from gossamer.infer.sampler import logprobs, sample
from gossamer.infer.scheduler import Scheduler
from gossamer.model.causal_lm import CausalLM
from gossamer.model.decode.decoder import Decoder
from gossamer.model.decode.pool import StatePool
from gossamer.model.nonfinite import NOT_FINITE, explain_nonfinite
from gossamer.model.quantize import quantize_to_int8
from gossamer.ops.matrix import Int8Matrix
from gossamer.ops.sequences import Sequences

__all__ = ["Engine", "EngineOptions", "EngineStats"]

log = logging.getLogger("gossamer")
T = TypeVar("T")

_GRAMMAR_WAIT = 0.05  # seconds to wait for slow grammars where there is nothing else to do
_MAX_LINE = 300  # characters of an error
_MAX_EXPLAINED_TOKENS = 256  # of a text whose logits are not finite
_USUAL_TOKENS = 4096  # of a request, for the size of the cache where none is given


@dataclass(frozen=True)
class _Failure:
    """What went wrong with one request, in a line; and what it is about, if whoever sent the request can mend it."""

    message: str
    cause: ErrorCause | None = None


class _Answer(NamedTuple):
    """What a step adds to an answer: how many tokens, and why the answer ends, if it does."""

    num_tokens: int
    reason: FinishReason | None
    failure: _Failure | None


class Engine:
    """An engine that decodes requests together.

    The caller owns the loop: `while engine.has_work: for delta in engine.step(): …`.

    It is not thread-safe: all calls must come from one thread.

    Args:
        model: in evaluation mode, on its device; it must not be changed while the engine lives
        tokenizer: its end-of-text token ends a text
        options: sizes and switches
        int8: the rounded weights of the model, if they were rounded for another engine already

    Attributes:
        max_length: the largest number of tokens that a request's prompt and answer may have together
        int8: the rounded weights, if the options ask for them
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        options: EngineOptions | None = None,
        int8: Mapping[Tensor, Int8Matrix] | None = None,
    ) -> None:
        options = options or EngineOptions()
        self._model, self._tokenizer, self._options = model, tokenizer, options
        max_length, page_size = model.config.max_position_embeddings, options.page_size
        cache_tokens = options.cache_tokens or options.max_batch * min(max_length, _USUAL_TOKENS)
        total_pages = -(-cache_tokens // page_size)
        self.max_length = min(max_length, total_pages * page_size)
        uses_drafts = model.mtp is not None and options.draft_length != 0
        self._draft_length = DraftLength(options.draft_length if uses_drafts else 0, options.max_draft)
        max_step_tokens = self._draft_length.max_length + 1
        weight = model.lm_head.weight
        self._device = weight.device
        pool = StatePool(
            model.config,
            options.max_batch,
            total_pages,
            page_size,
            max_step_tokens,
            weight.device,
            devices.hidden_dtype(weight.device, weight.dtype),
        )
        self.int8 = quantize_to_int8(model) if int8 is None and options.weights == "int8" else int8
        self._decoder = Decoder(model, pool, self.int8)
        self._scheduler = Scheduler(self._decoder, options, total_pages, uses_drafts)
        self._drafter = Drafter(self._decoder, self._scheduler, options.prefill_chunk) if uses_drafts else None
        self._grammars = Grammars(tokenizer, model.config.vocab_size)
        self._unused_ids = torch.from_numpy(tokenizer.unused_ids(model.config.vocab_size))
        self._requests: dict[str, RunningRequest] = {}
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._deltas: list[Delta] = []
        self._nonfinite_weights: str | None = None  # which weights are not finite, once that was seen

    def matcher(self, grammar: Grammar) -> Matcher:
        """Compile a grammar ahead of `submit`: that may take seconds, and any thread may ask for it.

        Raises:
            UserError: the grammar cannot be read, or takes more time or memory than it may.
        """
        return self._grammars.matcher(grammar)

    def submit(self, request: Request, matcher: Matcher | None = None) -> None:
        """Queue a request.

        Args:
            request: what to continue, and how
            matcher: the request's grammar, if it is compiled already

        Raises:
            UserError: it could never be answered: the prompt is empty, a token lies outside the vocabulary, there are
                more tokens than the model or the cache holds, the grammar cannot be read, or the id is in use.
        """
        prompt, sampling, vocab = request.prompt, request.sampling, self._model.config.vocab_size
        if request.id in self._requests:
            raise UserError(f"request {request.id!r} is under way already; give another id")
        if not prompt:
            raise UserError("the prompt is empty; give at least one token")
        if len(prompt) + sampling.max_tokens > self.max_length:
            whose = "model's" if self.max_length == self._model.config.max_position_embeddings else "cache's"
            raise UserError(
                f"prompt and continuation of {len(prompt)} + {sampling.max_tokens} tokens exceed the {whose} "
                f"{self.max_length}"
            )
        for token in (*prompt, *sampling.logit_bias, *sampling.stop_token_ids):
            if not 0 <= token < vocab:
                raise UserError(f"token id {token} is outside the vocabulary of {vocab}")
        for boundary in request.boundaries:
            if not 0 <= boundary <= len(prompt):
                raise UserError(f"boundary {boundary} lies outside the prompt of {len(prompt)} tokens")
        if matcher is None and sampling.grammar is not None:
            matcher = self._grammars.matcher(sampling.grammar)
        running = RunningRequest(request, self._tokenizer, matcher)
        self._requests[request.id] = running
        self._scheduler.waiting.append(running)

    def abort(self, id: str) -> Delta | None:
        """End a request now and free what it holds; returns its last delta, or None if there is no such request."""
        if (request := self._requests.get(id)) is None:
            return None
        self._finish(request, "abort")
        return self._deltas.pop()

    @property
    def has_work(self) -> bool:
        """Whether a request is queued or running."""
        return bool(self._requests)

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Take one step of the model for all requests that have their turn, and return what it adds to each.

        A request that fails gets a delta with the reason "error"; the others go on.
        """
        plan = self._scheduler.plan()
        if not plan.prefill and not plan.decode:
            self._wait_for_grammars()
        self._counts["steps"] += 1
        for chunks in _separate(plan.prefill, [request.runs_alone for request, _ in plan.prefill]):
            self._guard([request for request, _ in chunks], partial(self._prefill, chunks))
        for group in _separate(plan.decode, [request.runs_alone for request in plan.decode]):
            self._guard(group, partial(self._decode, group))
        if self._drafter is not None:
            self._propose()
        for request in self._scheduler.running:
            if (delta := request.delta()) is not None:
                self._deltas.append(delta)
        deltas, self._deltas = self._deltas, []
        return deltas

    def stats(self) -> EngineStats:
        """Return the engine's queue, memory and counters at this moment."""
        scheduler, counts = self._scheduler, self._counts
        return EngineStats(
            queued=len(scheduler.waiting),
            running=len(scheduler.running),
            cache_tokens=scheduler.pages.total * self._options.page_size,
            cache_tokens_used=(scheduler.pages.total - scheduler.pages.num_free) * self._options.page_size,
            snapshots=len(scheduler.cache),
            snapshot_bytes=scheduler.cache.nbytes,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            prefix_tokens=scheduler.prefix_hit_tokens,
            prompt_tokens=counts["prompt"],
            completion_tokens=counts["completion"],
            drafted=counts["drafted"],
            accepted=counts["accepted"],
            preemptions=scheduler.num_preemptions,
            steps=counts["steps"],
            finished=dict(self._finished),
        )

    def _wait_for_grammars(self) -> None:
        """Wait a moment where nothing can be computed before a grammar says what may come next."""
        matchers = [request.matcher for request in self._scheduler.running if request.matcher is not None]
        if pending := [matcher for matcher in matchers if not matcher.is_ready]:
            wait([matcher.fileno() for matcher in pending], _GRAMMAR_WAIT)

    def _prefill(self, chunks: list[tuple[RunningRequest, int]]) -> None:
        """Compute the next tokens of prompts, and the first token of the answer where a prompt is complete."""
        group, sizes = [request for request, _ in chunks], [size for _, size in chunks]
        tokens = [request.tokens[request.num_computed : request.num_computed + size] for request, size in chunks]
        hidden = self._forward(group, tokens, speculative=False)
        self._counts["prompt"] += sum(sizes)
        complete, last = [], []
        for (request, size), end in zip(chunks, accumulate(sizes), strict=True):
            request.num_computed += size
            if self._drafter is not None:
                request.pending_hidden.append(hidden[end - size : end])
            while request.snapshot_points and request.snapshot_points[-1] <= request.num_computed:
                request.snapshot_points.pop()
                self._scheduler.cache_prefix(request)
            if request.num_computed == len(request.tokens):
                request.is_decoding = True
                complete.append(request)
                last.append(end - 1)
        if complete:
            answers = self._answer(complete, hidden[last], [[]] * len(complete))
            for request, (_, reason, failure) in zip(complete, answers, strict=True):
                if reason is not None:
                    self._finish(request, reason, failure)

    def _decode(self, group: list[RunningRequest]) -> None:
        """Compute each request's newest token and its drafts: which drafts are accepted, and the token behind them."""
        start, drafts = time.perf_counter(), [request.drafts for request in group]
        hidden = self._forward(group, [[request.tokens[-1], *request.drafts] for request in group], speculative=True)
        parts = hidden.split([1 + len(drafted) for drafted in drafts]) if len(group) > 1 else (hidden,)
        answers = self._answer(group, hidden, drafts)
        for request, states, drafted, (count, reason, failure) in zip(group, parts, drafts, answers, strict=True):
            request.num_computed, request.num_to_replay, request.drafts = request.num_computed + count, count, []
            if drafted:
                request.num_drafted += len(drafted)
                request.num_accepted += count - 1
                self._counts["drafted"] += len(drafted)
                self._counts["accepted"] += count - 1
                self._draft_length.record_acceptance(len(drafted), count - 1)
            if self._drafter is not None:
                request.pending_hidden.append(states if count == len(states) else states[:count])
            if reason is not None:
                self._finish(request, reason, failure)
        if len({len(drafted) for drafted in drafts}) == 1:
            seconds = time.perf_counter() - start
            self._draft_length.record_seconds(len(group), len(drafts[0]), verify=seconds)

    def _propose(self) -> None:
        """Draft tokens for the next step. If that fails there are no drafts from now on: no answer needs them."""
        assert self._drafter is not None
        start, running = time.perf_counter(), self._scheduler.running
        decoding = [request for request in running if request.is_decoding]
        length = self._draft_length.length(len(decoding)) if decoding else 0
        is_typical = length and all(
            request.num_computed - request.num_mtp_computed <= length + 1 for request in decoding
        )
        try:
            self._drafter.propose(length)
        except Exception:
            log.exception("drafts failed; no more are made")
            self._drafter = None
            for request in running:
                request.drafts, request.pending_hidden = [], []
            return
        if is_typical and all(len(request.drafts) == length for request in decoding):
            self._draft_length.record_seconds(len(decoding), length, draft=time.perf_counter() - start)

    def _forward(self, group: list[RunningRequest], tokens: list[list[int]], speculative: bool) -> Tensor:
        """Compute the final hidden states of these tokens, packed, [T, hidden]."""
        sequences = Sequences(
            slots=tuple(request.slot for request in group if request.slot is not None),
            accepted=tuple(request.num_to_replay for request in group),
            past=tuple(request.num_computed for request in group),
            lengths=tuple(len(ids) for ids in tokens),
            page_tables=tuple(tuple(request.pages) for request in group),
            page_size=self._options.page_size,
        )
        packed = torch.tensor([token for ids in tokens for token in ids], device=self._device)
        return self._decoder.forward(packed, sequences, speculative)

    def _answer(self, group: list[RunningRequest], hidden: Tensor, drafts: list[list[int]]) -> list[_Answer]:
        """Choose the next tokens of each request: its accepted drafts and one more.

        Args:
            group: N requests
            hidden: [Σ (1 + drafts), hidden], packed
            drafts: the drafts of each request
        """
        logits = self._decoder.logits(hidden).float().cpu()
        if len(self._unused_ids):  # rows that pad the embedding were never trained, and stand for no text
            logits.index_fill_(1, self._unused_ids, float("-inf"))
        # Tokens are sampled as if all drafts were right; those behind a wrong draft are not used. Where a choice
        # depends on the tokens before it, it is made when they are appended.
        samplers, positions = [], []
        for request, drafted in zip(group, drafts, strict=True):
            for position in range(len(request.tokens), len(request.tokens) + 1 + len(drafted)):
                samplers.append(request.sampler)
                positions.append(position)
        sampled = sample(logits, samplers, positions)
        answers, row = [], 0
        for request, drafted in zip(group, drafts, strict=True):
            end = row + 1 + len(drafted)
            answers.append(self._accept(request, drafted, sampled[row:end], logits[row:end]))
            row = end
        return answers

    def _accept(self, request: RunningRequest, drafts: list[int], sampled: list[int], logits: Tensor) -> _Answer:
        """Append the drafts that are accepted, and one more token.

        A draft is accepted if it is the token that the model itself samples in that place.

        Args:
            request: the request whose answer grows
            drafts: what was proposed
            sampled: the token that the model samples in the place of each draft, and the one behind them
            logits: [1 + drafts, V], which the tokens are sampled from
        """
        for count, draft in enumerate([*drafts, None], 1):
            token, failure = self._append(request, sampled[count - 1], logits[count - 1])
            reason = request.finish_reason if failure is None else "error"
            if reason is not None or token != draft:
                break
        return _Answer(count, reason, failure)

    def _append(self, request: RunningRequest, token: int, logits: Tensor) -> tuple[int, _Failure | None]:
        """Append the next token to a request's answer.

        Args:
            request: the request whose answer grows
            token: sampled from the logits as they are
            logits: [V], which are changed if the request is constrained

        Returns:
            The token, and what went wrong.
        """
        measure = None
        if token < 0 and not bool(logits.amax().isfinite()):
            return token, _Failure(self._explain(request), "logits")
        if (alternatives := request.sampling.logprobs) is not None:
            unchanged = logits.clone() if request.is_constrained else logits
            measure = partial(logprobs, unchanged, alternatives=alternatives)
        if request.is_constrained:
            if (failure := _try(partial(request.constrain, logits))) is not None:
                return token, failure
            token = sample(logits[None], [request.sampler], [len(request.tokens)])[0]
        if token < 0:
            return token, _Failure("what the request forbids leaves no token that may come next", "grammar")
        failure = _try(partial(request.append, token, measure(token=token) if measure else None))
        self._counts["completion"] += 1
        return token, failure

    def _explain(self, request: RunningRequest) -> str:
        """Explain why the model gives this request no logits.

        The cause is looked for in its first tokens alone, so that others wait little. Weights that are not finite
        concern every request, and are looked for once.
        """
        if self._nonfinite_weights is None:
            ids = torch.tensor(request.tokens[:_MAX_EXPLAINED_TOKENS], device=self._device)
            try:
                explanation = explain_nonfinite(self._model, ids)
            except Exception:
                log.exception("where the logits stop being finite cannot be found")
                return NOT_FINITE
            if not explanation.is_in_weights:
                return explanation.line
            self._nonfinite_weights = explanation.line
        return self._nonfinite_weights

    def _finish(self, request: RunningRequest, reason: FinishReason, failure: _Failure | None = None) -> None:
        """End a request: free what it holds and add its last delta."""
        if reason in ("stop", "length") and request.is_decoding:
            self._scheduler.cache_prefix(request)
        self._scheduler.release(request)
        if request in self._scheduler.waiting:
            self._scheduler.waiting.remove(request)
        del self._requests[request.id]
        self._finished[reason] += 1
        request.close()
        delta = request.delta(reason, failure.message if failure else None, failure.cause if failure else None)
        assert delta is not None
        self._deltas.append(delta)

    def _guard(self, group: list[RunningRequest], work: Callable[[], None]) -> None:
        """Do a batch's work. If it fails, its requests run one by one from then on, and one that fails alone ends."""
        try:
            work()
        except Exception as error:
            log.exception("a step of %d requests failed", len(group))
            remaining = [request for request in group if request.slot is not None]
            for request in reversed(remaining):
                if len(group) == 1:
                    self._finish(request, "error", _Failure(exception_line(error, _MAX_LINE)))
                else:
                    request.runs_alone = True
                    self._scheduler.preempt(request)


def _try(work: Callable[[], object]) -> _Failure | None:
    """Do what concerns one request alone, and return what went wrong."""
    try:
        work()
    except GrammarError as error:
        return _Failure(shorten(error, _MAX_LINE), "grammar")
    except Exception as error:
        log.exception("a request failed")
        return _Failure(exception_line(error, _MAX_LINE))
    return None


def _separate(items: list[T], runs_alone: list[bool]) -> list[list[T]]:
    """Group items: each that runs alone by itself, and all the others together."""
    together = [item for item, alone in zip(items, runs_alone, strict=True) if not alone]
    singles = [[item] for item, alone in zip(items, runs_alone, strict=True) if alone]
    return [*singles, together] if together else singles
