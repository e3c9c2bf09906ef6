"""From a folder to a running service: sockets, signals, logs, and the drain at its end."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from gossamer import hub
from gossamer.data.chat.template import ChatTemplate
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.hub.find import find_adapter
from gossamer.hub.fingerprint import model_fingerprint
from gossamer.infer.defaults import generation_config
from gossamer.serve.app import make_app
from gossamer.serve.connections import ConnectionLimit, LimitedProtocol, limit_descriptor_errors
from gossamer.serve.engine_process import EngineProcess
from gossamer.serve.engine_worker import BuildEngine, EngineConfig, build_engine
from gossamer.serve.feedback import FeedbackFile
from gossamer.serve.metrics import Metrics
from gossamer.serve.middleware import ApiKeys
from gossamer.serve.options import ServeOptions
from gossamer.serve.service import Service

__all__ = ["Server", "make_service", "serve"]

log = logging.getLogger("gossamer.serve")
MAX_HEADER_BYTES = 32 * 1024


def serve(run: Path, options: ServeOptions, config: EngineConfig) -> None:
    """Serve the model of a run or a Hugging Face directory until SIGTERM or Ctrl-C.

    Raises:
        UserError: there is no such model, the address is taken, the keys file is wrong, or the model cannot be loaded.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    keys = None if options.keys is None else ApiKeys(options.keys)
    folder = hub.find_model(run)
    adapters = {name: find_adapter(path) for name, path in options.adapters().items()}
    listener = _listen(options)
    config = replace(config, adapters=adapters)
    service = make_service(folder, options, partial(build_engine, folder, config))
    server = Server(service, keys)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("%s is served at http://%s:%d as %r", run, shown, port, options.name)
    for name, path in adapters.items():
        log.info("the adapter %s is served as %r", path, name)
    server.run(sockets=[listener])
    if service.engine.failure is not None:
        raise UserError(service.engine.failure)


def make_service(folder: Path, options: ServeOptions, build: BuildEngine) -> Service:
    """Make everything except the sockets; the engine is not started yet."""
    metrics = Metrics()
    tokenizer = Tokenizer.load(folder)
    defaults, ends = generation_config(folder)
    service = Service(
        options=options,
        tokenizer=tokenizer,
        template=ChatTemplate(tokenizer),
        engine=EngineProcess(build, options, metrics),
        metrics=metrics,
        folder=folder,
        created=int(time.time()),
        defaults=defaults,
        ends=ends,
        feedback=None if options.feedback is None else FeedbackFile(options.feedback),
        fingerprint="" if options.feedback is None else model_fingerprint(folder),
    )
    for name, path in options.adapters().items():
        service.adapters[name] = _with_adapter(service, name, find_adapter(path))
    return service


def _with_adapter(service: Service, name: str, folder: Path) -> Service:
    """Return the service as it is for an adapter, with the chat template and the settings that lie beside it."""
    changes: dict[str, Any] = {"options": replace(service.options, name=name, adapter=()), "adapter": name}
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(folder)
        own = service.tokenizer  # a library that saves it again may write another file for the same ids
        if (tokenizer.vocab_size, tokenizer.special_tokens) != (own.vocab_size, own.special_tokens):
            raise UserError(f"{folder}: the adapter has another tokenizer than the model; serve it with its own base")
        changes["template"] = ChatTemplate(tokenizer)
    if any((folder / file).is_file() for file in ("config.json", "generation_config.json")):
        changes["defaults"], changes["ends"] = generation_config(folder)
    if service.feedback is not None:
        changes["fingerprint"] = model_fingerprint(folder)
    return replace(service, **changes, adapters={})


class Server(uvicorn.Server):
    """A uvicorn server that stops accepting connections at SIGTERM and lets running requests end.

    /ready says so at once. A second Ctrl-C ends it without waiting. Requests that run longer than the drain get an
    error of their own.

    Args:
        service: what is served
        keys: the API keys; None if no key is needed
    """

    def __init__(self, service: Service, keys: ApiKeys | None) -> None:
        self._engine = service.engine
        limit = ConnectionLimit(service.options.max_connections, service.options.header_timeout)
        config = uvicorn.Config(
            make_app(service, keys),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            ws="none",
            http=type("Protocol", (LimitedProtocol,), {"limit": limit}),
            backlog=limit.burst,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=math.ceil(service.options.drain_timeout) + 2,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._drain_timeout = service.options.drain_timeout
        self._engine.on_failure = self._stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, with fewer messages about a lack of descriptors."""
        limit_descriptor_errors(asyncio.get_running_loop())
        await super().startup(sockets)

    def _stop(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal; uvicorn's own loop does the rest."""
        if not self.should_exit:
            log.info("draining: %d requests, %g seconds at most", self._engine.active, self._drain_timeout)
            self._engine.drain(self._drain_timeout)
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # else it is raised again after the drain, but to end when told to is no failure


def _listen(options: ServeOptions) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        return socket.create_server((options.host.strip("[]"), options.port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"--host {options.host} --port {options.port}: {error.strerror or error}; choose another --port"
        ) from error
