"""How fast is the engine beside transformers: one request, sixteen, a long prompt, a prompt seen before, drafts?

    python benchmarks/decode.py [--turns 5] [--size micro] [--quick] [--attempts] [--run DIR] [--llama] [--json FILE]

The network has a recipe's size and random weights in float32. Every subject has a process of its own; the processes
take turns, and medians are compared. A request has a prompt of 16 tokens and is continued greedily by 64; its time
includes that of the prompt. Prompts of 4,096 + 16 tokens are continued by one token: new to the engine each time, or
with the same 4,096 tokens in front of 16 others. transformers decodes with `generate` and its cache, with experts in
its grouped_mm implementation. Weights of int8 are those of the same network, rounded. With --run, a trained model with
a multi-token-prediction head is decoded without drafts and with as many as pay, at temperature 0.8, and its loss on the
run's validation text is measured with its weights as stored and rounded to int8. With --llama, llama.cpp takes its
turns too, on the same weights (see llama.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import environment  # noqa: F401 (before PyTorch)
import llama
import torch
from decode_bounds import prompt_rate, step_rate
from measure import Call, Subject, describe, machine, table, time_in_turns
from peers import Variant, model_config, random_tokens

from gossamer.model.config import ModelConfig

SHORT, LONG, ANSWER, TOGETHER = 16, 4096, 64, 16  # tokens, tokens, tokens, requests
ONE, TOGETHER_NAME, INT8 = "one request", f"{TOGETHER} requests", ", int8"
EXPERTS = "grouped_mm"


def random_network(config: ModelConfig) -> tuple[Any, Any]:
    """Return a network with random weights, and a tokenizer with one character per token."""
    from gossamer import device as devices
    from gossamer.data.tokenizer import char_tokenizer
    from gossamer.model.causal_lm import CausalLM

    devices.prepare_process()  # as the command does
    devices.keep_freed_memory()
    devices.seed_everything(0)
    model = CausalLM(config).to(devices.default_device()).eval().requires_grad_(False)
    return model, char_tokenizer(["".join(chr(0x4E00 + number) for number in range(config.vocab_size - 1))])


def gossamer_engine(config: ModelConfig, **options: Any) -> Any:
    """Return an engine for such a network."""
    from gossamer.infer.engine import Engine, EngineOptions

    return Engine(*random_network(config), EngineOptions(**options))


def answer(engine: Any, prompts: list[list[int]], count: int, **sampling: Any) -> None:
    """Run all requests from their first step to their last."""
    from gossamer.infer.request import Request, SamplingParams

    params = SamplingParams(count, ignore_eos=True, **{"temperature": 0.0} | sampling)
    for number, prompt in enumerate(prompts):
        engine.submit(Request(str(number), tuple(prompt), params))
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None, delta.error


def gossamer_requests(config: ModelConfig, requests: int, weights: str = "stored") -> Call:
    """Return a call that continues short prompts together."""
    engine = gossamer_engine(config, draft_length=0, prefix_cache_bytes=0, weights=weights)
    prompts = random_tokens(config.vocab_size, requests, SHORT).tolist()
    return lambda: answer(engine, prompts, ANSWER)


def gossamer_prompt(config: ModelConfig, seen: bool, **options: Any) -> Call:
    """Return a call with a long prompt whose first 4,096 tokens are those of every call, or of none before."""
    engine = gossamer_engine(config, draft_length=0, **options)
    source = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(config.vocab_size, (count,), generator=source).tolist()

    first = tokens(LONG)

    def call() -> None:
        answer(engine, [[*(first if seen else tokens(LONG)), *tokens(SHORT)]], 1)

    call()
    return call


def attempt(variant: Variant, build: Callable[..., Call], *arguments: Any) -> Call:
    """Return another subject's call, run in another way."""
    from gossamer import ops

    if variant.threads:
        torch.set_num_threads(variant.threads)
    call, operations = build(*arguments), ops.pytorch_only() if variant.pytorch_alone else variant.operations

    def otherwise() -> object:
        with ops.forced(**operations):
            return call()

    return otherwise


def small_pages(build: Callable[..., Call], *arguments: Any) -> Call:
    """Return a call whose weights lie where the C library has put them, in pages of the usual size."""
    with mock.patch("gossamer.model.decode.decoder.use_huge_pages"):
        return build(*arguments)


def gossamer_chunks(config: ModelConfig) -> Call:
    """Return a call with a new long prompt in one chunk, with a snapshot at its end alone."""
    return gossamer_prompt(config, False, prefill_chunk=LONG, snapshot_interval=LONG)


def gossamer_run(folder: str, draft_length: int | str) -> Call:
    """Return a call in which a trained model goes on from an empty prompt."""
    from gossamer import device as devices
    from gossamer import hub
    from gossamer.data.tokenizer import Tokenizer
    from gossamer.infer.engine import Engine, EngineOptions

    devices.prepare_process()  # as the command does
    devices.keep_freed_memory()
    directory = hub.find_model(Path(folder))
    model, tokenizer = hub.load(directory, device=devices.default_device()).eval(), Tokenizer.load(directory)
    engine = Engine(model, tokenizer, EngineOptions(draft_length=draft_length, prefix_cache_bytes=0))  # type: ignore[arg-type]
    return lambda: answer(engine, [[tokenizer.eot_id]], 4 * ANSWER, temperature=0.8, seed=0)


def losses(folder: str) -> dict[str, float]:
    """Return a run's mean loss over its validation sets, with weights as the engine may hold them."""
    from gossamer.run.validate import evaluate_run

    found = {}
    for weights in ("stored", "int8"):
        result = evaluate_run(Path(folder), weights=weights)
        sets = [result] if "loss" in result else list(result.values())
        found[weights] = statistics.fmean(one["loss"] for one in sets)
    return found


def transformers_model(config: ModelConfig) -> Any:
    """Return the same network in transformers."""
    import transformers

    from gossamer import device as devices

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    theirs = transformers.Qwen3NextConfig(**config.to_dict(), experts_implementation=EXPERTS)
    with devices.default_device():
        return transformers.AutoModelForCausalLM.from_config(theirs, dtype=torch.float32).eval()


def transformers_requests(config: ModelConfig, length: int, count: int) -> Call:
    """Return a call in which transformers continues one prompt."""
    model = transformers_model(config)
    ids = random_tokens(config.vocab_size, 1, length).to(model.device)
    wanted = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}

    @torch.inference_mode()
    def call() -> object:
        return model.generate(ids, attention_mask=torch.ones_like(ids), **wanted)

    return call


Subjects = list[tuple[str, int, Callable[..., Call], tuple[Any, ...]]]


def attempts(config: ModelConfig) -> Subjects:
    """Return what else was tried for the goals that are not met."""
    long = LONG + SHORT
    ways = {"one thread": Variant(threads=1), "through PyTorch alone": Variant(pytorch_alone=True)}
    found: Subjects = []
    for way, variant in ways.items():
        found.append((f"{ONE}, {way}", ANSWER, attempt, (variant, gossamer_requests, config, 1)))
        found.append(
            (f"{TOGETHER_NAME}, {way}", TOGETHER * ANSWER, attempt, (variant, gossamer_requests, config, TOGETHER))
        )
        found.append((f"long prompt, {way}", long, attempt, (variant, gossamer_prompt, config, False)))
    for name, requests in ((ONE, 1), (TOGETHER_NAME, TOGETHER)):
        found.append((f"{name}, small pages", requests * ANSWER, small_pages, (gossamer_requests, config, requests)))
    found.append((f"long prompt, {LONG} tokens a chunk", long, gossamer_chunks, (config,)))
    variant = Variant(operations={"grouped_mlp": "sorted"})
    found.append(("long prompt, experts through the BLAS", long, attempt, (variant, gossamer_prompt, config, False)))
    variant = Variant(operations={"paged_attention": "sdpa"})
    found.append(("long prompt, attention through PyTorch", long, attempt, (variant, gossamer_prompt, config, False)))
    return found


def measure(size: str, turns: int, run: str | None, with_llama: bool, others: bool) -> dict[str, Any]:
    """Return the record: seconds of each subject, and what it did in them; with `others`, those of the attempts too."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(size, turns, run, Path(folder) if with_llama else None, others)


def _measure(size: str, turns: int, run: str | None, llama_folder: Path | None, others: bool) -> dict[str, Any]:
    config = model_config(size, {})
    config = replace(config, max_position_embeddings=max(config.max_position_embeddings, 2 * LONG))
    subjects: Subjects = [
        (ONE, ANSWER, gossamer_requests, (config, 1)),
        ("one request, transformers", ANSWER, transformers_requests, (config, SHORT, ANSWER)),
        (TOGETHER_NAME, TOGETHER * ANSWER, gossamer_requests, (config, TOGETHER)),
        (ONE + INT8, ANSWER, gossamer_requests, (config, 1, "int8")),
        (TOGETHER_NAME + INT8, TOGETHER * ANSWER, gossamer_requests, (config, TOGETHER, "int8")),
        ("long prompt", LONG + SHORT, gossamer_prompt, (config, False)),
        ("long prompt, transformers", LONG + SHORT, transformers_requests, (config, LONG + SHORT, 1)),
        ("long prompt seen before", LONG + SHORT, gossamer_prompt, (config, True)),
    ]
    if run is not None:
        subjects += [
            ("trained, no drafts", 4 * ANSWER, gossamer_run, (run, 0)),
            ("trained, drafts", 4 * ANSWER, gossamer_run, (run, "auto")),
        ]
    if run is not None and others:
        subjects += [
            (f"trained, {number} drafts always", 4 * ANSWER, gossamer_run, (run, number)) for number in (1, 2, 4)
        ]
    if others:
        subjects += attempts(config)
    found = machine()
    if llama_folder is not None:
        file = llama.write_gguf(config, llama_folder)
        found["llama"] = f"{llama.version()}, logits differ by {llama.agreement(config, file):.0e} of the largest"
        subjects += [
            ("one request, llama.cpp", ANSWER, llama.llama_requests, (str(file), SHORT, ANSWER)),
            ("long prompt, llama.cpp", LONG + SHORT, llama.llama_requests, (str(file), LONG + SHORT, 1)),
        ]
    peers = (transformers_requests, llama.llama_requests)
    started = [Subject(name, build, *arguments, peer=build in peers) for name, _, build, arguments in subjects]
    time_in_turns(started, turns, warm_up=1, waking=True)
    results = {}
    for (name, tokens, _, _), subject in zip(subjects, started, strict=True):
        if subject.failure:
            results[name] = {"failure": subject.failure}
            continue
        results[name] = {
            "tokens": tokens,
            "seconds": subject.median,
            "fastest": min(subject.seconds),
            "slowest": max(subject.seconds),
            "tokens_per_second": tokens / subject.median,
            "peak_bytes": subject.peak_bytes,
        }
    record = {"size": size, "machine": found, "threads": torch.get_num_threads(), "results": results}
    record["bounds"] = {
        ONE: step_rate(config, 1, found),
        ONE + INT8: step_rate(config, 1, found, bytes_per_number=1),
        TOGETHER_NAME: step_rate(config, TOGETHER, found),
        TOGETHER_NAME + INT8: step_rate(config, TOGETHER, found, bytes_per_number=1),
        "long prompt": prompt_rate(config, LONG, found),
    }
    return record if run is None else record | {"losses": losses(run)}


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Return what is compared between runs: the engine with transformers, and with itself."""
    rate = {name: row["tokens_per_second"] for name, row in record["results"].items() if "failure" not in row}
    compared = {
        "one request, speed over transformers": (ONE, "one request, transformers"),
        "one request, speed over llama.cpp": (ONE, "one request, llama.cpp"),
        "prompt, speed over llama.cpp": ("long prompt", "long prompt, llama.cpp"),
        f"{TOGETHER} requests over one": (TOGETHER_NAME, ONE),
        "prompt, speed over transformers": ("long prompt", "long prompt, transformers"),
        "prompt seen before over new": ("long prompt seen before", "long prompt"),
        "int8 over stored, one request": (ONE + INT8, ONE),
        f"int8 over stored, {TOGETHER} requests": (TOGETHER_NAME + INT8, TOGETHER_NAME),
        "drafts over none": ("trained, drafts", "trained, no drafts"),
    }
    return {name: rate[one] / rate[other] for name, (one, other) in compared.items() if one in rate and other in rate}


def report(record: dict[str, Any]) -> str:
    """Print a record."""
    rows: list[tuple[object, ...]] = []
    for name, row in record["results"].items():
        if "failure" in row:
            rows.append((name, row["failure"], "", "", ""))
            continue
        span = f"{1000 * row['seconds']:.0f} ({1000 * row['fastest']:.0f}–{1000 * row['slowest']:.0f})"
        bound = record["bounds"].get(name)
        share = "" if bound is None else f"{bound:.0f}, {row['tokens_per_second'] / bound:.0%}"
        rows.append((name, span, f"{row['tokens_per_second']:.0f}", share, f"{row['peak_bytes'] / 2**20:.0f}"))
    title = f"### Decoding, {record['size']}, {record['threads']} threads\n\n{describe(record['machine'])}\n"
    if "llama" in record["machine"]:
        title += f"{record['machine']['llama']}\n"
    times = table(("", "ms", "tokens/s", "at the machine's rates", "peak MiB"), rows)
    quotients = table(("", "×"), [(name, f"{value:.2f}") for name, value in ratios(record).items()])
    if "losses" not in record:
        return f"{title}\n{times}\n\n{quotients}\n"
    losses = table(
        ("weights", "validation loss, nats per token"), [(k, f"{v:.4f}") for k, v in record["losses"].items()]
    )
    return f"{title}\n{times}\n\n{quotients}\n\n{losses}\n"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="micro", help="recipe of the network")
    parser.add_argument("--turns", type=int, help="calls of each subject that are counted")
    parser.add_argument("--quick", action="store_true", help="three turns instead of seven")
    parser.add_argument("--run", help="a trained run or Hugging Face directory, for drafts")
    parser.add_argument("--llama", action="store_true", help="llama.cpp too, through llama-cpp-python")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    parser.add_argument("--attempts", action="store_true", help="also what was tried for the goals that are not met")
    arguments = parser.parse_args()
    turns = arguments.turns or (3 if arguments.quick else 7)
    record = measure(arguments.size, turns, arguments.run, arguments.llama, arguments.attempts)
    print(report(record))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
