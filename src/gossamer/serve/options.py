"""What `gossamer serve` can be told, and the limits it keeps."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gossamer.errors import UserError, names_meant
from gossamer.typed import Range, check_fields

__all__ = ["ServeOptions", "is_loopback"]

_Seconds = Annotated[float, Range(0, 1_000_000, above=True)]


@names_meant
@dataclass(frozen=True)
class ServeOptions:
    """Attributes:
    host: address to listen on; any but the machine's own asks for keys
    port: TCP port; 0 takes a free one
    keys: file of API keys, a line each
    name: what the model is called in the API
    cors: origins of web pages that may call the API; ``*`` for all
    max_queue: requests that may wait beyond those that run
    max_connections: open at a time, half of them to one address; one that waits gives way to a new one
    max_body: of a request (bytes)
    max_tokens: that one choice may ask for (tokens)
    max_choices: answers to one request, ``n`` times its prompts
    queue_timeout: from a request's arrival to its first token (seconds)
    request_timeout: from a request's arrival to its end (seconds)
    header_timeout: for a request's header to arrive (seconds)
    body_timeout: for a request's body to arrive (seconds)
    write_timeout: that a client may leave a piece of an answer unread (seconds)
    ping: between comments that keep an idle stream open (seconds)
    drain: for running requests to end after SIGTERM (seconds)
    log_prompts: write prompts and answers to the request log
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Range(0, 65535)] = 8000
    keys: Path | None = None
    name: str = "gossamer"
    cors: tuple[str, ...] = ()
    max_queue: Annotated[int, Range(0, 1_000_000)] = 128
    max_connections: Annotated[int, Range(16, 1_000_000)] = 1024
    max_body: Annotated[int, Range(1, 1 << 30)] = 4 * 2**20
    max_tokens: Annotated[int, Range(1, 1 << 40)] = 32768
    max_choices: Annotated[int, Range(1, 1024)] = 16
    queue_timeout: _Seconds = 120.0
    request_timeout: _Seconds = 1800.0
    header_timeout: _Seconds = 10.0
    body_timeout: _Seconds = 30.0
    write_timeout: _Seconds = 60.0
    ping: _Seconds = 15.0
    drain: Annotated[float, Range(0, 1_000_000)] = 30.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "--")
        if not is_loopback(self.host) and self.keys is None:
            raise UserError(
                f"--host {self.host} lets other machines in: give --keys FILE, a line with an API key for each user; "
                "or leave --host out"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a service that listens on ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
