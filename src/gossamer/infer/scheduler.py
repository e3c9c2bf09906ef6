"""Who runs: slots and pages are given to requests in the order they came, and taken back when memory runs short."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from gossamer.infer.options import EngineOptions
from gossamer.infer.pages import Pages
from gossamer.infer.prefix_cache import Entry, PrefixCache
from gossamer.infer.sequence import Sequence
from gossamer.model.decoder import Decoder


@dataclass
class Plan:
    """What a step computes.

    Attributes:
        prefill: sequences with the number of prompt tokens that are next
        decode: sequences whose newest token is next, with its drafts
    """

    prefill: list[tuple[Sequence, int]] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Keeps the queue, the running sequences, and who holds which slot and pages.

    Args:
        decoder: whose states they are
        options: the engine's
        total_pages: of its memory
        drafting: whether the multi-token-prediction head is used
    """

    def __init__(self, decoder: Decoder, options: EngineOptions, total_pages: int, drafting: bool) -> None:
        self._decoder, self._pool, self._options, self._drafting = decoder, decoder.pool, options, drafting
        self.pages = Pages(total_pages)
        self.cache = PrefixCache(self.pages, options.prefix_cache_bytes)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self._slots = list(range(options.max_batch - 1, -1, -1))
        self.preemptions = self.queries = self.hits = self.hit_tokens = 0

    def plan(self) -> Plan:
        """Admit who fits, find room for those who decode, and share out the step's prompt tokens."""
        self._admit()
        plan = Plan()
        for sequence in list(self.running):
            if sequence.slow:
                sequence.drafts = []  # each would wait for the grammar
            if sequence.decoding and sequence.slot is not None and sequence.ready and self._make_room(sequence):
                plan.decode.append(sequence)
        plan.decode = [
            sequence for sequence in plan.decode if sequence.slot is not None
        ]  # not preempted by a later one
        budget = self._options.prefill_chunk
        for sequence in self.running:
            if not sequence.decoding and budget:
                size = self._chunk(sequence, budget)
                plan.prefill.append((sequence, size))
                budget -= size
        return plan

    def try_grow(self, sequence: Sequence, tokens: int) -> bool:
        """Give a sequence pages for so many tokens if they are free."""
        missing = self._count(tokens) - len(sequence.pages)
        if missing > self.pages.free:
            return False
        if missing > 0:
            sequence.pages += self.pages.take(missing)
        return True

    def release(self, sequence: Sequence) -> None:
        """Take a sequence's slot and pages back."""
        if sequence.slot is None:
            return
        self.running.remove(sequence)
        self._slots.append(sequence.slot)
        self.pages.drop(sequence.pages)
        sequence.slot, sequence.pages = None, []

    def preempt(self, sequence: Sequence) -> None:
        """Take its memory back; it is the first to run again, and computed anew."""
        self.release(sequence)
        sequence.forget()
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def keep(self, sequence: Sequence) -> None:
        """Put what a sequence has computed into the prefix cache."""
        length = sequence.computed
        tokens = sequence.tokens[:length]
        if not length or not self.cache.capacity or sequence.slot is None or tokens in self.cache:
            return
        if sequence.kept:
            self._decoder.settle((sequence.slot,), (sequence.kept,))
            sequence.kept = 0
        hidden = torch.cat(sequence.unseen) if sequence.unseen else sequence.last
        pages = tuple(sequence.pages[: self._count(length)])
        head = min(sequence.head, length - 1)
        self.cache.add(tokens, Entry(length, pages, self._pool.snapshot(sequence.slot), head, hidden))

    def _count(self, tokens: int) -> int:
        """Pages for so many tokens."""
        return -(-tokens // self._options.page_size)

    def _admit(self) -> None:
        while self.waiting and self._slots:
            sequence = self.waiting[0]
            entry = self.cache.find(sequence.tokens)
            # A sequence that has all the memory to itself fits, if need be without what was found.
            if not (self._enter(sequence, entry) or (not self.running and self._enter(sequence, None))):
                return
            self.waiting.popleft()

    def _enter(self, sequence: Sequence, entry: Entry | None) -> bool:
        """Give a sequence a slot, and pages for its tokens and the next one; False if there are not enough."""
        shared: tuple[int, ...] = ()
        if entry is not None:
            # What the head has of later places is written anew, for this sequence's own next token.
            stays = entry.head if self._drafting else entry.length
            shared = entry.pages[: stays // self._options.page_size]
            self.pages.share(entry.pages)  # so that making room does not free them
        needed = self._count(len(sequence.tokens) + 1) - len(shared)
        spare = len(self.running)  # a page to grow for each of the others
        while self.pages.free < needed + spare and self.cache.evict():
            pass
        fits = self.pages.free >= needed + spare
        if fits:
            self._settle_in(sequence, entry, shared, needed)
        if entry is not None:
            self.pages.drop(entry.pages)
        return fits

    def _settle_in(self, sequence: Sequence, entry: Entry | None, shared: tuple[int, ...], needed: int) -> None:
        self.pages.share(shared)
        sequence.pages = [*shared, *self.pages.take(needed)]
        sequence.slot = self._slots.pop()
        self.running.append(sequence)
        if entry is None:
            self._pool.clear(sequence.slot)
        else:
            for number in range(len(shared), len(entry.pages)):
                self._pool.copy_page(entry.pages[number], sequence.pages[number])
            self._pool.restore(sequence.slot, entry.snapshot)
            sequence.computed = entry.length
            if self._drafting:
                sequence.head, sequence.unseen = entry.head, [] if entry.hidden is None else [entry.hidden]
        sequence.points = self._snapshot_points(sequence)
        if sequence.cached is None:
            sequence.cached = sequence.computed
            if self.cache.capacity:
                self.queries += 1
                self.hits += entry is not None
                self.hit_tokens += sequence.computed

    def _snapshot_points(self, sequence: Sequence) -> list[int]:
        """Places of the prompt, the last one first: at intervals, behind messages, and before its last few tokens."""
        if not self.cache.capacity:
            return []
        length, options = len(sequence.request.prompt), self._options
        points = {*range(options.snapshot_interval, length, options.snapshot_interval), *sequence.request.boundaries}
        points.add((length - 1) // options.page_size * options.page_size)
        return sorted((point for point in points if sequence.computed < point < length), reverse=True)

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        """Tokens of a sequence that are computed next: up to the next snapshot at most."""
        end = sequence.points[-1] if sequence.points else len(sequence.tokens)
        return min(budget, end - sequence.computed)

    def _make_room(self, sequence: Sequence) -> bool:
        """Pages for a decoding sequence's next tokens: free ones, then the cache's, then the youngest sequence's."""
        while not self.try_grow(sequence, len(sequence.tokens) + len(sequence.drafts)):
            if self.cache.evict():
                continue
            if sequence.drafts:
                sequence.drafts = []
                continue
            youngest = self.running[-1]
            self.preempt(youngest)
            if youngest is sequence:
                return False
        return True
