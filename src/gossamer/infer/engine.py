"""The engine: requests of any lengths decoded together, one model step at a time."""

from __future__ import annotations

from gossamer.data.tokenizer import Tokenizer
from gossamer.infer.options import EngineOptions, EngineStats
from gossamer.infer.request import Delta, Request
from gossamer.model.causal_lm import CausalLM

__all__ = ["Engine", "EngineOptions", "EngineStats"]


class Engine:
    """Decodes requests together; the caller owns the loop: `while engine.has_work: for delta in engine.step(): …`.

    Not thread-safe: all calls come from one thread.

    Args:
        model: in evaluation mode, on its device; not to be changed while the engine lives
        tokenizer: its end-of-text token ends a text
        options: sizes and switches
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, options: EngineOptions | None = None) -> None:
        raise NotImplementedError

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            UserError: it could never be answered: an empty prompt, a token that the model does not have, more tokens
                than the model or the cache holds, a grammar that cannot be read, an id that is under way.
        """
        raise NotImplementedError

    def abort(self, id: str) -> Delta | None:
        """End a request now and free what it holds; its last delta, with what it took. None if it is not under way."""
        raise NotImplementedError

    def step(self) -> list[Delta]:
        """One step of the model for all requests that have their turn, and what it adds to each.

        A request that fails gets a delta with the reason "error"; the others go on.
        """
        raise NotImplementedError

    @property
    def has_work(self) -> bool:
        """Whether a request is queued or running."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """Queue, memory, hits and counts at this moment."""
        raise NotImplementedError
