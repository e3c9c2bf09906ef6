"""Connections: how many there may be, and how long one may take to say what it wants.

uvicorn bounds what a header may be long, idle connections between requests and, by ``limit_concurrency``, requests; it
waits for ever for a header's end, and takes connections until the process has no descriptors left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Gate", "Protocol", "quiet_about_descriptors"]

RESERVED = 64
"""Descriptors for everything but connections: files, the engine, the processes of templates and grammars."""
LEAST = 8
"""Connections that are taken however few descriptors there are."""
LINGER = 1.0
"""Seconds until a connection that was refused is closed."""
log = logging.getLogger("gossamer.serve")


class Gate:
    """How many connections are open, and which of them has to go for a new one.

    A client that has sent a whole header is left alone. Of those that have not, or that rest between two requests, the
    one that has waited longest gives way: whoever has something to ask gets in, however many hold connections open.

    Args:
        most: connections in all, fewer where the process may not have so many descriptors.
        header: seconds to the end of a request's header.

    Attributes:
        burst: connections that may be taken before any of them is looked at.
    """

    def __init__(self, most: int, header: float) -> None:
        descriptors = _descriptors(most + most // 2 + RESERVED)
        self.burst = max(LEAST, min(1024, descriptors // 4))
        self.most = max(LEAST, min(most, descriptors - RESERVED - self.burst))
        self.most_of_one = max(LEAST, self.most // 2)
        self.header = header
        self.lingering = 0  # that have been answered and refused, and whose close is put off
        self._open: dict[str, dict[Protocol, None]] = {}  # by address, oldest first

    def admit(self, connection: Protocol) -> bool:
        """Whether a new connection may stay; makes room for it where that is possible."""
        mine = self._open.setdefault(connection.address, {})
        full = sum(map(len, self._open.values())) >= self.most
        if full or len(mine) >= self.most_of_one:
            idle = self._idle(mine) or (None if len(mine) >= self.most_of_one else self._idle_of_many())
            if idle is None:
                self._forget_address(connection.address)
                return False
            idle.drop()
        self._open.setdefault(connection.address, {})[connection] = None
        return True

    def leave(self, connection: Protocol) -> None:
        """A connection is no more."""
        self._open.get(connection.address, {}).pop(connection, None)
        self._forget_address(connection.address)

    def _forget_address(self, address: str) -> None:
        if not self._open.get(address, True):
            del self._open[address]

    def _idle(self, connections: dict[Protocol, None]) -> Protocol | None:
        waiting = (connection for connection in connections if connection.waits)
        return min(waiting, key=lambda connection: connection.since, default=None)

    def _idle_of_many(self) -> Protocol | None:
        """Of the address that has most."""
        for connections in sorted(self._open.values(), key=len, reverse=True):
            if (idle := self._idle(connections)) is not None:
                return idle
        return None


class Protocol(H11Protocol):
    """uvicorn's, behind a gate and with a deadline for headers."""

    gate: Gate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address = ""
        self.since = time.monotonic()  # when it began to wait for a request
        self._deadline: asyncio.TimerHandle | None = None
        self._ended = False  # what comes is not read any more

    @property
    def waits(self) -> bool:
        """Whether it is between requests, the header of the next one not being complete."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or answer 503 at once."""
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        admitted = self.gate.admit(self)
        super().connection_made(transport)
        if admitted:
            self._await_header()
        else:
            self._end(503, "too many connections are open; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._heard()
        self.gate.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if self._ended or self.transport.is_closing():
            return
        super().data_received(data)
        if not self.waits:
            self._heard()
        elif self._deadline is None:
            self._await_header()

    def on_response_complete(self) -> None:
        """uvicorn's: an answer has been sent; what it may be asked next is subject to the same deadline."""
        self.since = time.monotonic()
        super().on_response_complete()
        if not self.waits:  # the next request was here already
            self._heard()

    def drop(self) -> None:
        """Close it: it has nothing to say, and others have."""
        self.gate.leave(self)
        self._heard()
        self.transport.close()

    def _await_header(self) -> None:
        self.since = time.monotonic()
        self._deadline = self.loop.call_later(self.gate.header, self._too_slow)

    def _heard(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.waits:
            self._end(408, f"the header did not arrive within {self.gate.header:g} seconds")

    def _end(self, status: int, message: str) -> None:
        """Answer without a request, and close."""
        with contextlib.suppress(h11.LocalProtocolError):
            headers = [("content-type", "text/plain"), ("content-length", str(len(message))), ("connection", "close")]
            retry = [("retry-after", "5")] if status == 503 else []
            self.transport.write(self.conn.send(h11.Response(status_code=status, headers=headers + retry)) or b"")
            self.transport.write(self.conn.send(h11.Data(data=message.encode())) or b"")
            self.conn.send(h11.EndOfMessage())
        self._ended = True
        if self.gate.lingering >= self.gate.burst // 2:
            self.transport.close()
            return
        # What a client still sends to a closed connection takes the answer out of its hands.
        self.transport.write_eof()
        self.gate.lingering += 1
        self.loop.call_later(LINGER, self._lingered)

    def _lingered(self) -> None:
        self.gate.lingering -= 1
        self.transport.close()


def quiet_about_descriptors(loop: asyncio.AbstractEventLoop) -> None:
    """Tell of a lack of descriptors once in a while: asyncio tells of it for every connection that it cannot take."""
    told = -60.0

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        if "accept() out of system resource" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif time.monotonic() - told >= 60:
            told = time.monotonic()
            log.error("no connection can be taken: %s; raise the limit (ulimit -n)", context.get("exception"))

    loop.set_exception_handler(handle)


def _descriptors(wanted: int) -> int:
    """How many this process may have open, after asking for so many."""
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
