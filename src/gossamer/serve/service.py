"""What every route works with: from the fields of a request to prompts, sampling parameters and engine requests."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gossamer.data.chat.template import ChatTemplate, RenderedPrompt, TemplateRefusal
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.request import Grammar, Request, SamplingParams
from gossamer.serve.engine_process import EngineProcess
from gossamer.serve.engine_worker import ModelInfo
from gossamer.serve.errors import ApiError, invalid
from gossamer.serve.feedback import FeedbackFile
from gossamer.serve.metrics import Metrics
from gossamer.serve.options import ServeOptions
from gossamer.serve.wire.base import Sampling

__all__ = ["CHAT_FIELDS", "FieldNames", "Service", "new_id"]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
log = logging.getLogger("gossamer.serve")
T = TypeVar("T")


def new_id(prefix: str) -> str:
    """Return an identifier that ends in 24 random characters, which nobody can guess."""
    return f"{prefix}{secrets.token_hex(12)}"


@dataclass(frozen=True)
class FieldNames:
    """What a family of endpoints calls the fields that may ask for too much; errors name them.

    Attributes:
        prompt: the field that holds the prompt
        max_tokens: the field that bounds the answer
    """

    prompt: str = "messages"
    max_tokens: str = "max_tokens"


CHAT_FIELDS = FieldNames()


@dataclass
class Service:
    """The model that is served, and everything that routes need to answer requests with it.

    Attributes:
        options: limits and switches
        tokenizer: the tokenizer of the model
        template: turns messages into tokens
        engine: the engine in its process
        metrics: counters and times
        folder: the Hugging Face directory that is served
        created: when the service started (seconds since 1970)
        defaults: sampling values of the checkpoint's generation_config.json
        ends: tokens that end an answer by the checkpoint's files, besides the tokenizer's end of text
        feedback: the file of ratings; None if none are kept
        fingerprint: of the model that is rated
        adapter: the adapter that is added to the model's weights; "" for the model itself
        adapters: the same service with each adapter, by the adapter's name
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
    feedback: FeedbackFile | None = None
    fingerprint: str = ""
    adapter: str = ""
    adapters: dict[str, Service] = field(default_factory=dict)

    @property
    def info(self) -> ModelInfo:
        """What is known about the model.

        Raises:
            ApiError: 503 while the model is not loaded.
        """
        if self.engine.info is None:
            raise ApiError(503, "the model is being loaded", "loading", retry_after=5)
        return self.engine.info

    def of_model(self, name: str | None) -> Service:
        """Return the service as it is for the model that a request names: this one, or that of an adapter.

        Raises:
            ApiError: 404, if no model is called so.
        """
        if name is None or name == self.options.name:
            return self
        if name in self.adapters:
            return self.adapters[name]
        known = " and ".join(map(repr, (self.options.name, *self.adapters)))
        message = f"the model {name!r} is not served here; {known} {'are' if self.adapters else 'is'}"
        raise ApiError(404, message, "model_not_found", "model")

    def log_prompt(self, requests: Sequence[Request]) -> None:
        """Write prompts to the log if the user has asked for that."""
        if self.options.log_prompts:
            for prompt in {request.prompt for request in requests}:
                log.info("prompt %r", self.tokenizer.decode(prompt, special=True))

    def log_answers(self, texts: Sequence[str]) -> None:
        """Write answers to the log if the user has asked for that."""
        if self.options.log_prompts:
            for text in texts:
                log.info("answer %r", text)

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        template_kwargs: Mapping[str, Any] | None = None,
        field: str = "messages",
    ) -> RenderedPrompt:
        """Render the prompt of a conversation, in a thread because long ones take a while.

        Args:
            messages: the conversation, as chat templates know it
            tools: the functions that the model is told about
            template_kwargs: further variables for the chat template
            field: the field of the request that is named if the template refuses the messages

        Raises:
            ApiError: 400 if the template refuses the messages.
        """
        try:
            return await _in_thread(self.template.render, messages, tools, template_kwargs)
        except TemplateRefusal as error:
            raise invalid(f"the chat template does not take this: {error}", field, "template_error") from error

    async def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a plain text, after those that every text begins with."""
        return (*self.tokenizer.prefix_ids, *await _in_thread(self.tokenizer.encode, text))

    def engine_requests(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        max_tokens: int | None,
        count: int,
        logprobs: int | None = None,
        grammar: Grammar | None = None,
        stop: tuple[str, ...] = (),
        boundaries: tuple[int, ...] = (),
        fields: FieldNames = CHAT_FIELDS,
    ) -> list[Request]:
        """Return the requests to the engine for `count` answers to one prompt.

        Args:
            sampling: how to sample; what it leaves open follows the checkpoint, then OpenAI
            prompt: the tokens of the prompt
            max_tokens: tokens that each answer may have; None for as many as fit
            count: the number of answers
            logprobs: the number of alternatives to report with each token; None reports no log-probabilities
            grammar: what the answers must match
            stop: texts that end the answer besides those of `sampling`
            boundaries: after how many tokens a message begins, see `RenderedPrompt`
            fields: the names of the fields, for errors

        Raises:
            ApiError: 400 for what does not fit the model or the limits.
        """
        info, token_limit = self.info, self.options.max_tokens
        if max_tokens is not None and max_tokens > token_limit:
            most = min(token_limit, info.max_model_len)
            raise invalid(f"{fields.max_tokens} {max_tokens}: this service makes {most} at most", fields.max_tokens)
        room = info.max_model_len - len(prompt)
        if room < (max_tokens or 1):
            raise invalid(
                f"the model's context is {info.max_model_len} tokens; the prompt has {len(prompt)} and "
                f"{max_tokens or 1} more were asked for; shorten {fields.prompt} or {fields.max_tokens}",
                fields.prompt,
                "context_length_exceeded",
            )
        self.check_ids(fields.prompt, prompt)
        self.check_ids("stop_token_ids", sampling.stop_token_ids or ())
        bias = {int(token): value for token, value in (sampling.logit_bias or {}).items()}
        self.check_ids("logit_bias", bias)
        stops = (sampling.stop,) if isinstance(sampling.stop, str) else tuple(sampling.stop or ())
        shared: dict[str, Any] = {
            "max_tokens": min(max_tokens or room, token_limit),
            "logit_bias": bias,
            "stop": stops + stop,
            "stop_token_ids": tuple(sampling.stop_token_ids or ()) + (() if sampling.ignore_eos else self.ends),
            "ignore_eos": bool(sampling.ignore_eos),
            "logprobs": logprobs,
            "grammar": grammar,
            "presence_penalty": sampling.presence_penalty or 0.0,
            "frequency_penalty": sampling.frequency_penalty or 0.0,
        }
        for name in _SAMPLING:
            given = getattr(sampling, name)
            if given is not None or name in self.defaults:
                shared[name] = given if given is not None else self.defaults[name]
        requests = []
        for index in range(count):
            seed = None if sampling.seed is None else (sampling.seed + index) % 2**63
            params = SamplingParams(**shared, seed=seed)
            requests.append(Request(new_id("r"), tuple(prompt), params, boundaries, self.adapter))
        return requests

    def check_ids(self, name: str, ids: Iterable[int]) -> None:
        """Refuse ids that are no tokens of the model.

        Raises:
            ApiError: 400.
        """
        size = self.info.vocab_size
        if (wrong := next((token for token in ids if token >= size), None)) is not None:
            raise invalid(f"{name}: {wrong} is no token of this model, which has {size}", name)


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread; what the tokenizer refuses is the client's mistake."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except UserError as error:
        raise invalid(str(error)) from error
