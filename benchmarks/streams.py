"""Streaming clients of an OpenAI-compatible service, and the times at which each token reaches them."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Stream", "Streams", "run_clients"]

PATIENCE = 600.0  # seconds of one answer


@dataclass
class Stream:
    """One streamed answer.

    Attributes:
        began: when it was asked for, in seconds
        arrivals: when each token came
        ended: when the answer was complete
    """

    began: float
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0


@dataclass
class Streams:
    """The answers of one or more turns.

    Attributes:
        rates: tokens per second of each turn
    """

    answers: list[Stream] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @classmethod
    def turn(cls, answers: list[Stream]) -> Streams:
        """Return the answers of a turn, which lasts from its first question to its last answer."""
        seconds = max(answer.ended for answer in answers) - min(answer.began for answer in answers)
        return cls(answers, [sum(len(answer.arrivals) for answer in answers) / seconds])

    def add(self, other: Streams) -> None:
        """Add the answers of further turns."""
        self.answers += other.answers
        self.rates += other.rates

    def figures(self) -> dict[str, Any]:
        """Return tokens per second of the median turn, and seconds to the first and next tokens and per answer."""
        firsts = [answer.arrivals[0] - answer.began for answer in self.answers]
        gaps = [
            (answer.arrivals[-1] - answer.arrivals[0]) / (len(answer.arrivals) - 1)
            for answer in self.answers
            if len(answer.arrivals) > 1
        ]
        wholes = [answer.ended - answer.began for answer in self.answers]
        return {
            "answers": len(self.answers),
            "tokens_per_second": statistics.median(self.rates),
            "first_token": percentiles(firsts),
            "next_token": percentiles(gaps),
            "answer": percentiles(wholes),
        }


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return the median and the value that one in twenty exceeds, each one that was measured."""
    ordered = sorted(values)
    return {f"p{share}": ordered[min(len(ordered) * share // 100, len(ordered) - 1)] for share in (50, 95)}


async def run_clients(port: int, prompts: list[str], clients: int, body: dict[str, Any]) -> Streams:
    """Let clients ask prompts, each its next one when an answer is complete, and return the answers.

    Args:
        port: port of a service on this machine that has /v1/completions
        prompts: the prompts
        clients: how many clients there are
        body: further fields of each request

    Raises:
        ConnectionError: an answer was an error, or broke off.
    """
    waiting, answers = list(reversed(prompts)), list[Stream]()

    async def client() -> None:
        while waiting:
            asked = {"prompt": waiting.pop(), "stream": True} | body
            answers.append(await asyncio.wait_for(_stream(port, json.dumps(asked).encode()), PATIENCE))

    await asyncio.gather(*[client() for _ in range(clients)])
    return Streams.turn(answers)


async def _stream(port: int, body: bytes) -> Stream:
    stream = Stream(time.perf_counter())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = (await reader.readline()).split()[1]
    while (await reader.readline()).strip():
        pass
    if status != b"200":
        raise ConnectionError(f"status {status.decode()}: {(await reader.read())[-300:].decode(errors='replace')}")
    async for event in _events(reader):
        now = time.perf_counter()
        if "error" in event:
            raise ConnectionError(str(event["error"])[:300])
        # A character is a token here, and several may come in a piece.
        stream.arrivals += [now] * len("".join(choice["text"] or "" for choice in event["choices"]))
    stream.ended = time.perf_counter()
    writer.close()
    return stream


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON of server-sent events, up to [DONE] or the end of the body (which is sent in chunks)."""
    rest = b""
    while size := int((await reader.readline()).strip() or b"0", 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line[6:])
