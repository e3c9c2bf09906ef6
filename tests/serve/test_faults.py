"""What goes wrong stays small: clients that leave or do not read, an engine that fails or dies, a service that ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from engine_double import write_tokenizer
from gossamer.cli import main
from live_process import Process, alive, children
from live_service import Live, live, until

CHAT = "/v1/chat/completions"


def raw_request(body: dict) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def asking(text: str, **more: object) -> dict:
    return {"messages": [{"role": "user", "content": text}], **more}


def running(service: Live) -> float:
    lines = service.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith('gossamer_engine{name="running"}')]
    return float(found[0].split()[-1]) if found else 0.0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(server, stream):
    with server.held():
        with server.connect() as connection:
            connection.sendall(raw_request(asking("HOLD x", stream=stream)))
            until(lambda: running(server) == 1)
        server.until_active(0)
        until(lambda: running(server) == 0)


def test_a_client_that_leaves_the_queue_is_never_begun(folder):
    with live(folder, build={"max_batch": 1}) as service, ThreadPoolExecutor(1) as pool:
        with service.held():
            first = pool.submit(service.say, "HOLD SAY xx")
            service.until_active(1)
            with service.connect() as connection:
                connection.sendall(raw_request(asking("SAY y", stream=True)))
                service.until_active(2)
            service.until_active(1)
        assert first.result().status_code == 200


def test_a_slow_reader_holds_nobody_up_and_gets_everything(server):
    with server.connect() as connection:
        connection.sendall(raw_request(asking("x", stream=True, max_tokens=500)))
        time.sleep(0.3)
        assert server.say("SAY quick").json()["choices"][0]["message"]["content"] == "quick"
        server.until_idle()  # the engine is done long before the reader
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(512)
            time.sleep(0.0005)
    assert received.count(b'"content":') == 501


def test_a_reader_who_never_reads_is_given_up(folder, caplog):
    caplog.set_level("INFO", "gossamer.serve")
    much = asking("x", stream=True, max_tokens=4000, n=4, logprobs=True, top_logprobs=20)
    with live(folder, write_timeout=0.3) as service, service.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(raw_request(much))
        until(lambda: any("finish=left" in record.getMessage() for record in caplog.records))
        assert service.service.engine.active == 0
        assert service.say("SAY ok").status_code == 200


@pytest.mark.parametrize(("order", "status"), [("FAIL", 500), ("BREAK", 500), ("REFUSE", 400)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_fails_alone(server, order, status, stream):
    with ThreadPoolExecutor(1) as pool:
        with server.held():
            other = pool.submit(server.say, "HOLD SAY xx")
            server.until_active(1)
            failed = server.say(order, stream=stream)
        assert failed.status_code == status and failed.json()["error"]["message"]
        assert other.result().json()["choices"][0]["message"]["content"] == "xx"


@pytest.mark.parametrize("stream", [False, True])
def test_logits_that_are_not_finite_are_told_to_who_asked(server, stream):
    failed = server.say("NANS", stream=stream)
    error = failed.json()["error"]
    assert (failed.status_code, error["code"]) == (500, "logits_not_finite") and "not finite" in error["message"]
    assert server.say("SAY on").status_code == 200


def test_a_grammar_that_is_refused_is_its_writers_mistake(server):
    form = {"type": "grammar", "grammar": "FORBID"}
    with ThreadPoolExecutor(1) as pool:
        with server.held():
            other = pool.submit(server.say, "HOLD SAY xx")
            server.until_active(1)
            assert server.say("SAY a", response_format=form).status_code == 400
            assert server.say("SAY a", response_format=form | {"grammar": "x"}).status_code == 200
        assert other.result().json()["choices"][0]["message"]["content"] == "xx"


def test_after_a_step_that_raises_a_fresh_engine_goes_on(server, caplog):
    with server.held(), ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.say, "HOLD SAY xx")
        server.until_active(1)
        pid = server.service.engine.pid
        assert server.say("RAISE").status_code == 500
        assert other.result().status_code == 500
    assert server.say("SAY on").json()["choices"][0]["message"]["content"] == "on"
    assert server.service.engine.pid == pid


def test_an_engine_that_dies_is_started_again_and_nobody_is_told_a_lie(folder):
    with live(folder) as service, service.held(), ThreadPoolExecutor(2) as pool:
        plain = pool.submit(service.say, "HOLD SAY xx")
        streamed = pool.submit(service.say, "HOLD SAY xx", stream=True)
        until(lambda: running(service) == 2)
        time.sleep(0.1)
        os.kill(service.service.engine.pid, signal.SIGKILL)
        answer = plain.result()
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_died"
        events = streamed.result().text.strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_died"
        assert service.get("/health").status_code == 200
        service.wait()
        assert service.say("SAY back").json()["choices"][0]["message"]["content"] == "back"
        assert "gossamer_engine_restarts_total 1.0" in service.get("/metrics").text


def test_responses_tell_of_a_failure_in_their_own_way(server):
    text = server.post("/v1/responses", {"input": "SLOW RAISE", "stream": True}).text
    assert json.loads(text)["error"]["code"] == "engine_error"
    with server.held(), ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(server.post, "/v1/responses", {"input": "HOLD SAY xx", "stream": True})
        until(lambda: running(server) == 1)
        time.sleep(0.1)
        server.say("RAISE")
    last = json.loads(streamed.result().text.strip().split("\n\n")[-1].split("data: ")[1])
    assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "engine_error"


def test_while_the_model_is_loaded_the_service_says_so(folder, tmp_path):
    order = tmp_path / "order"
    with live(folder, build={"first": str(order)}) as service:
        order.write_text("wait")
        os.kill(service.service.engine.pid, signal.SIGKILL)
        until(lambda: service.service.engine.state == "loading")
        for answer in (service.get("/ready"), service.say("SAY x")):
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "loading"
        assert service.get("/health").status_code == 200
        order.unlink()
        service.wait()
        assert service.get("/ready").status_code == 200


# Processes.


@pytest.fixture
def own_folder(tmp_path):
    return write_tokenizer(tmp_path)


def stream_until_first(client: httpx2.Client, url: str, body: dict):
    request = client.build_request("POST", url + CHAT, json=body)
    answer = client.send(request, stream=True)
    lines = answer.iter_lines()
    next(line for line in lines if "content" in line)
    return lines


def test_a_signal_lets_running_requests_end_and_takes_no_new_ones(own_folder):
    service, held = Process.double(own_folder, drain=60), own_folder / "held"
    held.touch()
    url = service.url()

    def is_refused():
        try:
            httpx2.get(url + "/health")
        except httpx2.ConnectError:
            return True
        return False

    with httpx2.Client(timeout=120) as client:
        lines = stream_until_first(client, url, asking("HOLD SAY xx", stream=True))
        service.process.terminate()
        until(is_refused)
        held.unlink()
        assert list(lines)[-2] == "data: [DONE]"
    status, log = service.end()
    assert status == 0 and "draining: 1 requests" in log and "Traceback" not in log


def test_what_outlasts_the_drain_gets_an_honest_error(own_folder):
    """Ctrl+C drains, too."""
    service = Process.double(own_folder, drain=0.3)
    url = service.url()
    (own_folder / "held").touch()
    with httpx2.Client(timeout=120) as client:
        lines = stream_until_first(client, url, asking("HOLD x", stream=True))
        service.process.send_signal(signal.SIGINT)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    status, log = service.end()
    assert status == 0 and "Traceback" not in log


def test_the_engine_does_not_outlive_the_service(own_folder):
    service = Process.double(own_folder)
    service.url()
    engines = children(service.process.pid)
    assert engines
    service.process.kill()
    service.end()
    until(lambda: not any(alive(pid) for pid in engines))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("model.safetensors: damaged; download it again", "UserError: model.safetensors: damaged; download it again"),
        ("die", "UserError: the engine died 3 times while it loaded the model (exit status 3)"),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_the_service_with_one_line(own_folder, order, message):
    file = own_folder / "order"
    file.write_text(order)
    status, log = Process.double(own_folder, str(file)).end(120)
    assert status == 1 and log.splitlines()[-1].startswith(message)


def test_an_address_that_is_taken_is_a_users_mistake(own_folder, server, capsys):
    port = server.url.rsplit(":", 1)[1]
    (own_folder / "config.json").write_text("{}")
    assert main(["serve", str(own_folder), "--port", port]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"--port {port}: Address already in use" in told
