"""From the fields of a request to the engine's: prompts, sampling, limits."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.request import Grammar, Request, SamplingParams
from gossamer.serve.engine import EngineProcess
from gossamer.serve.errors import ApiError, invalid
from gossamer.serve.metrics import Metrics
from gossamer.serve.options import ServeOptions
from gossamer.serve.template import ChatTemplate, RenderedPrompt, TemplateRefusal
from gossamer.serve.wire.base import Sampling
from gossamer.serve.worker import ModelInfo

__all__ = ["CHAT_FIELDS", "Fields", "Service", "new_id"]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
log = logging.getLogger("gossamer.serve")
T = TypeVar("T")


def new_id(prefix: str) -> str:
    """An identifier of 24 characters that nobody guesses."""
    return f"{prefix}{secrets.token_hex(12)}"


@dataclass(frozen=True)
class Fields:
    """What a family of endpoints calls the fields that may ask for too much, for the error that says so."""

    prompt: str = "messages"
    max_tokens: str = "max_tokens"


CHAT_FIELDS = Fields()


@dataclass
class Service:
    """What every route works with.

    Attributes:
        folder: the Hugging Face directory that is served
        created: when the service started (seconds since 1970)
        defaults: sampling values of the checkpoint's generation_config.json
        ends: tokens that end an answer by the checkpoint's files, beside the tokenizer's end of text
    """

    options: ServeOptions
    tokenizer: Tokenizer
    template: ChatTemplate
    engine: EngineProcess
    metrics: Metrics
    folder: Path
    created: int
    defaults: dict[str, Any] = field(default_factory=dict)
    ends: tuple[int, ...] = ()

    @property
    def info(self) -> ModelInfo:
        """Of the model.

        Raises:
            ApiError: 503 while it is not loaded yet.
        """
        if self.engine.info is None:
            raise ApiError(503, "the model is being loaded", "loading", retry_after=5)
        return self.engine.info

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model: 404."""
        if name is not None and name != self.options.name:
            message = f"the model {name!r} is not served here; {self.options.name!r} is"
            raise ApiError(404, message, "model_not_found", "model")

    def log_prompt(self, requests: Sequence[Request]) -> None:
        """Write prompts to the log, where the user has asked for that."""
        if self.options.log_prompts:
            for prompt in {request.prompt for request in requests}:
                log.info("prompt %r", self.tokenizer.decode(prompt, special=True))

    def log_answers(self, texts: Sequence[str]) -> None:
        """Write answers to the log, where the user has asked for that."""
        if self.options.log_prompts:
            for text in texts:
                log.info("answer %r", text)

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        extra: Mapping[str, Any] | None = None,
        field: str = "messages",
    ) -> RenderedPrompt:
        """The prompt of a conversation. Long ones take a while, so it is done beside the event loop."""
        try:
            return await _aside(self.template.render, messages, tools, extra)
        except TemplateRefusal as error:
            raise invalid(f"the chat template does not take this: {error}", field, "template_error") from error

    async def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a plain text, after those that every text begins with, if there are such."""
        return (*self.tokenizer.prefix_ids, *await _aside(self.tokenizer.encode, text))

    def answers(
        self,
        wanted: Sampling,
        prompt: Sequence[int],
        max_tokens: int | None,
        count: int,
        logprobs: int | None = None,
        grammar: Grammar | None = None,
        stop: tuple[str, ...] = (),
        boundaries: tuple[int, ...] = (),
        fields: Fields = CHAT_FIELDS,
    ) -> list[Request]:
        """Requests to the engine for ``count`` answers to one prompt.

        Args:
            wanted: how to sample; what it leaves open follows the checkpoint, then OpenAI.
            max_tokens: of each answer; None: as many as fit.
            logprobs: alternatives to tell with each token; None: tell nothing.
            stop: texts that end the answer besides those wanted.
            fields: whose fault it is where something does not fit.

        Raises:
            ApiError: 400 for what does not fit the model or the limits.
        """
        info, longest = self.info, self.options.max_tokens
        if max_tokens is not None and max_tokens > longest:
            raise invalid(f"{fields.max_tokens} {max_tokens}: this service makes {longest} at most", fields.max_tokens)
        room = info.max_model_len - len(prompt)
        if room < (max_tokens or 1):
            raise invalid(
                f"the model's context is {info.max_model_len} tokens; the prompt has {len(prompt)} and "
                f"{max_tokens or 1} more were asked for; shorten {fields.prompt} or {fields.max_tokens}",
                fields.prompt,
                "context_length_exceeded",
            )
        self.check_ids(fields.prompt, prompt)
        self.check_ids("stop_token_ids", wanted.stop_token_ids or ())
        bias = {int(token): value for token, value in (wanted.logit_bias or {}).items()}
        self.check_ids("logit_bias", bias)
        stops = (wanted.stop,) if isinstance(wanted.stop, str) else tuple(wanted.stop or ())
        shared: dict[str, Any] = {
            "max_tokens": min(max_tokens or room, longest),
            "logit_bias": bias,
            "stop": stops + stop,
            "stop_token_ids": tuple(wanted.stop_token_ids or ()) + (() if wanted.ignore_eos else self.ends),
            "ignore_eos": bool(wanted.ignore_eos),
            "logprobs": logprobs,
            "grammar": grammar,
            "presence_penalty": wanted.presence_penalty or 0.0,
            "frequency_penalty": wanted.frequency_penalty or 0.0,
        }
        for name in _SAMPLING:
            given = getattr(wanted, name)
            if given is not None or name in self.defaults:
                shared[name] = given if given is not None else self.defaults[name]
        requests = []
        for index in range(count):
            seed = None if wanted.seed is None else (wanted.seed + index) % 2**63
            params = SamplingParams(**shared, seed=seed)
            requests.append(Request(new_id("r"), tuple(prompt), params, boundaries))
        return requests

    def check_ids(self, name: str, ids: Iterable[int]) -> None:
        """Refuse ids that are no tokens of the model: 400."""
        size = self.info.vocab_size
        if (wrong := next((token for token in ids if token >= size), None)) is not None:
            raise invalid(f"{name}: {wrong} is no token of this model, which has {size}", name)


async def _aside(function: Callable[..., T], *arguments: Any) -> T:
    """Run in a thread; what the tokenizer refuses is the client's mistake."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except UserError as error:
        raise invalid(str(error)) from error
