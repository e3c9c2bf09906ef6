"""The engine: requests of any lengths decoded together, one model step at a time."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from multiprocessing.connection import wait
from typing import TypeVar

import torch
from torch import Tensor

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.draft_length import DraftLength
from gossamer.infer.drafter import Drafter
from gossamer.infer.grammar import GrammarError, Grammars, Matcher
from gossamer.infer.options import EngineOptions, EngineStats
from gossamer.infer.request import Delta, ErrorCause, FinishReason, Grammar, Request
from gossamer.infer.sampler import choose, logprobs
from gossamer.infer.scheduler import Scheduler
from gossamer.infer.sequence import Sequence
from gossamer.model.causal_lm import CausalLM
from gossamer.model.decoder import Decoder
from gossamer.model.finite import SAID, why_not_finite
from gossamer.model.int8 import round_to_int8
from gossamer.model.pool import StatePool
from gossamer.ops.sequences import Sequences

__all__ = ["Engine", "EngineOptions", "EngineStats"]

log = logging.getLogger("gossamer")
T = TypeVar("T")


@dataclass(frozen=True)
class _Trouble:
    """What went wrong with one request, in a line, and where it came from if that is for who asked."""

    line: str
    cause: ErrorCause | None = None


Answer = tuple[int, FinishReason | None, _Trouble | None]  # tokens taken, why it ends, what went wrong

_WAIT = 0.05  # seconds, for grammars that are slow where nothing else is to do
_LOOKED_AT = 256  # tokens of a text whose logits are not finite
_USUAL_TOKENS = 4096  # of a request, for the size of the cache where none is given


class Engine:
    """Decodes requests together; the caller owns the loop: `while engine.has_work: for delta in engine.step(): …`.

    Not thread-safe: all calls come from one thread.

    Args:
        model: in evaluation mode, on its device; not to be changed while the engine lives
        tokenizer: its end-of-text token ends a text
        options: sizes and switches

    Attributes:
        longest: tokens that a request's prompt and answer may have together
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        self._model, self._tokenizer, self._options = model, tokenizer, options
        longest, page = model.config.max_position_embeddings, options.page_size
        cache_tokens = options.cache_tokens or options.max_batch * min(longest, _USUAL_TOKENS)
        total_pages = -(-cache_tokens // page)
        self.longest = min(longest, total_pages * page)
        drafting = model.mtp is not None and options.draft_length != 0
        self._lengths = DraftLength(options.draft_length if drafting else 0, options.max_draft)
        weight = model.lm_head.weight
        self._device = weight.device
        pool = StatePool(
            model.config, options.max_batch, total_pages, page, self._lengths.most + 1, weight.device, weight.dtype
        )
        self._decoder = Decoder(model, pool, round_to_int8(model) if options.weights == "int8" else None)
        self._scheduler = Scheduler(self._decoder, options, total_pages, drafting)
        self._drafter = Drafter(self._decoder, self._scheduler, options.prefill_chunk) if drafting else None
        self._grammars = Grammars(tokenizer, model.config.vocab_size)
        self._sequences: dict[str, Sequence] = {}
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._deltas: list[Delta] = []
        self._broken: str | None = None  # which weights are not finite, once it was seen

    def matcher(self, grammar: Grammar) -> Matcher:
        """What ``submit`` makes of a grammar, beforehand: that may take seconds, and any thread may ask for it.

        Raises:
            UserError: the grammar cannot be read, or takes more time or memory than it may.
        """
        return self._grammars.matcher(grammar)

    def submit(self, request: Request, matcher: Matcher | None = None) -> None:
        """Queue a request.

        Args:
            request: what to continue, and how.
            matcher: of the request's grammar, where it is made already.

        Raises:
            UserError: it could never be answered: an empty prompt, a token that the model does not have, more tokens
                than the model or the cache holds, a grammar that cannot be read, an id that is under way.
        """
        prompt, sampling, vocab = request.prompt, request.sampling, self._model.config.vocab_size
        if request.id in self._sequences:
            raise UserError(f"request {request.id!r} is under way already; give another id")
        if not prompt:
            raise UserError("the prompt is empty; give at least one token")
        if len(prompt) + sampling.max_tokens > self.longest:
            whose = "model's" if self.longest == self._model.config.max_position_embeddings else "cache's"
            raise UserError(
                f"prompt and continuation of {len(prompt)} + {sampling.max_tokens} tokens exceed the {whose} "
                f"{self.longest}"
            )
        for token in (*prompt, *sampling.logit_bias, *sampling.stop_token_ids):
            if not 0 <= token < vocab:
                raise UserError(f"token id {token} is outside the vocabulary of {vocab}")
        for boundary in request.boundaries:
            if not 0 <= boundary <= len(prompt):
                raise UserError(f"boundary {boundary} lies outside the prompt of {len(prompt)} tokens")
        if matcher is None and sampling.grammar is not None:
            matcher = self._grammars.matcher(sampling.grammar)
        sequence = Sequence(request, self._tokenizer, matcher)
        self._sequences[request.id] = sequence
        self._scheduler.waiting.append(sequence)

    def abort(self, id: str) -> Delta | None:
        """End a request now and free what it holds; its last delta, with what it took. None if it is not under way."""
        if (sequence := self._sequences.get(id)) is None:
            return None
        self._end(sequence, "abort")
        return self._deltas.pop()

    @property
    def has_work(self) -> bool:
        """Whether a request is queued or running."""
        return bool(self._sequences)

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One step of the model for all requests that have their turn, and what it adds to each.

        A request that fails gets a delta with the reason "error"; the others go on.
        """
        plan = self._scheduler.plan()
        if not plan.prefill and not plan.decode:
            self._wait()
        self._counts["steps"] += 1
        for chunks in _apart(plan.prefill, [sequence.alone for sequence, _ in plan.prefill]):
            self._guard([sequence for sequence, _ in chunks], partial(self._prefill, chunks))
        for group in _apart(plan.decode, [sequence.alone for sequence in plan.decode]):
            self._guard(group, partial(self._decode, group))
        if self._drafter is not None:
            self._propose()
        for sequence in self._scheduler.running:
            if (delta := sequence.delta()) is not None:
                self._deltas.append(delta)
        deltas, self._deltas = self._deltas, []
        return deltas

    def _wait(self) -> None:
        """Nothing can be computed before a grammar says what may come next."""
        matchers = [sequence.matcher for sequence in self._scheduler.running if sequence.matcher is not None]
        if slow := [matcher for matcher in matchers if not matcher.ready]:
            wait([matcher.fileno() for matcher in slow], _WAIT)

    def stats(self) -> EngineStats:
        """Queue, memory, hits and counts at this moment."""
        scheduler, counts = self._scheduler, self._counts
        return EngineStats(
            queued=len(scheduler.waiting),
            running=len(scheduler.running),
            cache_tokens=scheduler.pages.total * self._options.page_size,
            cache_tokens_used=(scheduler.pages.total - scheduler.pages.free) * self._options.page_size,
            snapshots=len(scheduler.cache),
            snapshot_bytes=scheduler.cache.nbytes,
            prefix_queries=scheduler.queries,
            prefix_hits=scheduler.hits,
            prefix_tokens=scheduler.hit_tokens,
            prompt_tokens=counts["prompt"],
            completion_tokens=counts["completion"],
            drafted=counts["drafted"],
            accepted=counts["accepted"],
            preemptions=scheduler.preemptions,
            steps=counts["steps"],
            finished=dict(self._finished),
        )

    def _prefill(self, chunks: list[tuple[Sequence, int]]) -> None:
        """The next tokens of prompts; of those that are complete the first token of the answer."""
        group, sizes = [sequence for sequence, _ in chunks], [size for _, size in chunks]
        ids = [sequence.tokens[sequence.computed : sequence.computed + size] for sequence, size in chunks]
        hidden = self._forward(group, ids, steps=False)
        self._counts["prompt"] += sum(sizes)
        ends = list(accumulate(sizes))
        complete, last = [], []
        for (sequence, size), end in zip(chunks, ends, strict=True):
            sequence.computed += size
            if self._drafter is not None:
                sequence.unseen.append(hidden[end - size : end])
            while sequence.points and sequence.points[-1] <= sequence.computed:
                sequence.points.pop()
                self._scheduler.keep(sequence)
            if sequence.computed == len(sequence.tokens):
                sequence.decoding = True
                complete.append(sequence)
                last.append(end - 1)
        if complete:
            answers = self._answer(complete, hidden[last], [[]] * len(complete))
            for sequence, (_, reason, error) in zip(complete, answers, strict=True):
                if reason is not None:
                    self._end(sequence, reason, error)

    def _decode(self, group: list[Sequence]) -> None:
        """Each sequence's newest token and its drafts: which of them count, and the token after those."""
        began, drafts = time.perf_counter(), [sequence.drafts for sequence in group]
        hidden = self._forward(group, [[sequence.tokens[-1], *sequence.drafts] for sequence in group], steps=True)
        pieces = hidden.split([1 + len(some) for some in drafts]) if len(group) > 1 else (hidden,)
        answers = self._answer(group, hidden, drafts)
        for sequence, states, some, (taken, reason, error) in zip(group, pieces, drafts, answers, strict=True):
            sequence.computed, sequence.kept, sequence.drafts = sequence.computed + taken, taken, []
            if some:
                sequence.drafted, sequence.accepted = sequence.drafted + len(some), sequence.accepted + taken - 1
                self._counts["drafted"] += len(some)
                self._counts["accepted"] += taken - 1
                self._lengths.judged(len(some), taken - 1)
            if self._drafter is not None:
                sequence.unseen.append(states if taken == len(states) else states[:taken])
            if reason is not None:
                self._end(sequence, reason, error)
        if len({len(some) for some in drafts}) == 1:
            self._lengths.took(len(group), len(drafts[0]), verify=time.perf_counter() - began)

    def _propose(self) -> None:
        """Drafts for the next step. If they cannot be made, none are from now on: nobody's answer needs them."""
        assert self._drafter is not None
        began, running = time.perf_counter(), self._scheduler.running
        ready = [sequence for sequence in running if sequence.decoding]
        length = self._lengths.length(len(ready)) if ready else 0
        usual = length and all(sequence.computed - sequence.head <= length + 1 for sequence in ready)
        try:
            self._drafter.propose(length)
        except Exception:
            log.exception("drafts failed; no more are made")
            self._drafter = None
            for sequence in running:
                sequence.drafts, sequence.unseen = [], []
            return
        if usual and all(len(sequence.drafts) == length for sequence in ready):
            self._lengths.took(len(ready), length, draft=time.perf_counter() - began)

    def _forward(self, group: list[Sequence], ids: list[list[int]], steps: bool) -> Tensor:
        """Final hidden states of all these tokens, packed, [T, hidden]."""
        sequences = Sequences(
            slots=tuple(sequence.slot for sequence in group if sequence.slot is not None),
            kept=tuple(sequence.kept for sequence in group),
            past=tuple(sequence.computed for sequence in group),
            lengths=tuple(len(tokens) for tokens in ids),
            tables=tuple(tuple(sequence.pages) for sequence in group),
            page_size=self._options.page_size,
        )
        packed = torch.tensor([token for tokens in ids for token in tokens], device=self._device)
        return self._decoder.take(packed, sequences, steps)

    def _answer(self, group: list[Sequence], hidden: Tensor, drafts: list[list[int]]) -> list[Answer]:
        """Take tokens, for each sequence as long as its drafts foresaw them.

        Args:
            group: N sequences
            hidden: [Σ (1 + drafts), hidden], packed
            drafts: of each sequence
        """
        logits = self._decoder.logits(hidden).float().cpu()
        # Chosen as if all drafts were right: those behind a wrong one are not looked at. Where a choice changes with
        # the tokens before it, it is made when they are taken.
        samplers, places = [], []
        for sequence, some in zip(group, drafts, strict=True):
            for place in range(len(sequence.tokens), len(sequence.tokens) + 1 + len(some)):
                samplers.append(sequence.sampler)
                places.append(place)
        chosen = choose(logits, samplers, places)
        answers, row = [], 0
        for sequence, some in zip(group, drafts, strict=True):
            taken = 0
            while True:
                token, reason, error = self._take(sequence, chosen[row + taken], logits[row + taken])
                taken += 1
                if reason is not None or taken > len(some) or some[taken - 1] != token:
                    break
            answers.append((taken, reason, error))
            row += 1 + len(some)
        return answers

    def _take(self, sequence: Sequence, token: int, logits: Tensor) -> Answer:
        """The next token of a sequence; why its answer ends, and what went wrong.

        Args:
            sequence: whose
            token: chosen from the logits as they are
            logits: [V], changed if the sequence is constrained
        """
        measure = None
        if token < 0 and not bool(logits.amax().isfinite()):
            return token, "error", _Trouble(self._why(sequence), "logits")
        if (wanted := sequence.request.sampling.logprobs) is not None:
            measure = partial(logprobs, logits.clone() if sequence.constrained else logits, alternatives=wanted)
        if sequence.constrained:
            if (error := _attempt(partial(sequence.constrain, logits))) is not None:
                return token, "error", error
            token = choose(logits[None], [sequence.sampler], [len(sequence.tokens)])[0]
        if token < 0:
            return token, "error", _Trouble("what the request forbids leaves no token that may come next", "grammar")
        error = _attempt(partial(sequence.take, token, measure(token=token) if measure else None))
        self._counts["completion"] += 1
        return token, "error" if error else sequence.reason, error

    def _why(self, sequence: Sequence) -> str:
        """Why the model gives this sequence no logits.

        It is looked for in its first tokens alone, so that others wait little; weights that are not finite are so for
        every request, and are looked for once.
        """
        if self._broken is None:
            ids = torch.tensor(sequence.tokens[:_LOOKED_AT], device=self._device)
            try:
                why = why_not_finite(self._model, ids)
            except Exception:
                log.exception("where the logits stop being finite cannot be found")
                why = SAID
            if "numbers of" not in why:
                return why
            self._broken = why
        return self._broken

    def _end(self, sequence: Sequence, reason: FinishReason, error: _Trouble | None = None) -> None:
        """Say a request's last word and free what it holds."""
        if reason in ("stop", "length") and sequence.decoding:
            self._scheduler.keep(sequence)
        self._scheduler.release(sequence)
        if sequence in self._scheduler.waiting:
            self._scheduler.waiting.remove(sequence)
        del self._sequences[sequence.request.id]
        self._finished[reason] += 1
        sequence.close()
        delta = sequence.delta(reason, error.line if error else None, error.cause if error else None)
        assert delta is not None
        self._deltas.append(delta)

    def _guard(self, group: list[Sequence], work: Callable[[], None]) -> None:
        """Do a batch's work. If it fails each of its sequences runs by itself from then on, and one that fails ends."""
        try:
            work()
        except Exception as error:
            log.exception("a step of %d requests failed", len(group))
            left = [sequence for sequence in group if sequence.slot is not None]
            for sequence in reversed(left):
                if len(group) == 1:
                    self._end(sequence, "error", _Trouble(_in_a_line(error)))
                else:
                    sequence.alone = True
                    self._scheduler.preempt(sequence)


def _attempt(work: Callable[[], object]) -> _Trouble | None:
    """Do what concerns one request alone; what went wrong."""
    try:
        work()
    except GrammarError as error:
        return _Trouble(_in_a_line(error).partition(": ")[2], "grammar")
    except Exception as error:
        log.exception("a request failed")
        return _Trouble(_in_a_line(error))
    return None


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _apart(items: list[T], alone: list[bool]) -> list[list[T]]:
    """Those that run by themselves, and all the others together."""
    together = [item for item, apart in zip(items, alone, strict=True) if not apart]
    singles = [[item] for item, apart in zip(items, alone, strict=True) if apart]
    return [*singles, together] if together else singles
