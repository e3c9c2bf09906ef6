"""What `gossamer serve` can be told about the service, and the limits it keeps."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gossamer.errors import UserError, shorten
from gossamer.reading import user_path
from gossamer.typed import PYTHON_ONLY, Formerly, Metavar, Range, Unit, check_fields, reject_unknown_fields

__all__ = ["ServeOptions", "is_loopback"]

_Seconds = Annotated[float, Range(0, 1_000_000, excludes_minimum=True), Unit("seconds")]


@reject_unknown_fields
@dataclass(frozen=True)
class ServeOptions:
    """Where the service listens, who may use it, and how much of it.

    Attributes:
        host: address to listen on; any but this machine's own asks for --keys
        port: TCP port; 0 takes a free one
        keys: file of API keys, each in a line KEY or NAME KEY; it is read again whenever it changes
        name: what the model is called in the API
        adapter: adapters that are served beside the model, each under a name of its own, by which requests choose it
        cors: origins of web pages that may call the API; * allows all
        max_queue: maximum number of requests that wait beyond those that run; one more is answered with 429
        max_connections: maximum number of open connections, half of them from one address; where there are too many,
            an idle one is closed
        max_body: maximum size of a request
        max_tokens: largest max_tokens that a request may ask for; it bounds an answer to one that asks for none, too
        max_choices: maximum number of answers to one request, `n` times its prompts
        queue_timeout: maximum time from a request's arrival to its first token
        request_timeout: maximum time from a request's arrival to its end
        header_timeout: maximum time for a request's header to arrive
        body_timeout: maximum time for a request's body to arrive
        write_timeout: maximum time that a client may leave a part of an answer unread
        ping: time between the comments that keep an idle stream open
        drain_timeout: time that running requests have to end after SIGTERM
        log_prompts: write prompts and answers to the request log
        feedback: keep ratings of answers in this file, with the conversations before them; the chat page asks for them
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Range(0, 65535)] = 8000
    keys: Annotated[Path | None, Metavar("FILE")] = None
    name: Annotated[str, PYTHON_ONLY] = "gossamer"
    adapter: Annotated[tuple[str, ...], Metavar("NAME=DIR")] = ()
    cors: Annotated[tuple[str, ...], Metavar("ORIGIN")] = ()
    max_queue: Annotated[int, Range(0, 1_000_000), Unit("requests")] = 128
    max_connections: Annotated[int, Range(16, 1_000_000)] = 1024
    max_body: Annotated[int, Range(1, 1 << 30), Unit("bytes")] = 4 << 20
    max_tokens: Annotated[int, Range(1, 1 << 40), Unit("tokens")] = 32768
    max_choices: Annotated[int, Range(1, 1024), PYTHON_ONLY] = 16
    queue_timeout: _Seconds = 120.0
    request_timeout: _Seconds = 1800.0
    header_timeout: Annotated[_Seconds, PYTHON_ONLY] = 10.0
    body_timeout: Annotated[_Seconds, PYTHON_ONLY] = 30.0
    write_timeout: Annotated[_Seconds, PYTHON_ONLY] = 60.0
    ping: Annotated[_Seconds, PYTHON_ONLY] = 15.0
    drain_timeout: Annotated[float, Range(0, 1_000_000), Unit("seconds"), Formerly("drain")] = 30.0
    log_prompts: bool = False
    feedback: Annotated[Path | None, Metavar("FILE")] = None

    def __post_init__(self) -> None:
        check_fields(self)
        self.adapters()
        if not is_loopback(self.host) and self.keys is None:
            raise UserError(
                f"--host {self.host} lets other machines in: give --keys FILE, a line with an API key for each user; "
                "or leave --host out"
            )

    def adapters(self) -> dict[str, Path]:
        """Return the folders of the adapters by their names.

        Raises:
            UserError: one is not of the form NAME=DIR, or two models have one name.
        """
        found: dict[str, Path] = {}
        for given in self.adapter:
            name, equals, folder = given.partition("=")
            if not (name and equals and folder):
                raise UserError(
                    f"--adapter {shorten(given)}: must be NAME=DIR, the model's name and the adapter's folder"
                )
            if name in found or name == self.name:
                raise UserError(
                    f"--adapter {shorten(given)}: another model is called {shorten(name)}; name it otherwise"
                )
            found[name] = user_path(folder)
        return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a service that listens on a host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
