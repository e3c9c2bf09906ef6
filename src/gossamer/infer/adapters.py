"""Adapters beside one model: an engine for the model itself and one for each adapter, all on the same weights.

A step is one engine's, and those that have requests take turns. Each has pages and a prefix cache of its own: states
that were computed with one adapter are never another's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError, did_you_mean, shorten
from gossamer.hub.adapter import load_adapter
from gossamer.infer.engine import Engine
from gossamer.infer.grammar import Matcher
from gossamer.infer.options import EngineOptions, EngineStats
from gossamer.infer.request import Delta, Grammar, Request
from gossamer.model.causal_lm import CausalLM
from gossamer.model.low_rank import beside

__all__ = ["AdapterEngines", "with_adapters"]


def with_adapters(model: CausalLM, adapters: Mapping[str, Path]) -> dict[str, CausalLM]:
    """Return the network by the name "", and by each adapter's name one that shares its weights and has that adapter.

    Raises:
        UserError: an adapter cannot be read, or is for another network.
    """
    networks = {"": model}
    for name, folder in adapters.items():
        networks[name] = beside(model)
        load_adapter(networks[name], folder)
    return networks


class AdapterEngines:
    """Engines for several networks on the same weights, used as one engine is.

    Args:
        networks: by the name that a request's `adapter` has; "" is the model itself
        tokenizer: of them all
        options: of each engine
    """

    def __init__(self, networks: Mapping[str, CausalLM], tokenizer: Tokenizer, options: EngineOptions) -> None:
        base = Engine(networks[""], tokenizer, options)
        others = {name: Engine(one, tokenizer, options, base.int8) for name, one in networks.items() if name}
        self._engines = {"": base, **others}
        self._order = list(self._engines.values())  # whose turn is longest ago comes first
        self.max_length = base.max_length

    @property
    def has_work(self) -> bool:
        """Whether a request is queued or running."""
        return any(engine.has_work for engine in self._order)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Compile a grammar; see `Engine`."""
        return self._engines[""].matcher(grammar)

    def submit(self, request: Request, matcher: Matcher | None = None) -> None:
        """Queue a request.

        Raises:
            UserError: there is no such adapter, or the request could never be answered.
        """
        if request.adapter not in self._engines:
            hint = did_you_mean(request.adapter, self._engines)
            raise UserError(f"there is no adapter {shorten(repr(request.adapter))}{hint}")
        self._engines[request.adapter].submit(request, matcher)

    def abort(self, id: str) -> Delta | None:
        """End a request now; returns its last delta, or None if there is no such request."""
        return next((delta for engine in self._order if (delta := engine.abort(id)) is not None), None)

    def step(self) -> list[Delta]:
        """Take a step of the engine with requests that has waited longest for its turn."""
        engine = next((one for one in self._order if one.has_work), self._order[0])
        self._order.remove(engine)
        self._order.append(engine)
        return engine.step()

    def stats(self) -> EngineStats:
        """Return the sums of the engines' figures."""
        all_stats = [engine.stats() for engine in self._engines.values()]
        sums: dict[str, Any] = {
            field.name: sum(getattr(stats, field.name) for stats in all_stats)
            for field in fields(EngineStats)
            if field.name != "finished"
        }
        return EngineStats(**sums, finished=dict(sum((Counter(stats.finished) for stats in all_stats), Counter[str]())))
