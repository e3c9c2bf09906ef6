"""Decoding as the service does it, beside the float64 reference on the CPU.

What is called here is what the service runs: the decoder with its pool of states, the engine with its drafts. Sequences
go on together, some of their tokens are rejected and forgotten, and every logit is held against a full forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer import ops
from gossamer.certify import network
from gossamer.certify.aten_operators import culprit
from gossamer.certify.checks import Check, judge, named
from gossamer.certify.exactness import largest_error, tolerance
from gossamer.certify.operations import source_of
from gossamer.data.tokenizer import char_tokenizer
from gossamer.errors import exception_line
from gossamer.hub.names import load_dtype
from gossamer.infer.engine import Engine
from gossamer.infer.options import EngineOptions
from gossamer.infer.request import Request, SamplingParams
from gossamer.model.causal_lm import CausalLM
from gossamer.model.decode.decoder import Decoder
from gossamer.model.decode.drafts import DraftSampling
from gossamer.model.decode.pool import StatePool
from gossamer.ops.registry import Implementation
from gossamer.ops.sequences import Sequences

CPU = torch.device("cpu")
PAGE_SIZE, MAX_STEP_TOKENS = 8, 4
ROWS, LENGTH, LENGTHS = 2, 24, (5, 2, 1, 8, 1, 4, 3)  # sequences, their tokens, and the forward passes they come in
ANSWER_TOKENS = 16
# Of the largest logit. Seen on a CPU: 2e-7, and with weights in bfloat16 1e-2, where a token may go to another expert.
LOGITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def served_operations() -> list[str]:
    """Name the operations that only the service uses: they change the states of sequences in place."""
    return ["decode_layers", "delta_step", "draft_tokens", "paged_attention", "sample_tokens", "small_linear"]


def check_served_operations(device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Check]:
    """Check each implementation of each operation that only the service uses, by what is decoded through it."""
    for operation in served_operations():
        for one in ops.OPERATIONS[operation].implementations:
            if reason := one.obstacle(device):
                yield Check("operations", f"{operation} {one.name}", "not run", reason)
                continue
            for dtype in dtypes:
                # Tokens are sampled from logits in float32, and in narrower types rounding decides between drafts.
                if dtype == torch.float32 or operation not in _TOKEN_ERRORS:
                    yield _check_implementation(operation, one, device, dtype)


def check_decoding(device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Check]:
    """Check decoding token by token, and the engine's answers, with the network's weights in each of these types."""
    for dtype in dtypes:
        for name, measure in (("decoding token by token", _step_error), ("the engine's answers", _answer_error)):
            yield _check("network", name, partial(measure, device, dtype), LOGITS[dtype], device, dtype)


def _check_implementation(operation: str, one: Implementation, device: torch.device, dtype: torch.dtype) -> Check:
    choice = {operation: one.name}
    if operation in ("delta_step", "paged_attention"):
        choice["decode_layers"] = "reference"  # the native one does without these operations
    measure, allowed = _TOKEN_ERRORS.get(operation, (_logits_error, tolerance(operation, one.name, dtype)))

    def run() -> float:
        with ops.forced(**choice):
            return measure(device, dtype)

    name, where = f"{operation} {one.name}", source_of(one)
    return _check("operations", name, run, allowed, device, dtype, where, case="sequences that are decoded together")


def _check(
    group: str,
    name: str,
    run: Callable[[], float],
    allowed: float,
    device: torch.device,
    dtype: torch.dtype,
    where: str = "src/gossamer/model/decode",
    case: str = "",
) -> Check:
    """Measure an error and judge it; a failure tells the first aten operator that is wrong."""
    about: dict[str, Any] = {"dtype": named(dtype), "case": case}
    start = time.perf_counter()
    try:
        error = run()
    except Exception as problem:  # what fails must not keep the others from their turn
        return Check(group, name, "fail", f"{exception_line(problem)}{culprit(run, device)}", where=where, **about)
    check = judge(group, name, error, allowed, where=where, seconds=time.perf_counter() - start, **about)
    return check if check.status == "pass" else replace(check, message=check.message + culprit(run, device))


def served_network(device: torch.device, dtype: torch.dtype) -> CausalLM:
    """Return the network as the service holds it, with its weights in `dtype`."""
    model = network.network(CPU).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(load_dtype(name, dtype))
    return model.to(device)


@lru_cache
def _reference() -> tuple[Tensor, Tensor]:
    """Return some tokens and their logits by a full forward pass, in float64 through the references."""
    ids = network.batches(1)[0].input_ids[:ROWS, :LENGTH]
    return ids, full_logits(ids)


def full_logits(ids: Tensor) -> Tensor:
    """Compute the logits of ids [B, T] by a full forward pass on the CPU, in float64 through the references."""
    with torch.no_grad(), ops.forced(**dict.fromkeys(ops.OPERATIONS, "reference")):
        return network.network(CPU, torch.float64)(ids).logits


@torch.inference_mode()
def decode_in_parts(model: CausalLM, ids: Tensor, lengths: Sequence[int], rejected: int = 0) -> Tensor:
    """Compute logits as the service does, from a pool of states with a slot for each row.

    Args:
        model: in evaluation mode
        ids: [B, T], the rows of which are sequences that go on together
        lengths: tokens of each forward pass; up to `MAX_STEP_TOKENS` are a step of decoding, more a part of a prompt
        rejected: wrong tokens that each step of decoding has behind its own, and that the next one forgets

    Returns:
        [B, T, V]
    """
    rows, pages = len(ids), -(-(ids.shape[1] + rejected) // PAGE_SIZE)
    slots = tuple(range(rows))
    tables = tuple(tuple(range(row * pages, (row + 1) * pages)) for row in slots)
    weight, max_step_tokens = model.lm_head.weight, MAX_STEP_TOKENS + rejected
    dtype = devices.hidden_dtype(weight.device, weight.dtype)
    pool = StatePool(model.config, rows, rows * pages, PAGE_SIZE, max_step_tokens, weight.device, dtype)
    decoder, logits = Decoder(model, pool), []
    past = accepted = 0
    for part in ids.to(weight.device).split(list(lengths), dim=1):
        length = part.shape[1]
        is_step = length <= MAX_STEP_TOKENS
        if accepted and not is_step:
            decoder.replay(slots, (accepted,) * rows)
            accepted = 0
        tokens = torch.cat([part, part.new_zeros(rows, rejected)], dim=1) if is_step else part
        count = tokens.shape[1]
        sequences = Sequences(slots, (accepted,) * rows, (past,) * rows, (count,) * rows, tables, PAGE_SIZE)
        hidden = decoder.forward(tokens.flatten(), sequences, speculative=is_step)
        logits.append(decoder.logits(hidden).view(rows, count, len(weight))[:, :length])
        past, accepted = past + length, length if is_step else 0
    return torch.cat(logits, dim=1)


def _logits_error(device: torch.device, dtype: torch.dtype) -> float:
    """Decode sequences in prompts and steps, with rejected drafts."""
    ids, expected = _reference()
    return largest_error(decode_in_parts(served_network(device, dtype), ids, LENGTHS, rejected=2), expected)


def _step_error(device: torch.device, dtype: torch.dtype) -> float:
    """Decode sequences token by token behind a prompt."""
    ids, expected = _reference()
    return largest_error(decode_in_parts(served_network(device, dtype), ids, [17, *[1] * (LENGTH - 17)]), expected)


def _answer_error(device: torch.device, dtype: torch.dtype) -> float:
    """Let the engine answer a few requests together, with drafts, and judge its tokens by the reference's logits.

    Returns:
        The most by which a token's logit is below the largest one at its position, as a share of the largest magnitude.
    """
    tokenizer = char_tokenizer(["".join(chr(0x4E00 + number) for number in range(network.CONFIG.vocab_size - 1))])
    options = EngineOptions(
        max_batch=3, cache_tokens=3 * 96, prefill_chunk=16, page_size=PAGE_SIZE, snapshot_interval=16, draft_length=2
    )
    engine, ids = Engine(served_network(device, dtype), tokenizer, options), network.batches(1)[0].input_ids
    sampling = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True)
    texts = {str(length): ids[0, :length].tolist() for length in (1, 7, 40)}
    for name, prompt in texts.items():
        engine.submit(Request(name, tuple(prompt), sampling))
    while engine.has_work:
        for delta in engine.step():
            if delta.error is not None:
                raise RuntimeError(delta.error)
            texts[delta.id] += delta.token_ids
    if not engine.stats().drafted:
        raise RuntimeError("the engine has made no drafts")
    worst = 0.0
    for name, text in texts.items():
        logits = full_logits(torch.tensor([text]))[0, int(name) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(text[int(name) :])[:, None])[:, 0]
        worst = max(worst, float((logits.amax(1) - chosen).max() / logits.abs().max()))
    return worst


def _sampling_error(device: torch.device, dtype: torch.dtype) -> float:
    """Sample tokens of random logits; returns the share that differs from the reference's."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(256, network.CONFIG.vocab_size, generator=generator)
    keys = torch.randint(-(2**62), 2**62, (256,), generator=generator)
    temperatures = torch.tensor([0.0, 0.8]).repeat(128)
    found = ops.sample_tokens(logits.to(device), temperatures, keys)
    with ops.forced(sample_tokens="reference"):
        expected = ops.sample_tokens(logits, temperatures, keys)
    return float((found != expected).float().mean())


def _drafting_error(device: torch.device, dtype: torch.dtype) -> float:
    """Draft tokens of several sequences; returns the share of sequences whose drafts differ from the reference's."""
    found = _drafts(served_network(device, dtype))
    with ops.forced(**dict.fromkeys(ops.OPERATIONS, "reference")):
        expected = _drafts(network.network(CPU, torch.float64))
    return sum(one != other for one, other in zip(found, expected, strict=True)) / len(expected)


@torch.inference_mode()
def _drafts(model: CausalLM) -> list[list[int]]:
    """Compute prompts of 16 sequences, and draft up to three tokens of each."""
    rows, length, device = 16, 20, model.lm_head.weight.device
    ids = network.batches(1)[0].input_ids.view(rows, -1)[:, : length + 1].to(device)
    slots, none, pages = tuple(range(rows)), (0,) * rows, -(-(length + 3) // PAGE_SIZE)
    tables = tuple(tuple(range(row * pages, (row + 1) * pages)) for row in slots)
    dtype = devices.hidden_dtype(device, model.lm_head.weight.dtype)
    pool = StatePool(model.config, rows, rows * pages, PAGE_SIZE, MAX_STEP_TOKENS, device, dtype)
    decoder = Decoder(model, pool)
    prompts = Sequences(slots, none, none, (length,) * rows, tables, PAGE_SIZE)
    hidden = decoder.forward(ids[:, :-1].flatten(), prompts, speculative=False).view(rows, length, -1)
    # The MTP head's keys and values of all positions but the newest are computed apart, as those of a long prompt are.
    before = Sequences(slots, none, none, (length - 1,) * rows, tables, PAGE_SIZE)
    decoder.fill_draft_cache(ids[:, 1:-1].flatten(), hidden[:, :-1].flatten(0, 1), before)
    newest = Sequences(slots, none, (length - 1,) * rows, (1,) * rows, tables, PAGE_SIZE)
    keys = torch.zeros(rows, 3, dtype=torch.int64)
    sampling = DraftSampling(tuple(1 + row % 3 for row in slots), torch.zeros(rows), keys)
    return decoder.propose(ids[:, -1], hidden[:, -1], newest, sampling)


# The share of tokens, and of sequences, that may differ: where two logits are nearly equal the last bit decides.
_TOKEN_ERRORS: dict[str, tuple[Callable[[torch.device, torch.dtype], float], float]] = {
    "sample_tokens": (_sampling_error, 0.01),
    "draft_tokens": (_drafting_error, 0.07),
}
