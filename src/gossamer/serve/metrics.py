"""The counters and times of the service, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gossamer.infer.request import Usage

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Everything that /metrics reports.

    Labels have few values: routes as they are declared, never what a client typed.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.http = Counter(
            "gossamer_http_requests", "Answered HTTP requests", ("method", "route", "status"), registry=registry
        )
        self.http_seconds = Histogram(
            "gossamer_http_request_seconds", "From a request's arrival to the last byte of its answer", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "gossamer_first_token_seconds", "From a request's admission to its first token",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.next_token = Histogram(
            "gossamer_next_token_seconds", "Between two tokens of one answer", buckets=_SECONDS, registry=registry
        )
        self._tokens = Counter(
            "gossamer_tokens", "Of prompts, of those from the prefix cache, made, drafted, accepted",
            ("kind",), registry=registry,
        )  # fmt: skip
        self._finished = Counter("gossamer_finished", "Answers by how they ended", ("reason",), registry=registry)
        self.restarts = Counter("gossamer_engine_restarts", "Deaths and failed steps of the engine", registry=registry)
        self._state = Gauge("gossamer_ready", "1 while requests are taken", registry=registry)
        self._active = Gauge("gossamer_active_requests", "Requests with the engine", registry=registry)
        self._engine = Gauge(
            "gossamer_engine", "The engine's own figures, by their names", ("name",), registry=registry
        )

    def finished(self, reason: str, usage: Usage) -> None:
        """Count an answer that has ended."""
        self._finished.labels(reason).inc()
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
            ("drafted", usage.drafted),
            ("accepted", usage.accepted),
        ):
            self._tokens.labels(kind).inc(count)

    def engine_stats(self, stats: Mapping[str, Any]) -> None:
        """Store the figures that the engine reports about itself; what is no number is ignored."""
        for name, value in stats.items():
            if isinstance(value, (int, float)):
                self._engine.labels(name).set(value)

    def page(self, ready: bool, active: int) -> bytes:
        """Return the answer to /metrics."""
        self._state.set(ready)
        self._active.set(active)
        return generate_latest(self._registry)
