"""How many connections there may be, and how long a client may take to send the header of a request.

uvicorn limits the length of a header, the time between two requests and, by `limit_concurrency`, the number of
requests. But it waits for ever for the end of a header, and accepts connections until the process has no descriptors
left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["ConnectionLimit", "LimitedProtocol", "limit_descriptor_errors"]

RESERVED_DESCRIPTORS = 64
"""Descriptors for everything but connections: files, the engine, the processes of templates and grammars."""
MIN_CONNECTIONS = 8
"""Connections that are accepted however few descriptors there are."""
LINGER_SECONDS = 1.0
"""Time until a connection that was refused is closed."""
log = logging.getLogger("gossamer.serve")


class ConnectionLimit:
    """Limits the open connections, and decides which of them is closed for a new one.

    A connection whose client has sent a whole header stays. Of the others, which wait for the rest of a header or for
    the next request, the one that has waited longest is closed. So whoever has something to ask gets in, however many
    connections others hold open.

    Args:
        max_connections: connections in all; fewer if the process may not have that many descriptors
        header_timeout: seconds until the header of a request must be complete

    Attributes:
        burst: connections that may be accepted before any of them is looked at
        max_connections: connections in all
        max_per_address: connections of one address
        header_timeout: as above
        lingering: number of connections that were refused and are not closed yet
    """

    def __init__(self, max_connections: int, header_timeout: float) -> None:
        descriptors = _allowed_descriptors(max_connections + max_connections // 2 + RESERVED_DESCRIPTORS)
        self.burst = max(MIN_CONNECTIONS, min(1024, descriptors // 4))
        self.max_connections = max(
            MIN_CONNECTIONS, min(max_connections, descriptors - RESERVED_DESCRIPTORS - self.burst)
        )
        self.max_per_address = max(MIN_CONNECTIONS, self.max_connections // 2)
        self.header_timeout = header_timeout
        self.lingering = 0
        self._open: dict[str, dict[LimitedProtocol, None]] = {}  # by address, oldest first

    def admit(self, connection: LimitedProtocol) -> bool:
        """Return whether a new connection may stay, and make room for it if that is possible."""
        mine = self._open.setdefault(connection.address, {})
        is_full = sum(map(len, self._open.values())) >= self.max_connections
        is_address_full = len(mine) >= self.max_per_address
        if is_full or is_address_full:
            idle = self._longest_idle(mine) or (None if is_address_full else self._idle_of_others())
            if idle is None:
                self._forget_address(connection.address)
                return False
            idle.drop()
        self._open.setdefault(connection.address, {})[connection] = None
        return True

    def remove(self, connection: LimitedProtocol) -> None:
        """Note that a connection is closed."""
        self._open.get(connection.address, {}).pop(connection, None)
        self._forget_address(connection.address)

    def _forget_address(self, address: str) -> None:
        if not self._open.get(address, True):
            del self._open[address]

    def _longest_idle(self, connections: dict[LimitedProtocol, None]) -> LimitedProtocol | None:
        idle = (connection for connection in connections if connection.is_idle)
        return min(idle, key=lambda connection: connection.idle_since, default=None)

    def _idle_of_others(self) -> LimitedProtocol | None:
        """The longest idle connection of the address with the most connections that has an idle one."""
        for connections in sorted(self._open.values(), key=len, reverse=True):
            if (idle := self._longest_idle(connections)) is not None:
                return idle
        return None


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol with a limit on connections and a deadline for headers.

    Attributes:
        limit: the limit that all connections share
        address: the address of the client
        idle_since: when the connection began to wait for a request
    """

    limit: ConnectionLimit

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address = ""
        self.idle_since = time.monotonic()
        self._deadline: asyncio.TimerHandle | None = None
        self._ended = False  # nothing is read any more

    @property
    def is_idle(self) -> bool:
        """Whether it is between two requests, and the header of the next one is not complete."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or answer 503 at once."""
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        admitted = self.limit.admit(self)
        super().connection_made(transport)
        if admitted:
            self._await_header()
        else:
            self._end(503, "too many connections are open; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is closed."""
        self._cancel_deadline()
        self.limit.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what the client has sent, and start or cancel the deadline for the header."""
        if self._ended or self.transport.is_closing():
            return
        super().data_received(data)
        if not self.is_idle:
            self._cancel_deadline()
        elif self._deadline is None:
            self._await_header()

    def on_response_complete(self) -> None:
        """Note that an answer has been sent; the next request is subject to the same deadline."""
        self.idle_since = time.monotonic()
        super().on_response_complete()
        if not self.is_idle:  # the next request has already arrived
            self._cancel_deadline()

    def drop(self) -> None:
        """Close the connection, which is idle, for a new one."""
        self.limit.remove(self)
        self._cancel_deadline()
        self.transport.close()

    def _await_header(self) -> None:
        self.idle_since = time.monotonic()
        self._deadline = self.loop.call_later(self.limit.header_timeout, self._header_timed_out)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _header_timed_out(self) -> None:
        self._deadline = None
        if self.is_idle:
            self._end(408, f"the header did not arrive within {self.limit.header_timeout:g} seconds")

    def _end(self, status: int, message: str) -> None:
        """Send an answer without a request, and close the connection."""
        with contextlib.suppress(h11.LocalProtocolError):
            headers = [("content-type", "text/plain"), ("content-length", str(len(message))), ("connection", "close")]
            retry = [("retry-after", "5")] if status == 503 else []
            self.transport.write(self.conn.send(h11.Response(status_code=status, headers=headers + retry)) or b"")
            self.transport.write(self.conn.send(h11.Data(data=message.encode())) or b"")
            self.conn.send(h11.EndOfMessage())
        self._ended = True
        if self.limit.lingering >= self.limit.burst // 2:
            self.transport.close()
            return
        # The client would lose the answer if it still sent something to a closed connection.
        self.transport.write_eof()
        self.limit.lingering += 1
        self.loop.call_later(LINGER_SECONDS, self._close_after_linger)

    def _close_after_linger(self) -> None:
        self.limit.lingering -= 1
        self.transport.close()


def limit_descriptor_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log a lack of descriptors once a minute: asyncio logs it for every connection that it cannot accept."""
    last_logged = -60.0

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal last_logged
        if "accept() out of system resource" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif time.monotonic() - last_logged >= 60:
            last_logged = time.monotonic()
            log.error("no connection can be taken: %s; raise the limit (ulimit -n)", context.get("exception"))

    loop.set_exception_handler(handle)


def _allowed_descriptors(wanted: int) -> int:
    """Raise the limit of open descriptors to `wanted` if possible, and return how many this process may have."""
    try:
        import resource
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    if soft >= wanted:
        return soft
    more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
