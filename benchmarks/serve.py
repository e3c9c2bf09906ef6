"""What does HTTP cost? The service under 1 to 64 streaming clients beside its engine alone and transformers' server.

    python benchmarks/serve.py [--size micro] [--turns 3] [--quick] [--no-peer] [--json FILE]

The network has a recipe's size and random weights in float32, behind `gossamer serve` with its default options. Clients
stream /v1/completions, each its next prompt when an answer is complete; a prompt is 16 tokens that no other has, an
answer 32, greedy. The engine alone gets the same prompts, as many at a time, in this process. `transformers serve`
generates one answer after another, since its continuous batching refuses linear attention, so it is asked by one client
and by four. Subjects take turns; clients share the machine with what they ask.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before PyTorch)
import torch
from decode import random_network
from measure import describe, machine, table, take_turns
from peers import model_config
from streams import Stream, Streams, run_clients

from gossamer.model.config import ModelConfig

CLIENTS = (1, 4, 16, 64)
PEER_CLIENTS = (1, 4)
PROMPT, ANSWER, MIN_ANSWERS = 16, 32, 8  # tokens, tokens, the fewest answers of a turn
LOADING = 120.0  # seconds

Turn = Callable[[list[str], int], Streams]
"""Has prompts answered, so many at a time."""


def engine_turn(network: Any, tokenizer: Any) -> Turn:
    """Return a turn of the engine in this process."""
    from gossamer.infer.engine import Engine
    from gossamer.infer.request import Request, SamplingParams

    engine = Engine(network, tokenizer)
    params = SamplingParams(ANSWER, temperature=0.0, ignore_eos=True)

    def turn(prompts: list[str], clients: int) -> Streams:
        waiting = [(tokenizer.bos_id, *tokenizer.encode(prompt)) for prompt in reversed(prompts)]
        running: dict[str, Stream] = {}
        answers, number = list[Stream](), 0
        while waiting or running:
            while waiting and len(running) < clients:
                number += 1
                running[str(number)] = Stream(time.perf_counter())
                engine.submit(Request(str(number), waiting.pop(), params))
            for delta in engine.step():
                assert delta.error is None, delta.error
                now = time.perf_counter()
                running[delta.id].arrivals += [now] * len(delta.text)
                if delta.finish_reason is not None:
                    running[delta.id].ended = now
                    answers.append(running.pop(delta.id))
        return Streams.turn(answers)

    return turn


def http_turn(port: int, body: dict[str, Any]) -> Turn:
    """Return a turn of a service on this machine."""
    return lambda prompts, clients: asyncio.run(run_clients(port, prompts, clients, body))


@contextlib.contextmanager
def serving(words: list[str], port: int) -> Iterator[int]:
    """Run a server in a process of its own, and yield once it answers.

    Raises:
        RuntimeError: it ended before, or did not answer in time.
    """
    with tempfile.TemporaryFile() as log:
        # A pipe that nobody reads would stop the server when it is full.
        process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=os.environ)
        try:
            _until_up(process, f"http://127.0.0.1:{port}")
            yield port
        except RuntimeError as error:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"{error}: {lines[-1] if lines else 'it said nothing'}") from error
        finally:
            process.terminate()
            process.wait(60)


def _until_up(process: subprocess.Popen[bytes], base: str) -> None:
    path = "/ready" if "gossamer.cli" in process.args else "/health"  # type: ignore[operator]
    deadline = time.monotonic() + LOADING
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"exit status {process.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(base + path):
            return
        time.sleep(0.1)
    raise RuntimeError(f"no answer within {LOADING:g} seconds")


def free_port() -> int:
    """Return a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def random_prompts(characters: str, count: int, source: random.Random) -> list[str]:
    """Return texts of `PROMPT` tokens, one character per token."""
    return ["".join(source.choices(characters, k=PROMPT)) for _ in range(count)]


def serve_in_turns(subjects: dict[str, tuple[Turn, tuple[int, ...]]], characters: str, turns: int) -> dict[str, Any]:
    """Return figures by subject and number of clients; a first turn of each subject is not counted.

    Args:
        subjects: what is asked, by name, with the numbers of clients that ask it
        characters: what prompts are made of
        turns: turns of each subject with each number of clients
    """
    source = random.Random(0)
    found: dict[str, dict[int, Streams]] = {name: {} for name in subjects}
    for name, (call, clients) in subjects.items():
        call(random_prompts(characters, clients[-1], source), clients[-1])
        print(f"{name} is warm", file=sys.stderr)

    def contestant(name: str, count: int) -> Callable[[int], bool]:
        call, clients = subjects[name]
        answers = max(count, MIN_ANSWERS if clients is CLIENTS else count)

        def ask(turn: int) -> bool:
            found[name].setdefault(count, Streams()).add(call(random_prompts(characters, answers, source), count))
            return turn + 1 < turns

        return ask

    take_turns(
        [contestant(name, count) for count in CLIENTS for name, (_, clients) in subjects.items() if count in clients]
    )
    return {name: {str(count): one.figures() for count, one in by.items()} for name, by in found.items()}


def measure(config: ModelConfig, turns: int, peer: bool) -> dict[str, Any]:
    """Return the record: figures of each subject at each number of clients."""
    from gossamer import hub

    found = machine()
    network, tokenizer = random_network(config)
    characters = tokenizer.decode(range(1, config.vocab_size))
    failures = {}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as servers:
        folder = Path(temporary) / "model"
        hub.save(network, folder, tokenizer)
        port = free_port()
        servers.enter_context(serving(["-m", "gossamer.cli", "serve", str(folder), "--port", str(port)], port))
        body = {"max_tokens": ANSWER, "temperature": 0}
        subjects: dict[str, tuple[Turn, tuple[int, ...]]] = {
            "gossamer serve": (http_turn(port, body | {"ignore_eos": True}), CLIENTS),
            "its engine alone": (engine_turn(network, tokenizer), CLIENTS),
        }
        if peer:
            try:
                subjects["transformers serve"] = (
                    servers.enter_context(transformers_server(folder, body)),
                    PEER_CLIENTS,
                )
            except (RuntimeError, ConnectionError) as error:
                failures["transformers serve"] = str(error)[:200]
        results = serve_in_turns(subjects, characters, turns)
    return {"machine": found, "threads": torch.get_num_threads(), "results": results, "failures": failures}


@contextlib.contextmanager
def transformers_server(folder: Path, body: dict[str, Any]) -> Iterator[Turn]:
    """Start `transformers serve` on the same weights, and return once it has answered.

    Raises:
        RuntimeError: it does not start.
        ConnectionError: it does not serve this architecture.
    """
    port = free_port()
    command = ["-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    with serving([*command, "--device", "cpu", "--dtype", "float32", "--port", str(port)], port):
        turn = http_turn(port, body | {"model": str(folder)})
        if not turn(["\u4e00"], 1).answers[0].arrivals:
            raise ConnectionError("its answer is empty")
        yield turn


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Return what is compared between runs."""
    rate = {
        (name, count): row["tokens_per_second"]
        for name, rows in record["results"].items()
        for count, row in rows.items()
    }
    pairs = [("gossamer serve", "its engine alone"), ("gossamer serve", "transformers serve")]
    return {
        f"{one} over {other}, {count} at once": rate[one, str(count)] / rate[other, str(count)]
        for one, other in pairs
        for count in CLIENTS
        if (other, str(count)) in rate
    }


def report(record: dict[str, Any]) -> str:
    """Print a record."""
    rows: list[tuple[object, ...]] = []
    for count in CLIENTS:
        for name, by in record["results"].items():
            if row := by.get(str(count)):
                spans = [_span(row[key]) for key in ("first_token", "next_token", "answer")]
                rows.append((f"{count}, {name}", f"{row['tokens_per_second']:.0f}", *spans))
    title = f"### Serving, {record['size']}, {record['threads']} threads\n\n{describe(record['machine'])}\n"
    columns = ("clients", "tokens/s", "first token, ms", "next token, ms", "answer, ms")
    failures = "".join(f"\n{name}: {reason}\n" for name, reason in record["failures"].items())
    quotients = table(("", "×"), [(name, f"{value:.2f}") for name, value in ratios(record).items()])
    return f"{title}\nMedian, and what one in twenty exceeds.\n\n{table(columns, rows)}\n{failures}\n{quotients}\n"


def _span(values: dict[str, float]) -> str:
    times = [1000 * values[share] for share in ("p50", "p95")]
    return " – ".join(f"{time:.1f}" if time < 100 else f"{time:,.0f}" for time in times)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="micro", help="recipe of the network")
    parser.add_argument("--turns", type=int, help="turns of each subject (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one turn instead of three")
    parser.add_argument("--no-peer", action="store_true", help="without transformers' server")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    arguments = parser.parse_args()
    config = replace(model_config(arguments.size, {}), max_position_embeddings=4096)
    turns = arguments.turns or (1 if arguments.quick else 3)
    record = {"size": arguments.size} | measure(config, turns, not arguments.no_peer)
    print(report(record))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
