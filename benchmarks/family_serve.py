"""Does `gossamer serve` hold a checkpoint of Qwen3.5-0.8B's exact shape, and how does it answer?

    python benchmarks/family_serve.py [--shape 0.8b] [--quick] [--json FILE]

A checkpoint with random weights in bfloat16, a multi-token-prediction head and a tokenizer of as many characters as the
vocabulary has is written into a temporary folder, and `gossamer serve` is started there as a user starts it. Then a
conversation is asked for whole, and streamed to one client and to four. Random weights draft nothing that is accepted,
so the rates are those of drafts at their worst. Memory is what all processes of the service hold at most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import environment  # noqa: F401  (before PyTorch; every subject's process inherits it)
import httpx2
import torch
from family import QUICK, SHAPES, Shape
from measure import describe, machine, table

from serve import free_port, http_turn, serving

PROMPT, ANSWER = 16, 32  # tokens
FIRST = 0x10000  # the code point of the vocabulary's first character
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def write_checkpoint(shape: Shape, folder: str) -> None:
    """Write a checkpoint with random weights, a multi-token-prediction head, a tokenizer and a chat template."""
    from gossamer import hub
    from gossamer.data.tokenizer import Tokenizer, char_tokenizer
    from gossamer.model.causal_lm import CausalLM
    from gossamer.model.config import ModelConfig

    torch.manual_seed(0)
    values = {key: value for key, value in shape.config().to_dict().items() if key != "architectures"}
    model = CausalLM(replace(ModelConfig.from_dict(values), num_nextn_predict_layers=1)).to(torch.bfloat16)
    plain = char_tokenizer([chr(code) for code in range(FIRST, FIRST + shape.vocab_size - 1)])
    hub.save(model, folder, Tokenizer(plain._core, plain.eot, chat_template=TEMPLATE))


def text(count: int, seed: int = 0) -> str:
    """Return text of so many tokens."""
    return "".join(chr(FIRST + (7 * seed + 3 * place) % 90) for place in range(count))


def peak_of_processes(port: int) -> int:
    """Return the bytes that the service on a port and the processes it started hold at most, each by itself."""
    statuses = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            lines = (entry / "status").read_text().splitlines()
            statuses[int(entry.name)] = dict(line.split(":", 1) for line in lines if ":" in line)
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in statuses}
    family = {pid for pid, words in commands.items() if "serve" in words and str(port) in words}
    while more := {pid for pid, found in statuses.items() if int(found["PPid"]) in family} - family:
        family |= more
    return sum(int(statuses[pid]["VmHWM"].split()[0]) * 1024 for pid in family if "VmHWM" in statuses[pid])


def metrics(port: int, names: Sequence[str]) -> dict[str, float]:
    """Return some of the service's counters."""
    lines = httpx2.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("gossamer_tokens_total")]
    return {name: sum(float(line.split()[-1]) for line in counts if f'"{name}"' in line) for name in names}


def measure(shape: Shape) -> dict[str, Any]:
    """Serve the shape, and return what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # whose memory is free again
            pool.apply(write_checkpoint, (shape, folder))
        began, port = time.perf_counter(), free_port()
        with serving(["-m", "gossamer.cli", "serve", folder, "--port", str(port)], port):
            found: dict[str, Any] = {"ready_seconds": time.perf_counter() - began}
            asked = {"messages": [{"role": "user", "content": text(PROMPT)}], "max_tokens": ANSWER}
            began = time.perf_counter()
            answer = httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, timeout=600)
            answer.raise_for_status()
            found["chat_seconds"] = time.perf_counter() - began
            found["chat_tokens"] = answer.json()["usage"]["completion_tokens"]
            for clients in (1, 4):
                turn = http_turn(port, {"max_tokens": ANSWER})
                found[f"streams_{clients}"] = turn([text(PROMPT, seed) for seed in range(clients)], clients).figures()
            found["drafts"] = metrics(port, ("drafted", "accepted"))
            found["peak_bytes"] = peak_of_processes(port)
    return found


def report(name: str, found: dict[str, Any], about: dict[str, Any]) -> str:
    """Print what was measured."""
    rows = [
        ("seconds until it is ready", f"{found['ready_seconds']:.1f}"),
        ("memory of all its processes at most, GiB", f"{found['peak_bytes'] / 2**30:.2f}"),
        (f"a message of {found['chat_tokens']} tokens, seconds", f"{found['chat_seconds']:.1f}"),
    ]
    for clients in (1, 4):
        figures = found[f"streams_{clients}"]
        rows.append((f"streamed to {clients}: tokens/s", f"{figures['tokens_per_second']:.1f}"))
        rows.append((f"streamed to {clients}: seconds to the first token", f"{figures['first_token']['p50']:.2f}"))
    rows.append(("tokens drafted and accepted", " and ".join(f"{count:.0f}" for count in found["drafts"].values())))
    return f"### gossamer serve, Qwen3.5-{name}\n\n{describe(about)}\n\n{table(('', ''), rows)}\n"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="0.8b", help="network")
    parser.add_argument("--quick", action="store_true", help="a tiny network, to see that all of it runs")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    arguments = parser.parse_args()
    shapes = QUICK if arguments.quick else {arguments.shape: SHAPES[arguments.shape]}
    about = machine()
    for name, shape in shapes.items():
        found = measure(shape)
        print(report(name, found, about), flush=True)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps({"machine": about, "shape": name, "serve": found}, indent=1))


if __name__ == "__main__":
    main()
