"""What else was tried for the goals of `family.py` that are not met: the speed of prompts and of training steps.

Each attempt runs beside transformers in the same run, for prompts in alternation. Training steps are taken on half of
the shape's layers, so that a process fits into 14 GiB, each attempt in a fresh process after the other.
`python benchmarks/family.py --attempts prompt training` runs them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from measure import describe, table
from peers import AS_CHOSEN, Variant
from torch import Tensor

AS_IT_IS = "as chosen"


@dataclass(frozen=True)
class Reading:
    """A way for the engine to read a prompt that is not the one it chooses.

    Attributes:
        float32: whether the weights are widened when they are loaded
        pytorch_alone: whether every operation runs as on a machine without a compiler
        packed: whether MKL gets the weights of the layers in its own order
    """

    float32: bool = False
    pytorch_alone: bool = False
    packed: bool = False


READINGS = {
    AS_IT_IS: Reading(),
    "weights in float32": Reading(float32=True),
    "weights in float32, PyTorch alone": Reading(float32=True, pytorch_alone=True),
    "weights in float32, packed for MKL": Reading(float32=True, packed=True),
}

# How a step of 512 tokens is taken: rows, tokens of each, and the rest.
STEPS: dict[str, tuple[int, int, Variant]] = {
    AS_IT_IS: (1, 512, AS_CHOSEN),
    "recomputation": (1, 512, Variant(recompute=True)),
    "a sampled vocabulary of 8,192": (1, 512, Variant(sampled_vocab_size=8192)),
    "4 rows of 128": (4, 128, AS_CHOSEN),
    "PyTorch alone": (1, 512, Variant(pytorch_alone=True)),
}


def packed_linear() -> Callable[..., Tensor]:
    """Return F.linear with the weights that many rows are multiplied with packed by MKL when they are first used."""
    known: dict[tuple[int, int], Tensor] = {}
    linear = F.linear

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows < 64 or weight.dtype != torch.float32 or bias is not None:
            return linear(x, weight, bias)
        key = weight.data_ptr(), rows
        if key not in known:
            known[key] = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        y: Tensor = torch.ops.mkl._mkl_linear(x, known[key], weight, None, rows)
        return y

    return call


def read(pipe: Connection, reading: Reading, folder: str, vocab_size: int, tokens: int) -> None:
    """Load the checkpoint, and read a prompt whenever asked: the seconds, and the peak of memory so far."""
    from family import Gossamer

    from gossamer import ops
    from gossamer.data.tokenizer import char_tokenizer
    from gossamer.device import default_device, peak_memory

    tokenizer = char_tokenizer([chr(code) for code in range(0x10000, 0x10000 + vocab_size - 1)])
    subject = Gossamer(folder, tokenizer, torch.float32 if reading.float32 else None)
    alone = ops.pytorch_only() if reading.pytorch_alone else {}
    patched = mock.patch.object(F, "linear", packed_linear()) if reading.packed else nullcontext()
    prompt = torch.arange(tokens).tolist()
    with ops.forced(**alone), patched:
        while True:
            pipe.recv()
            began = time.perf_counter()
            subject.answer(prompt, 1)
            pipe.send((time.perf_counter() - began, peak_memory(default_device())))


def prompts(shape: Any, folder: str, rounds: int, tokens: int) -> dict[str, dict[str, Any]]:
    """Return tokens a second of each way to read a prompt, and those of transformers in the same turns."""
    from family import THEIRS, Process, serve

    theirs = Process(serve, THEIRS, folder, shape.vocab_size, is_peer=True)
    theirs.ask()
    theirs.ask(torch.arange(tokens).tolist(), 1)  # not counted
    prompt, found = torch.arange(tokens).tolist(), dict[str, dict[str, Any]]()
    for name, reading in READINGS.items():
        ours = Process(read, reading, folder, shape.vocab_size, tokens, is_peer=False)
        taken, peers, peak = list[float](), list[float](), 0
        try:
            ours.ask()  # not counted
            for _ in range(rounds):
                seconds, peak = ours.ask()
                taken.append(seconds)
                peers.append(theirs.ask(prompt, 1)[0])
        except RuntimeError as error:
            found[name] = {"failure": str(error)}
        else:
            found[name] = _row(tokens, statistics.median(taken), statistics.median(peers), peak)
        ours.close()
    theirs.close()
    return found


def _row(tokens: int, seconds: float, peer: float, peak: int) -> dict[str, Any]:
    return {"speed": tokens / seconds, "ratio": peer / seconds, "peak_bytes": peak}


def steps(shape: Any, tokens: int) -> dict[str, dict[str, Any]]:
    """Return tokens a second of each way to take a training step, beside transformers in the same run."""
    from family import OURS, THEIRS, Process, train

    half = replace(shape, num_hidden_layers=shape.num_hidden_layers // 2)

    def step(name: str, *arguments: Any) -> tuple[float, int]:
        process = Process(train, name, half, *arguments, is_peer=name == THEIRS)
        try:
            process.ask()
            seconds, peak = process.ask()
        finally:
            process.close()
        return seconds, peak

    peer, peak = step(THEIRS)
    found: dict[str, dict[str, Any]] = {THEIRS: _row(tokens, peer, peer, peak)}
    for name, (rows, length, variant) in STEPS.items():
        try:
            seconds, peak = step(OURS, rows, length, variant)
            found[name] = _row(tokens, seconds, peer, peak)
        except RuntimeError as error:
            found[name] = {"failure": str(error)}
    return found


def report(kind: str, found: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    """Print what came of the attempts of a kind."""
    rows = []
    for name, row in found.items():
        if "failure" in row:
            rows.append((name, row["failure"], "", ""))
        else:
            rows.append((name, f"{row['speed']:.1f}", f"{row['ratio']:.2f}", f"{row['peak_bytes'] / 2**30:.2f}"))
    columns = ("", "tokens/s", "× transformers' speed", "GiB at most")
    return f"### Attempts: {kind}\n\n{describe(machine)}\n\n{table(columns, rows)}\n"
