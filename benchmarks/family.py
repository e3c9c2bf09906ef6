"""How large a checkpoint of Qwen3.5 does a small machine serve and train, beside transformers on the same weights?

    python benchmarks/family.py [--shape 0.8b 2b] [--rounds 3] [--training-rounds 1] [--no-training] [--their-bf16]
                                [--attempts [prompt] [training]] [--quick] [--json FILE]

A checkpoint with random weights in bfloat16 and the exact shape of Qwen3.5-0.8B or 2B is written by transformers into a
temporary folder. Each subject loads it in a process of its own: gossamer as `gossamer serve` does, with the weights in
bfloat16 as they are stored, and transformers in float32. Then they take turns: a prompt of 512 tokens and its next
token, and a prompt of 16 tokens that is continued greedily by 32, without drafts. Files are in the system's cache when
they are loaded. Peak memory is that of the whole process, after loading and at the end.

A CPU without bfloat16 units multiplies hundreds of times more slowly in that type by PyTorch, so transformers' figures
in bfloat16 are left out; --their-bf16 measures its 16 tokens once.

Training steps are those of `train_step.py`: one row of 512 tokens, float32, AdamW. A process of either has 12 bytes a
parameter of weights and optimizer state and 4 of gradients, so they have their turns one after the other, each in a
fresh process; the first step is not counted. They come last, and what is known before them is printed before them.

--attempts measures instead what else was tried for the speed of prompts and of training (family_attempts.py).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import environment  # (before PyTorch; every subject's process inherits it)
import family_attempts
import torch
from measure import describe, machine, table
from peers import AS_CHOSEN, Variant, gossamer_step, random_tokens, transformers_step

PROMPT, SHORT, ANSWER = 512, 16, 32  # tokens
OURS, THEIRS, THEIRS_BF16 = "gossamer, bfloat16", "transformers, float32", "transformers, bfloat16"
STEPS = 2  # of a training process that are counted


@dataclass(frozen=True)
class Shape:
    """The sizes in which networks of the family differ; all others are those of every Qwen3.5."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    linear_num_value_heads: int = 16
    linear_num_key_heads: int = 16
    vocab_size: int = 248_320
    trains: bool = False

    def config(self) -> Any:
        """Return transformers' configuration."""
        import transformers

        sizes = {name: value for name, value in self.__dict__.items() if name != "trains"}
        rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
        return transformers.Qwen3_5TextConfig(**sizes, rope_parameters=rope, tie_word_embeddings=True)


SHAPES = {"0.8b": Shape(1024, 3584, trains=True), "2b": Shape(2048, 6144)}
QUICK = {"tiny": Shape(128, 448, 4, 4, 1, 4, 4, 2048, trains=True)}


def write_checkpoint(shape: Shape, folder: str) -> int:
    """Write a checkpoint with random weights in bfloat16, and return how many parameters it has."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(shape.config(), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


class Subject(Protocol):
    """A program with the checkpoint loaded, which can go on from prompts."""

    def answer(self, prompt: list[int], count: int) -> None:
        """Continue a prompt greedily by so many tokens."""


class Gossamer:
    """The engine on the stored weights."""

    def __init__(self, folder: str, tokenizer: Any, dtype: torch.dtype | None = None) -> None:
        from gossamer import device as devices
        from gossamer import hub
        from gossamer.infer.engine import Engine, EngineOptions

        devices.prepare_process()  # as the command does
        devices.keep_freed_memory()
        options = EngineOptions(max_batch=1, cache_tokens=2 * PROMPT, draft_length=0, prefix_cache_bytes=0)
        self._engine = Engine(hub.load(folder, dtype), tokenizer, options)

    def answer(self, prompt: list[int], count: int) -> None:
        """Continue a prompt greedily by so many tokens."""
        from gossamer.infer.request import Request, SamplingParams

        self._engine.submit(Request("", tuple(prompt), SamplingParams(count, temperature=0.0, ignore_eos=True)))
        while self._engine.has_work:
            for delta in self._engine.step():
                assert delta.error is None, delta.error


class Transformers:
    """transformers' own class and `generate`."""

    def __init__(self, folder: str, dtype: torch.dtype) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        warnings.filterwarnings("ignore")
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def answer(self, prompt: list[int], count: int) -> None:
        """Continue a prompt greedily by so many tokens."""
        ids = torch.tensor([prompt])
        wanted = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        self._model.generate(ids, attention_mask=torch.ones_like(ids), **wanted)


class Process:
    """A process that builds something and then answers calls of a function on it.

    Args:
        work: a function at a module's top level that is called in the new process with a pipe and `arguments`
        is_peer: whether the process has the environment that other programs' users have
    """

    def __init__(self, work: Callable[..., None], *arguments: Any, is_peer: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_guarded, args=(work, theirs, *arguments), daemon=True)
        with mock.patch.dict(os.environ, environment.AS_USERS_HAVE_THEM if is_peer else {}):
            self._process.start()
        theirs.close()

    def ask(self, *question: Any) -> Any:
        """Send a question and return the answer.

        Raises:
            RuntimeError: the process failed or ended; the message says how.
        """
        try:
            self._pipe.send(question)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            answer = RuntimeError("its process ended, out of memory perhaps")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _guarded(work: Callable[..., None], pipe: Connection, *arguments: Any) -> None:
    try:
        work(pipe, *arguments)
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def serve(pipe: Connection, name: str, folder: str, vocab_size: int) -> None:
    """Load the checkpoint when first asked, and then go on from prompts: the seconds, and the peak of memory so far.

    What is imported and the tokenizer, which is made up here, are no part of loading.
    """
    from gossamer.data.tokenizer import char_tokenizer
    from gossamer.device import default_device, peak_memory
    from gossamer.ops.native.library import load

    if name == OURS:
        load()
        tokenizer = char_tokenizer([chr(code) for code in range(0x10000, 0x10000 + vocab_size - 1)])
    else:
        from transformers import Qwen3_5ForCausalLM  # noqa: F401
    pipe.recv()
    began = time.perf_counter()
    if name == OURS:
        subject: Subject = Gossamer(folder, tokenizer)
    else:
        subject = Transformers(folder, torch.bfloat16 if name == THEIRS_BF16 else torch.float32)
    while True:
        pipe.send((time.perf_counter() - began, peak_memory(default_device())))
        prompt, count = pipe.recv()
        began = time.perf_counter()
        subject.answer(prompt, count)


def train(
    pipe: Connection, name: str, shape: Shape, rows: int = 1, length: int = PROMPT, variant: Variant = AS_CHOSEN
) -> None:
    """Take a training step whenever asked: the seconds, and the peak of memory so far."""
    from gossamer.device import default_device, peak_memory
    from gossamer.model.config import ModelConfig

    if name == OURS:
        values = {key: value for key, value in shape.config().to_dict().items() if key != "architectures"}
        step = gossamer_step(replace(ModelConfig.from_dict(values), num_nextn_predict_layers=0), rows, length, variant)
    else:
        step = transformers_step(shape.config(), 1, PROMPT)
    while True:
        pipe.recv()
        began = time.perf_counter()
        step()
        pipe.send((time.perf_counter() - began, peak_memory(default_device())))


def serving(shape: Shape, folder: str, rounds: int, their_bf16: bool) -> dict[str, dict[str, float]]:
    """Return what loading, prompts and answers took of each subject."""
    names = [OURS, THEIRS]
    processes = {name: Process(serve, name, folder, shape.vocab_size, is_peer=name != OURS) for name in names}
    found: dict[str, dict[str, float]] = {}
    for name, process in processes.items():
        seconds, peak = process.ask()
        found[name] = {"load_seconds": seconds, "load_bytes": peak}
    prompts = [random_tokens(shape.vocab_size, 1, length)[0].tolist() for length in (PROMPT, SHORT)]
    kinds = {"prompt": (prompts[0], 1, PROMPT), "decoding": (prompts[1], ANSWER, ANSWER)}
    taken: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):  # the first is not counted
        for kind, (prompt, count, _) in kinds.items():
            for name, process in processes.items():
                seconds, found[name]["peak_bytes"] = process.ask(prompt, count)
                if turn:
                    taken.setdefault((name, kind), []).append(seconds)
    for (name, kind), times in taken.items():
        found[name][kind] = kinds[kind][2] / statistics.median(times)
    for process in processes.values():
        process.close()
    if their_bf16:
        process = Process(serve, THEIRS_BF16, folder, shape.vocab_size, is_peer=True)
        seconds, peak = process.ask()
        found[THEIRS_BF16] = {"load_seconds": seconds, "load_bytes": peak}
        seconds, found[THEIRS_BF16]["peak_bytes"] = process.ask(prompts[1], 1)
        found[THEIRS_BF16]["prompt"] = SHORT / seconds
        process.close()
    return found


def training(shape: Shape, rounds: int) -> dict[str, dict[str, float]]:
    """Return what a training step took of each subject: tokens a second, and the peak of memory."""
    taken: dict[str, list[float]] = {OURS: [], THEIRS: []}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for name, times in taken.items():
            process = Process(train, name, shape, is_peer=name != OURS)
            for step in range(STEPS + 1):
                seconds, peaks[name] = process.ask()
                if step:
                    times.append(seconds)
            process.close()
    return {
        name: {"training": PROMPT / statistics.median(times), "peak_bytes": peaks[name]}
        for name, times in taken.items()
    }


def measure(shape: Shape, rounds: int, their_bf16: bool) -> dict[str, Any]:
    """Return the record of a shape without training."""
    with checkpoint(shape) as (folder, parameters):
        return {"parameters": parameters, "serving": serving(shape, folder, rounds, their_bf16)}


@contextmanager
def checkpoint(shape: Shape) -> Iterator[tuple[str, int]]:
    """Yield a temporary folder with a checkpoint, and how many parameters it has."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:  # whose memory is free again
            parameters = pool.apply(write_checkpoint, (shape, folder))
        yield folder, parameters


def attempt(shape: Shape, kind: str, rounds: int, tokens: int) -> dict[str, Any]:
    """Return what came of the attempts at a goal that is not met."""
    if kind == "training":
        return family_attempts.steps(shape, tokens)
    with checkpoint(shape) as (folder, _):
        return family_attempts.prompts(shape, folder, rounds, tokens)


def ratios(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what is compared between runs: gossamer with transformers in float32."""
    ours, theirs = record["serving"][OURS], record["serving"][THEIRS]
    found = {
        "prompt, speed over transformers": ours["prompt"] / theirs["prompt"],
        "decoding, speed over transformers": ours["decoding"] / theirs["decoding"],
        "loading, speed over transformers": theirs["load_seconds"] / ours["load_seconds"],
        "serving, memory of transformers'": ours["peak_bytes"] / theirs["peak_bytes"],
    }
    if "training" in record:
        ours, theirs = record["training"][OURS], record["training"][THEIRS]
        found["training, speed over transformers"] = ours["training"] / theirs["training"]
        found["training, memory of transformers'"] = ours["peak_bytes"] / theirs["peak_bytes"]
    return found


def report(name: str, record: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Print a record."""
    rows = []
    for subject, row in record["serving"].items():
        memory = [f"{row[key] / 2**30:.2f}" for key in ("load_bytes", "peak_bytes")]
        speeds = [f"{row[key]:.1f}" if key in row else "" for key in ("prompt", "decoding")]
        rows.append((subject, f"{row['load_seconds']:.1f}", *memory, *speeds))
    columns = ("", "loading, s", "GiB after loading", "GiB at most", "prompt, tokens/s", "decoding, tokens/s")
    text = f"### Qwen3.5-{name}, {record['parameters'] / 1e9:.2f}B parameters\n\n{describe(found)}\n\n"
    text += table(columns, rows) + "\n"
    if "training" in record:
        steps = [
            (subject, f"{row['training']:.1f}", f"{PROMPT / row['training']:.1f}", f"{row['peak_bytes'] / 2**30:.2f}")
            for subject, row in record["training"].items()
        ]
        columns = ("training in float32", "tokens/s", f"s per step of {PROMPT}", "GiB at most")
        text += "\n" + table(columns, [(row[0].partition(",")[0], *row[1:]) for row in steps]) + "\n"
    return text + "\n" + table(("", "×"), [(key, f"{value:.2f}") for key, value in ratios(record).items()]) + "\n"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="*", choices=list(SHAPES), default=list(SHAPES), help="networks")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of each subject that are counted, but for training"
    )
    parser.add_argument("--training-rounds", type=int, default=1, help=f"processes of {STEPS} counted steps of either")
    parser.add_argument("--no-training", action="store_true", help="leave training steps out")
    parser.add_argument("--their-bf16", action="store_true", help=f"also transformers in bfloat16, on {SHORT} tokens")
    parser.add_argument("--attempts", nargs="+", choices=("prompt", "training"), default=(), help="what else was tried")
    parser.add_argument("--quick", action="store_true", help="a tiny network and one round, to see that all of it runs")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    arguments = parser.parse_args()
    shapes = QUICK if arguments.quick else {name: SHAPES[name] for name in arguments.shape}
    rounds, found = 1 if arguments.quick else arguments.rounds, machine()
    records: dict[str, dict[str, Any]] = {}

    def show(name: str) -> None:
        """Print what is known so far, because the rest may take many minutes."""
        print(report(name, records[name], found), flush=True)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps({"machine": found, "shapes": records}, indent=1))

    for kind in arguments.attempts:
        for shape in shapes.values():
            print(family_attempts.report(kind, attempt(shape, kind, rounds, PROMPT), found), flush=True)
    for name, shape in () if arguments.attempts else shapes.items():
        records[name] = measure(shape, rounds, arguments.their_bf16)
        show(name)
    for name, shape in shapes.items():
        if shape.trains and not arguments.no_training and not arguments.attempts:
            records[name]["training"] = training(shape, arguments.training_rounds)
            show(name)


if __name__ == "__main__":
    main()
