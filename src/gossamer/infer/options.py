"""What a user may choose about the engine and about sampling, and what the engine tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gossamer.errors import FieldError
from gossamer.typed import PYTHON_ONLY, Range, Unit, check_fields, reject_unknown_fields

__all__ = ["EngineOptions", "EngineStats", "SamplingOptions", "Temperature", "TopP", "Weights"]

Temperature = Annotated[float, Range(0, 100)]
TopP = Annotated[float, Range(0, 1, excludes_minimum=True)]
Weights = Literal["stored", "int8"]


@reject_unknown_fields
@dataclass(frozen=True)
class EngineOptions:
    """The sizes and switches of an engine.

    Attributes:
        max_batch: maximum number of requests that decode at the same time; each takes a slot for its recurrent states
        cache_tokens: tokens whose keys and values fit into the pages, of all requests and the prefix cache together
            (default: what max_batch requests of 4,096 tokens need, or of the model's context if that is shorter)
        prefill_chunk: maximum number of prompt tokens in a step
        page_size: tokens in a page
        prefix_cache_bytes: memory for snapshots that spare a repeated prompt's computation; 0 turns them off
        snapshot_interval: tokens of a prompt between snapshots, a multiple of page_size
        draft_length: tokens that the multi-token-prediction head proposes in a step; auto: as many as pay, measured
            while it runs; 0 turns drafts off
        max_draft: maximum of draft_length when it is auto
        weights: int8 rounds the model's matrices and reads a quarter of the bytes in decoding, for answers that are not
            quite the stored model's (gossamer eval --weights int8 measures the loss); stored leaves them
    """

    max_batch: Annotated[int, Range(1, 1 << 16), Unit("requests")] = 16
    cache_tokens: Annotated[int, Range(1, 1 << 40), Unit("tokens")] | None = None
    prefill_chunk: Annotated[int, Range(1, 1 << 24), Unit("tokens"), PYTHON_ONLY] = 1024
    page_size: Annotated[int, Range(1, 1 << 20), Unit("tokens"), PYTHON_ONLY] = 64
    prefix_cache_bytes: Annotated[int, Range(0, 1 << 50), Unit("bytes")] = 256 << 20
    snapshot_interval: Annotated[int, Range(1, 1 << 40), Unit("tokens"), PYTHON_ONLY] = 1024
    draft_length: Annotated[int, Range(0, 64), Unit("tokens")] | Literal["auto"] = "auto"
    max_draft: Annotated[int, Range(1, 64), Unit("tokens"), PYTHON_ONLY] = 4
    weights: Weights = "stored"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.snapshot_interval % self.page_size:
            problem = f": {self.snapshot_interval} must be a multiple of the page size, {self.page_size}"
            raise FieldError("snapshot_interval", problem)
        if self.cache_tokens is not None and self.cache_tokens < self.page_size:
            raise FieldError("cache_tokens", f": {self.cache_tokens} must hold at least one page of {self.page_size}")


@reject_unknown_fields
@dataclass(frozen=True)
class SamplingOptions:
    """What someone who reads the text may choose about sampling; None leaves it to `infer/defaults.py`.

    Attributes:
        temperature: 0 always takes the likeliest token, 1 follows the model's probabilities (default: the
            checkpoint's, else 0.8)
        top_p: sample from the smallest set of likeliest tokens whose probabilities sum to this (default: the
            checkpoint's, else 0.95)
    """

    temperature: Temperature | None = None
    top_p: TopP | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class EngineStats:
    """The state of an engine at one moment; counters count from its beginning.

    Attributes:
        queued: requests that wait for a slot or for pages
        running: requests that have a slot and pages
        cache_tokens: tokens that the pages have room for
        cache_tokens_used: tokens in pages that belong to requests or to the prefix cache
        snapshots: snapshots of recurrent states in the prefix cache
        snapshot_bytes: memory of the snapshots
        prefix_queries: requests that looked for a prefix
        prefix_hits: requests that found one
        prefix_tokens: prompt tokens that were found
        prompt_tokens: prompt tokens that were computed, because they were not found
        completion_tokens: tokens of answers
        drafted: tokens that the multi-token-prediction head proposed
        accepted: proposed tokens that the model itself chose
        preemptions: times that a request had to give its memory back and be computed again
        steps: steps of the model
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
