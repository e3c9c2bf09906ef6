"""The engine's settings, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gossamer.errors import UserError, names_meant
from gossamer.typed import Range, check_fields


@names_meant
@dataclass(frozen=True)
class EngineOptions:
    """Attributes:
    max_batch: requests that decode at the same time; each takes a slot for its recurrent states
    cache_tokens: tokens whose keys and values fit into the pages, of all requests and the prefix cache together; None:
        as many as `max_batch` requests of 4,096 tokens (or of the model's longest text, if that is shorter) need
    prefill_chunk: prompt tokens of a step at most
    page_size: tokens a page
    prefix_cache_bytes: for snapshots of recurrent states; 0: no prefix reuse
    snapshot_interval: tokens of a prompt between snapshots, a multiple of page_size
    draft_length: tokens that the multi-token-prediction head proposes a step; "auto": as many as pay, measured while
        it runs; 0: none, also where the model has no such head
    max_draft: of "auto" at most
    weights: "int8" rounds the model's matrices, in place, and reads them as int8 where a few tokens pass through them:
        less to read on a CPU, for answers that are not quite the stored model's; "stored" leaves them
    """

    max_batch: Annotated[int, Range(1, 1 << 16)] = 16
    cache_tokens: Annotated[int, Range(1, 1 << 40)] | None = None
    prefill_chunk: Annotated[int, Range(1, 1 << 24)] = 1024
    page_size: Annotated[int, Range(1, 1 << 20)] = 64
    prefix_cache_bytes: Annotated[int, Range(0, 1 << 50)] = 256 << 20
    snapshot_interval: Annotated[int, Range(1, 1 << 40)] = 1024
    draft_length: Annotated[int, Range(0, 64)] | Literal["auto"] = "auto"
    max_draft: Annotated[int, Range(1, 64)] = 4
    weights: Literal["stored", "int8"] = "stored"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.snapshot_interval % self.page_size:
            raise UserError(
                f"snapshot_interval: {self.snapshot_interval} must be a multiple of the page size, {self.page_size}"
            )
        if self.cache_tokens is not None and self.cache_tokens < self.page_size:
            raise UserError(f"cache_tokens: {self.cache_tokens} must hold at least one page of {self.page_size}")


@dataclass(frozen=True)
class EngineStats:
    """A look at an engine. Counters count from its beginning.

    Attributes:
        queued: requests that wait for a slot or for pages
        running: requests that have them
        cache_tokens: that the pages hold room for
        cache_tokens_used: of those, taken by requests or by the prefix cache
        snapshots: of recurrent states, in the prefix cache
        snapshot_bytes: their memory
        prefix_queries: requests that looked for a prefix
        prefix_hits: that found one
        prefix_tokens: prompt tokens that were found
        prompt_tokens: prompt tokens that were computed (not found)
        completion_tokens: tokens made
        drafted: tokens proposed by the multi-token-prediction head
        accepted: of those, chosen by the model itself
        preemptions: times that a request had to give its memory back and be computed again
        steps: model steps
        finished: requests by finish reason
    """

    queued: int
    running: int
    cache_tokens: int
    cache_tokens_used: int
    snapshots: int
    snapshot_bytes: int
    prefix_queries: int
    prefix_hits: int
    prefix_tokens: int
    prompt_tokens: int
    completion_tokens: int
    drafted: int
    accepted: int
    preemptions: int
    steps: int
    finished: dict[str, int]
