"""What do long texts cost? The delta rule's time per token, and a whole network's beside transformers.

    python benchmarks/long_context.py [--quick] [--lengths 512 …] [--network-lengths 512 …] [--peer-max 8192]
                                      [--json FILE]

First comes the delta rule, forward and backward, on one row of 512 to 32,768 tokens at micro's heads. A turn passes the
same number of tokens at every length, in rows of that length, so that all turns take equally long. Flatness is the
shortest time per token over the longest. Then comes one row with a single key head on one thread and on more, which
have to share the head. Then comes the micro network on one row: the forward pass without gradients, with logits of the
last token alone, and a training step. gossamer and transformers with its grouped_mm experts have a process each and
take turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before PyTorch)
import torch
from measure import Subject, describe, machine, table, time_in_turns
from peers import gossamer_forward, gossamer_step, model_config, qwen3_next_forward, qwen3_next_step

from gossamer import device as devices
from gossamer.certify.inputs import cast, inputs_of, moved
from gossamer.certify.timing import Call, caller, in_turns
from gossamer.model.config import ModelConfig

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
THREADS_LENGTH = 8192  # tokens of the row that several threads share
QUICK_LENGTHS, QUICK_NETWORK_LENGTHS = (512, 4096, 32768), (512, 2048)
PEER_MAX = 8192  # longest row that transformers gets: beyond, its step takes minutes on two cores
EXPERTS = "grouped_mm"


def delta_rule(config: ModelConfig, lengths: tuple[int, ...], turns: int) -> dict[int, float]:
    """Return the seconds per token, forward and backward, for each length of the row."""
    device = devices.default_device()
    dtype, longest = devices.compute_dtype(device, "auto"), max(lengths)

    def passes(length: int) -> Call:
        inputs = moved(cast(inputs_of("delta_rule", config, [length]), dtype), device)
        inputs.pop("initial_state")
        call, times = caller("delta_rule", inputs), max(1, longest // length)

        def run() -> None:
            for _ in range(times):
                call()

        run()  # warm
        return run

    calls = {str(length): passes(length) for length in lengths}
    medians = in_turns(calls, device, min_seconds=0.0, min_turns=turns)
    return {length: medians[str(length)] / (length * max(1, longest // length)) for length in lengths}


def flatness(per_token: dict[int, float]) -> float:
    """Return the shortest time per token over the longest: 1 if a token costs the same in long and short texts."""
    return min(per_token.values()) / max(per_token.values())


def one_head(config: ModelConfig, turns: int) -> dict[str, dict[int, float]]:
    """Return the seconds, forward and backward, of a row with one key head, by operation and number of threads."""
    one = replace(
        config,
        num_attention_heads=config.num_attention_heads // config.num_key_value_heads,
        num_key_value_heads=1,
        linear_num_value_heads=config.linear_num_value_heads // config.linear_num_key_heads,
        linear_num_key_heads=1,
    )
    device, num_threads = devices.default_device(), torch.get_num_threads()
    counts = sorted({min(2**power, num_threads) for power in range(num_threads.bit_length() + 1)})
    calls: dict[str, Call] = {}
    for operation in ("delta_rule", "attention"):
        inputs = moved(cast(inputs_of(operation, one, [THREADS_LENGTH]), torch.float32), device)
        inputs.pop("initial_state", None)
        call = caller(operation, inputs)
        call()  # warm
        for count in counts:
            calls[f"{operation} {count}"] = _on_threads(call, count)
    try:
        medians = in_turns(calls, device, min_seconds=0.0, min_turns=turns)
    finally:
        torch.set_num_threads(num_threads)
    return {
        operation: {count: medians[f"{operation} {count}"] for count in counts}
        for operation in ("delta_rule", "attention")
    }


def _on_threads(call: Call, count: int) -> Call:
    def run() -> None:
        torch.set_num_threads(count)
        call()

    return run


def network(config: ModelConfig, lengths: tuple[int, ...], peer_max: int, turns: int) -> list[dict[str, Any]]:
    """Return a row for each length, kind of work and program: seconds per token and the process's peak memory."""
    rows = []
    for length in lengths:
        for kind in ("forward", "training step"):
            subjects = [_subject(config, program, kind, length) for program in _programs(length, peer_max)]
            time_in_turns(subjects, turns)
            for program, subject in zip(_programs(length, peer_max), subjects, strict=True):
                row = {"length": length, "kind": kind, "program": program}
                if subject.failure:
                    rows.append(row | {"failure": subject.failure})
                else:
                    took = subject.median
                    rows.append(row | {"seconds_per_token": took / length, "peak_bytes": subject.peak_bytes})
    return rows


def _programs(length: int, peer_max: int) -> tuple[str, ...]:
    return ("gossamer", "transformers") if length <= peer_max else ("gossamer",)


def _subject(config: ModelConfig, program: str, kind: str, length: int) -> Subject:
    builders: dict[tuple[str, str], tuple[Callable[..., Call], tuple[Any, ...]]] = {
        ("gossamer", "forward"): (gossamer_forward, (config, 1, length)),
        ("gossamer", "training step"): (gossamer_step, (config, 1, length)),
        ("transformers", "forward"): (qwen3_next_forward, (config, EXPERTS, 1, length)),
        ("transformers", "training step"): (qwen3_next_step, (config, EXPERTS, 1, length)),
    }
    build, arguments = builders[program, kind]
    return Subject(program, build, *arguments, peer=program == "transformers")


def _of(record: dict[str, Any], kind: str, length: int, program: str) -> dict[str, Any]:
    """The row of one program, empty if it was not given this length or failed."""
    for row in record["network"]:
        if (row["kind"], row["length"], row["program"]) == (kind, length, program) and "failure" not in row:
            return dict(row)
    return {}


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Return what is compared between runs: flatness, and gossamer against transformers at each common length."""
    shortest, longest = min(record["delta_rule"], key=int), max(record["delta_rule"], key=int)
    found = {f"delta rule, flatness from {shortest} to {longest}": record["flatness"]}
    for row in record["network"]:
        ours, theirs = (_of(record, row["kind"], row["length"], name) for name in ("gossamer", "transformers"))
        if ours and theirs:
            where = f"{row['kind']}, {row['length']} tokens"
            found[f"{where}: speed over transformers"] = theirs["seconds_per_token"] / ours["seconds_per_token"]
            found[f"{where}: memory under transformers"] = theirs["peak_bytes"] / ours["peak_bytes"]
    return found


def report_delta_rule(record: dict[str, Any]) -> str:
    """Print the table of the delta rule."""
    per_token = {int(length): seconds for length, seconds in record["delta_rule"].items()}
    first = per_token[min(per_token)]
    rows = [(f"{length:,}", f"{1e6 * seconds:.2f}", f"{seconds / first:.2f}") for length, seconds in per_token.items()]
    return f"{table(('tokens', 'µs per token', '× shortest'), rows)}\n\nflatness {record['flatness']:.2f}"


def report_one_head(record: dict[str, Any]) -> str:
    """Print the table of one head."""
    rows = []
    for operation, timed in record["one_head"].items():
        one_thread = timed["1"]
        rows += [
            (operation, count, f"{1000 * seconds:.1f}", f"{one_thread / seconds:.2f}")
            for count, seconds in timed.items()
        ]
    return table(("one key head", "threads", "ms", "× one thread"), rows)


def report_network(record: dict[str, Any]) -> str:
    """Print the table of the network."""
    rows = []
    for kind in ("forward", "training step"):
        for length in dict.fromkeys(row["length"] for row in record["network"]):
            cells = [f"{kind}, {length:,} tokens"]
            ours, theirs = (_of(record, kind, length, name) for name in ("gossamer", "transformers"))
            for found in (ours, theirs):
                cells += (
                    [f"{1e6 * found['seconds_per_token']:.0f}", f"{found['peak_bytes'] / 2**20:.0f}"]
                    if found
                    else [_why_not(record, kind, length, found is theirs), ""]
                )
            ratio = theirs["seconds_per_token"] / ours["seconds_per_token"] if ours and theirs else None
            rows.append((*cells, "" if ratio is None else f"{ratio:.2f}"))
    columns = ("", "gossamer, µs per token", "peak MiB", "transformers, µs per token", "peak MiB", "× transformers")
    return table(columns, rows)


def _why_not(record: dict[str, Any], kind: str, length: int, theirs: bool) -> str:
    program = "transformers" if theirs else "gossamer"
    for row in record["network"]:
        if (row["kind"], row["length"], row["program"]) == (kind, length, program):
            return str(row["failure"])
    return "not tried"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", nargs="*", type=int, help="lengths of the delta rule's row in tokens")
    parser.add_argument(
        "--network-lengths", nargs="*", type=int, help="lengths of the network's row in tokens; none leaves it out"
    )
    parser.add_argument(
        "--peer-max",
        "--peer-most",
        dest="peer_max",
        type=int,
        default=PEER_MAX,
        help="longest row that transformers is given",
    )
    parser.add_argument("--turns", type=int, help="turns that are counted")
    parser.add_argument("--quick", action="store_true", help="fewer lengths and turns")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    arguments = parser.parse_args()
    quick = arguments.quick
    lengths = tuple(arguments.lengths or (QUICK_LENGTHS if quick else LENGTHS))
    standard = QUICK_NETWORK_LENGTHS if quick else LENGTHS
    network_lengths = standard if arguments.network_lengths is None else tuple(arguments.network_lengths)
    devices.keep_freed_memory()
    config = model_config("micro", {})
    record: dict[str, Any] = {"machine": machine()}
    print(f"### Long texts, micro\n\n{describe(record['machine'])}\n", flush=True)
    per_token = delta_rule(config, lengths, arguments.turns or (3 if quick else 7))
    record |= {"delta_rule": {str(length): took for length, took in per_token.items()}, "flatness": flatness(per_token)}
    print(f"Delta rule, forward and backward, one row\n\n{report_delta_rule(record)}\n", flush=True)
    if not devices.is_accelerator(devices.default_device()):
        timed = one_head(config, arguments.turns or (3 if quick else 7))
        record["one_head"] = {
            name: {str(count): seconds for count, seconds in by.items()} for name, by in timed.items()
        }
        print(f"One row of {THREADS_LENGTH:,} tokens on threads\n\n{report_one_head(record)}\n", flush=True)
    record["network"] = network(config, network_lengths, arguments.peer_max, arguments.turns or (2 if quick else 3))
    if network_lengths:
        longest = f"{arguments.peer_max:,}"
        print(f"The network, one row; transformers gets up to {longest} tokens\n\n{report_network(record)}\n")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
