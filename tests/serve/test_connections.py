"""Connections that say nothing, or take long to say it, and the descriptors that they hold."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import pytest

from engine_double import write_tokenizer
from gossamer.serve.connections import ConnectionLimit, limit_descriptor_errors
from live_process import DOUBLE
from live_service import Live, live, until

POST = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n"
)
JSON = {"Content-Type": "application/json"}
HALF = b"GET /v1/models HTTP/1.1\r\nHost: localhost"


@pytest.fixture(scope="module")
def small(folder: Path) -> Iterator[Live]:
    with live(folder, max_connections=20, header_timeout=1.0, body_timeout=3.0, max_body=1 << 20) as service:
        yield service


def received(connection: socket.socket, seconds: float = 60) -> bytes:
    connection.settimeout(seconds)
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def test_who_asks_gets_in_however_many_hold_connections_open(small):
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(small.connect()).sendall(HALF)
        for _ in range(30):
            with small.connect() as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert received(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"", HALF, HALF + b"\r\nX: " + b"a" * 500])
def test_a_header_that_does_not_come_to_an_end_is_answered(small, sent):
    with small.connect() as connection:
        connection.sendall(sent)
        began = time.monotonic()
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 408") and 0.5 < time.monotonic() - began < 60


def test_a_header_that_drips_is_no_better(small):
    with small.connect() as connection, pytest.raises(OSError):
        for letter in HALF * 10:
            connection.sendall(bytes([letter]))
            time.sleep(0.1)
    with small.connect() as connection:  # nor is the second one of a connection
        connection.sendall(HALF.replace(b"/v1/models", b"/health") + b"\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(HALF)
        assert b"HTTP/1.1 408" in received(connection)


def test_requests_under_way_are_left_alone_and_one_more_is_told_so(small):
    with ExitStack() as stack:
        body = json.dumps({"messages": [{"role": "user", "content": "HOLD SAY xx"}]}).encode()
        head = POST.format(len(body))
        busy = [stack.enter_context(small.connect()) for _ in range(10)]
        with small.held():
            for connection in busy:
                connection.sendall(head.encode() + body)
            small.until_active(10)
            with small.connect() as connection:
                connection.sendall(HALF + b"\r\n\r\n")
                answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after" in answer.lower()
        for connection in busy:
            assert connection.recv(12) == b"HTTP/1.1 200"
    small.until_idle()


def test_bodies_that_are_begun_and_never_ended_have_a_bound_together(small):
    head = POST.format(1 << 20).encode()
    with ExitStack() as stack:
        guard = small.server.config.loaded_app
        while not hasattr(guard, "_arriving"):
            guard = getattr(guard, "app", None) or guard.middleware_stack
        guard._arriving._max_bytes, before = 3_500_000, guard._arriving._max_bytes
        connections = [stack.enter_context(small.connect()) for _ in range(5)]
        seen: set[str] = set()

        def have_arrived(count: int) -> bool:
            bodies = dict(guard._arriving._bodies)
            seen.update(bodies)
            return len(seen) == count and {size for size, _ in bodies.values()} == {1_000_000}

        for count, connection in enumerate(connections, 1):
            connection.sendall(head + b"x" * 1_000_000)
            until(partial(have_arrived, count))
        for connection in connections[:2]:  # they have given way at once, and the others are waited for
            assert b"others that had to have room" in connection.recv(2000)
        large = json.dumps({"messages": [{"role": "user", "content": "SAY ok"}], "user": "x" * 900_000})
        answer = httpx2.post(small.url + "/v1/chat/completions", content=large, headers=JSON)
        assert answer.status_code == 200
        answers = [connection.recv(2000) for connection in connections[2:]]
        guard._arriving._max_bytes = before
        assert {answer[:12] for answer in answers} == {b"HTTP/1.1 408"}
        until(lambda: not guard._arriving._bodies)  # an answer can be read before its request is over


def test_there_are_never_more_connections_than_descriptors():
    for most in (16, 100, 1024, 100_000):
        limit = ConnectionLimit(most, 1.0)
        assert 8 <= limit.max_connections <= most and limit.burst >= 8
        assert limit.max_per_address <= limit.max_connections


def test_a_lack_of_descriptors_is_told_once_in_a_while(caplog):
    loop = asyncio.new_event_loop()
    limit_descriptor_errors(loop)
    lack = {
        "message": "socket.accept() out of system resource",
        "exception": OSError(errno.EMFILE, "Too many open files"),
    }
    for _ in range(1000):
        loop.call_exception_handler(lack)
    loop.call_exception_handler({"message": "something else"})
    loop.close()
    assert [record.getMessage()[:20] for record in caplog.records] == ["no connection can be", "something else"]


def test_with_few_descriptors_the_service_goes_on_and_its_log_stays_short(tmp_path):
    folder = write_tokenizer(tmp_path)
    (folder / "config.json").write_text("{}")
    (folder / "service.py").write_text(DOUBLE)
    log = folder / "log"
    command = f"ulimit -n 256; exec {sys.executable} {folder / 'service.py'} {folder} '' 1 2>{log}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    service = subprocess.Popen(["bash", "-c", command], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not re.search(r"ready$", log.read_text() if log.exists() else "", re.MULTILINE):
            assert time.monotonic() < deadline and service.poll() is None
            time.sleep(0.05)
        url = re.search(r" is served at (\S+)", log.read_text())[1]
        with ExitStack() as stack:
            for _ in range(400):
                address = "127.0.0.1", int(url.rsplit(":", 1)[1])
                stack.enter_context(socket.create_connection(address, 10)).sendall(HALF)
            for _ in range(20):
                assert httpx2.get(url + "/health", timeout=60).status_code == 200
        assert log.stat().st_size < 20_000 and "Traceback" not in log.read_text()
    finally:
        service.terminate()
        assert service.wait(60) == 0


def test_a_million_mistakes_are_told_as_one(server):
    said = [{"role": "user", "content": "a"}]
    for field, body in {
        "messages.1": {"messages": said + [1] * 900_000},
        "logit_bias": {"messages": said, "logit_bias": {f"x{n}": 1 for n in range(100_000)}},
        None: {f"k{n}": 1 for n in range(100_000)},
    }.items():
        answer = server.post("/v1/chat/completions", body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field and len(answer.content) < 500
