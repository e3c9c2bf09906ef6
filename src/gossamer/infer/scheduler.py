"""The scheduler: who has slots and pages, in the order of arrival, and who gives them back when memory is short."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from gossamer.infer.options import EngineOptions
from gossamer.infer.prefix_cache import Entry, PageAllocator, PrefixCache
from gossamer.infer.running_request import RunningRequest
from gossamer.model.decode.decoder import Decoder


@dataclass
class StepPlan:
    """What a step of the engine computes.

    Attributes:
        prefill: requests with the number of prompt tokens that are next
        decode: requests whose newest token is next, with its drafts
    """

    prefill: list[tuple[RunningRequest, int]] = field(default_factory=list)
    decode: list[RunningRequest] = field(default_factory=list)


class Scheduler:
    """The queue, the running requests, and the slots and pages that each of them holds.

    Args:
        decoder: the decoder whose memory is given out
        options: the options of the engine
        total_pages: pages of the decoder's memory
        uses_drafts: whether the multi-token-prediction head is used

    Attributes:
        pages: who holds which page
        cache: beginnings of texts whose states are kept
        waiting: requests without memory, the next one first
        running: requests with a slot, the oldest first
        num_preemptions: how often a request had to give its memory back
        prefix_queries: requests that were looked up in the prefix cache
        prefix_hits: requests of which it had a beginning
        prefix_hit_tokens: tokens of these beginnings
    """

    def __init__(self, decoder: Decoder, options: EngineOptions, total_pages: int, uses_drafts: bool) -> None:
        self._decoder, self._pool, self._options, self._uses_drafts = decoder, decoder.pool, options, uses_drafts
        self.pages = PageAllocator(total_pages)
        self.cache = PrefixCache(self.pages, options.prefix_cache_bytes)
        self.waiting: deque[RunningRequest] = deque()
        self.running: list[RunningRequest] = []
        self._free_slots = list(range(options.max_batch - 1, -1, -1))
        self.num_preemptions = self.prefix_queries = self.prefix_hits = self.prefix_hit_tokens = 0

    def plan(self) -> StepPlan:
        """Admit requests that fit, find room for those that decode, and share out the step's prompt tokens."""
        self._admit()
        plan = StepPlan()
        for request in list(self.running):
            if request.has_slow_grammar:
                request.drafts = []  # each would wait for the grammar
            if request.is_decoding and request.slot is not None and request.is_ready and self._make_room(request):
                plan.decode.append(request)
        # A request may have been preempted in favor of an older one that came later in the list.
        plan.decode = [request for request in plan.decode if request.slot is not None]
        budget = self._options.prefill_chunk
        for request in self.running:
            if not request.is_decoding and budget:
                size = self._chunk(request, budget)
                plan.prefill.append((request, size))
                budget -= size
        return plan

    def try_grow(self, request: RunningRequest, tokens: int) -> bool:
        """Add pages to a request until it has room for so many tokens; False if too few are free."""
        missing = self._num_pages(tokens) - len(request.pages)
        if missing > self.pages.num_free:
            return False
        if missing > 0:
            request.pages += self.pages.allocate(missing)
        return True

    def release(self, request: RunningRequest) -> None:
        """Take a request's slot and pages back."""
        if request.slot is None:
            return
        self.running.remove(request)
        self._free_slots.append(request.slot)
        self.pages.release(request.pages)
        request.slot, request.pages = None, []

    def preempt(self, request: RunningRequest) -> None:
        """Take a request's memory back; it is the first to run again, and is computed anew."""
        self.release(request)
        request.reset()
        self.waiting.appendleft(request)
        self.num_preemptions += 1

    def cache_prefix(self, request: RunningRequest) -> None:
        """Put what is computed of a request into the prefix cache."""
        length = request.num_computed
        tokens = request.tokens[:length]
        if not length or not self.cache.capacity or request.slot is None or tokens in self.cache:
            return
        if request.num_to_replay:
            self._decoder.replay((request.slot,), (request.num_to_replay,))
            request.num_to_replay = 0
        hidden = torch.cat(request.pending_hidden) if request.pending_hidden else request.last_hidden
        pages = tuple(request.pages[: self._num_pages(length)])
        num_mtp_computed = min(request.num_mtp_computed, length - 1)
        snapshot = self._pool.snapshot(request.slot)
        self.cache.add(tokens, Entry(length, pages, snapshot, num_mtp_computed, hidden))

    def _num_pages(self, tokens: int) -> int:
        return -(-tokens // self._options.page_size)

    def _admit(self) -> None:
        while self.waiting and self._free_slots:
            request = self.waiting[0]
            entry = self.cache.find(request.tokens)
            # A request that has all the memory to itself fits, if need be without what was found.
            if not (self._try_start(request, entry) or (not self.running and self._try_start(request, None))):
                return
            self.waiting.popleft()

    def _try_start(self, request: RunningRequest, entry: Entry | None) -> bool:
        """Start a request with a slot and pages for its tokens and the next one; False if there are not enough."""
        shared: tuple[int, ...] = ()
        if entry is not None:
            # The MTP head's keys and values of later positions are computed anew, for this request's own next token.
            valid = entry.num_mtp_computed if self._uses_drafts else entry.length
            shared = entry.pages[: valid // self._options.page_size]
            self.pages.share(entry.pages)  # so that making room does not free them
        needed = self._num_pages(len(request.tokens) + 1) - len(shared)
        reserve = len(self.running)  # a page to grow for each of the others
        while self.pages.num_free < needed + reserve and self.cache.evict():
            pass
        fits = self.pages.num_free >= needed + reserve
        if fits:
            self._start(request, entry, shared, needed)
        if entry is not None:
            self.pages.release(entry.pages)
        return fits

    def _start(self, request: RunningRequest, entry: Entry | None, shared: tuple[int, ...], needed: int) -> None:
        """Start a request with a slot, the shared pages, `needed` more, and the states of the entry."""
        self.pages.share(shared)
        request.pages = [*shared, *self.pages.allocate(needed)]
        request.slot = self._free_slots.pop()
        self.running.append(request)
        if entry is None:
            self._pool.clear(request.slot)
        else:
            for number in range(len(shared), len(entry.pages)):
                self._pool.copy_page(entry.pages[number], request.pages[number])
            self._pool.restore(request.slot, entry.snapshot)
            request.num_computed = entry.length
            if self._uses_drafts:
                request.num_mtp_computed = entry.num_mtp_computed
                request.pending_hidden = [] if entry.hidden is None else [entry.hidden]
        request.snapshot_points = self._snapshot_points(request)
        if request.num_cached is None:
            request.num_cached = request.num_computed
            if self.cache.capacity:
                self.prefix_queries += 1
                self.prefix_hits += entry is not None
                self.prefix_hit_tokens += request.num_computed

    def _snapshot_points(self, request: RunningRequest) -> list[int]:
        """Choose positions of the prompt, last one first: at intervals, behind messages, before its last few tokens."""
        if not self.cache.capacity:
            return []
        length, options = len(request.prompt), self._options
        points = {*range(options.snapshot_interval, length, options.snapshot_interval), *request.boundaries}
        points.add((length - 1) // options.page_size * options.page_size)
        return sorted((point for point in points if request.num_computed < point < length), reverse=True)

    def _chunk(self, request: RunningRequest, budget: int) -> int:
        """Count the tokens of a prompt that are computed next: not beyond the next snapshot."""
        end = request.snapshot_points[-1] if request.snapshot_points else len(request.tokens)
        return min(budget, end - request.num_computed)

    def _make_room(self, request: RunningRequest) -> bool:
        """Find pages for a request's next tokens: free ones, then the cache's, then the youngest request's."""
        while not self.try_grow(request, len(request.tokens) + len(request.drafts)):
            if self.cache.evict():
                continue
            if request.drafts:
                request.drafts = []
                continue
            youngest = self.running[-1]
            self.preempt(youngest)
            if youngest is request:
                return False
        return True
