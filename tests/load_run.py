"""Many clients at once, good and bad ones; every answer is either complete or an honest error, and each is counted."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"
HONEST = (429, 503)
"""Statuses of a service that is full, or whose engine has just died."""


@dataclass
class Report:
    """What has come of a run.

    Attributes:
        outcomes: how often each kind of client ended how
        seconds: that complete answers took
        lies: answers that were neither complete nor an honest error
        wall: seconds of all runs
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)
    wall: float = 0.0

    def lines(self) -> list[str]:
        """For people."""
        ordered = sorted(self.seconds)
        share = {name: ordered[int(part * (len(ordered) - 1))] for name, part in (("p50", 0.5), ("p99", 0.99))}
        total = sum(self.outcomes.values())
        return [
            f"{total} requests in {self.wall:.1f} s; complete answers took "
            + ", ".join(f"{value * 1000:.0f} ms ({name})" for name, value in share.items()),
            *(f"  {kind:<10} {outcome:<14} {count}" for (kind, outcome), count in sorted(self.outcomes.items())),
            f"  neither complete nor an honest error: {len(self.lies)}",
        ]


@dataclass
class Load:
    """The clients of one run.

    Args:
        port: of the service on this machine.
        texts: what each prompt is answered with.
        more: further fields of every good request.
        seed: of the order in which clients come.
    """

    port: int
    texts: dict[str, str]
    more: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    report: Report = field(default_factory=Report)

    async def run(self, count: int, at_once: int, halfway: Callable[[], Awaitable[None]] | None = None) -> Report:
        """Let `count` clients come, `at_once` at the same time; `halfway` happens among them."""
        chance, gate, start = random.Random(self.seed), asyncio.Semaphore(at_once), time.monotonic()
        kinds: dict[str, tuple[Callable[[str], Awaitable[str]], float]] = {
            "whole": (self._whole, 4),
            "streamed": (self._streamed, 6),
            "slow": (self._slow, 1),
            "leaving": (self._leaving, 2),
            "malformed": (self._malformed, 1),
            "oversized": (self._oversized, 0.3),
        }

        async def client(kind: str, prompt: str) -> None:
            async with gate:
                began = time.monotonic()
                try:
                    outcome = await asyncio.wait_for(kinds[kind][0](prompt), 120)
                except Exception as error:
                    outcome = f"{type(error).__name__}"
                    self.report.lies.append(f"{kind} {prompt!r}: {error!r}")
                self.report.outcomes[kind, outcome] += 1
                if outcome == "complete":
                    self.report.seconds.append(time.monotonic() - began)

        chosen = chance.choices(list(kinds), [weight for _, weight in kinds.values()], k=count)
        tasks = [asyncio.create_task(client(kind, chance.choice(list(self.texts)))) for kind in chosen]
        if halfway is not None:
            while sum(self.report.outcomes.values()) < count // 2:
                await asyncio.sleep(0.02)
            await halfway()
        await asyncio.gather(*tasks)
        self.report.wall += time.monotonic() - start
        return self.report

    def _asking(self, prompt: str, **more: Any) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": prompt}], **self.more, **more}).encode()

    async def _whole(self, prompt: str) -> str:
        async with self._post(self._asking(prompt)) as answer:
            body = json.loads(await answer.rest())
            if answer.status in HONEST:
                return _honest(answer.status, body)
            return self._judge(prompt, body["choices"][0]["message"]["content"])

    async def _streamed(self, prompt: str, delay: float = 0.0) -> str:
        async with self._post(self._asking(prompt, stream=True)) as answer:
            if answer.status in HONEST:
                return _honest(answer.status, json.loads(await answer.rest()))
            text, done = "", False
            async for data in answer.events():
                await asyncio.sleep(delay)
                if data == "[DONE]":
                    done = True
                elif "error" in (event := json.loads(data)):
                    return _honest(503, event)
                else:
                    text += event["choices"][0]["delta"].get("content") or ""
            assert done, "the stream ended without a word"
            return self._judge(prompt, text)

    async def _slow(self, prompt: str) -> str:
        return await self._streamed(prompt, delay=0.01)

    async def _leaving(self, prompt: str) -> str:
        async with self._post(self._asking(prompt, stream=True)) as answer:
            async for _ in answer.events():
                break
        return "left"

    async def _malformed(self, prompt: str) -> str:
        bodies = [b"{", b"[]", b"\xff\xfe", self._asking(prompt)[:-9], self._asking(prompt, nonsense=1), b"[" * 9999]
        number = self.report.outcomes["malformed", "refused"]
        async with self._post(bodies[number % len(bodies)]) as answer:
            assert answer.status == 400 and json.loads(await answer.rest())["error"]["message"]
        return "refused"

    async def _oversized(self, prompt: str) -> str:
        async with self._post(b"x", claim=2**30) as answer:
            assert answer.status == 413 and json.loads(await answer.rest())["error"]["message"]
        return "refused"

    def _judge(self, prompt: str, text: str) -> str:
        assert text == self.texts[prompt], f"answered {text!r}"
        return "complete"

    def _post(self, body: bytes, claim: int | None = None) -> _Answer:
        return _Answer(self.port, body, len(body) if claim is None else claim)


def _honest(status: int, body: dict[str, Any]) -> str:
    assert body["error"]["message"]
    return f"{status} {body['error']['code']}"


class _Answer:
    """One request over one connection, and its answer as it comes."""

    def __init__(self, port: int, body: bytes, length: int) -> None:
        self._port = port
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self._request = f"{head}Content-Length: {length}\r\n\r\n".encode() + body

    async def __aenter__(self) -> _Answer:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(self._request)
        self.status = int((await self._reader.readline()).split()[1])
        headers = {}
        while (line := await self._reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        self._chunked = headers.get("transfer-encoding") == "chunked"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._writer.close()

    async def rest(self) -> bytes:
        """The body."""
        return b"".join([piece async for piece in self._pieces()])

    async def events(self) -> AsyncIterator[str]:
        """The data of server-sent events; a stream that breaks off in a chunk raises."""
        text = b""
        async for piece in self._pieces():
            text += piece
            *whole, text = text.split(b"\n\n")
            for event in whole:
                if event.startswith(b"data: "):
                    yield event[6:].decode()

    async def _pieces(self) -> AsyncIterator[bytes]:
        if not self._chunked:
            yield await self._reader.read()
            return
        while size := int((await self._reader.readline()).strip() or b"x", 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
