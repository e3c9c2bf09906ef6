"""A live service around the engine's double, in a thread, and clients for it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai

import engine_double
from gossamer.serve.engine_worker import BuildEngine
from gossamer.serve.middleware import ApiKeys
from gossamer.serve.options import ServeOptions
from gossamer.serve.server import Server, make_service


class Live:
    """A service that answers at `url` while the context lasts."""

    def __init__(self, folder: Path, options: ServeOptions, build: BuildEngine) -> None:
        self._held = folder / "held"
        self.service = make_service(folder, options, build)
        self.server = Server(self.service, ApiKeys(options.keys) if options.keys else None)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._http = httpx2.Client(timeout=120)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._listener]}, daemon=True)

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def wait(self, seconds: float = 60) -> Live:
        deadline = time.monotonic() + seconds
        while self.service.engine.state != "ready":
            assert time.monotonic() < deadline and self._thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def post(self, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        return self.request("POST", path, json=body, **more)

    def request(self, method: str, path: str, **more: Any) -> httpx2.Response:
        return self._http.request(method, self.url + path, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return self.request("GET", path, **more)

    def say(self, text: str, **more: Any) -> httpx2.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **more})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), 60)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, requests that say HOLD stop behind their first token."""
        self._held.touch()
        try:
            yield
        finally:
            self._held.unlink()

    def until_active(self, count: int) -> None:
        """Wait until so many requests run or wait in the engine's queue."""
        until(lambda: self.service.engine.active == count)

    def until_idle(self) -> None:
        self.until_active(0)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what has to come, however busy the machine is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def live(folder: Path, build: dict[str, Any] | BuildEngine | None = None, **options: Any) -> Iterator[Live]:
    made = build if callable(build) else partial(engine_double.build, folder, **(build or {}))
    with Live(folder, ServeOptions(**options), made) as service:
        yield service.wait()
