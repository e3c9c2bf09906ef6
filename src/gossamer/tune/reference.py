"""What the network gave its examples before the first step: computed once and cached, so that no second one is held."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from gossamer import __version__
from gossamer import device as devices
from gossamer.cache import json_digest, read_cached_json, write_cached_json
from gossamer.data.chat.rows import ExampleBatch, rows_of
from gossamer.data.chat.samples import Example
from gossamer.data.progress import ProgressDisplay
from gossamer.model.causal_lm import CausalLM
from gossamer.train.objective import token_logprobs
from gossamer.train.world import SINGLE_PROCESS, World
from gossamer.tune.objectives import Sums, document_sums

__all__ = ["reference_logprobs", "weights_digest"]

_BLOCK = 4096  # examples that are laid into rows at once


def reference_logprobs(
    model: CausalLM,
    examples: Sequence[Example],
    row_tokens: int,
    cache: Path,
    precision: str = "auto",
    world: World = SINGLE_PROCESS,
    progress: bool = False,
) -> Sums:
    """Return the sums of the log-probabilities of all targets of every sample, in packed rows.

    They are read from the cache if these weights have given them to these examples before.

    Args:
        model: whole on every process, before the first step
        examples: all examples
        row_tokens: tokens of a row
        cache: the folder of caches
        precision: of training (`TrainingConfig.precision`), so that the first step finds the same numbers
        world: the processes, which share the rows
        progress: whether to say on standard error how far it is

    Returns:
        [examples, samples of the largest example], NaN where an example has fewer.
    """
    dtype = devices.compute_dtype(world.device, precision)
    place = cache / "reference" / f"{_digest(model, examples, f'{world.device.type} {dtype}')}.json"
    found = world.call_on_main(lambda: read_cached_json(place, list[list[float | None]]))
    if found is not None and len(found) == len(examples):
        return np.array(found, np.float64)  # None becomes NaN
    sums = _computed(model, examples, row_tokens, dtype, world, progress)
    rows = [[None if np.isnan(value) else float(value) for value in row] for row in sums]
    world.call_on_main(lambda: write_cached_json(place, rows))
    return sums


@torch.no_grad()
def _computed(
    model: CausalLM, examples: Sequence[Example], row_tokens: int, dtype: torch.dtype, world: World, progress: bool
) -> Sums:
    """Compute the sums; every process has its share of the rows."""
    sums = np.zeros((len(examples), max(len(example.samples) for example in examples)))
    display = ProgressDisplay(progress and world.is_main)
    with display.stage("log-probabilities before the first step", sum(map(len, examples))) as advance:
        for number, row in enumerate(_rows(examples, row_tokens)):
            if number % world.size == world.rank:
                with devices.autocast(world.device, dtype):
                    found, _ = document_sums(token_logprobs(model, row), row)
                sums[list(row.examples), list(row.sides)] = found.double().cpu().numpy()
            advance(row.input_ids.numel())
    sums = world.all_reduce(torch.from_numpy(sums)).numpy()
    for index, example in enumerate(examples):
        sums[index, len(example.samples) :] = np.nan
    return sums


def _rows(examples: Sequence[Example], row_tokens: int) -> Iterator[ExampleBatch]:
    for begin in range(0, len(examples), _BLOCK):
        yield from rows_of(examples, range(begin, min(begin + _BLOCK, len(examples))), row_tokens)


def _digest(model: CausalLM, examples: Sequence[Example], computed_as: str) -> str:
    """Return the digest of all that decides the sums, but for rounding errors."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        for sample in example.samples:
            digest.update(f"{len(sample.input_ids)} ".encode())
            digest.update(_bytes(sample.input_ids))
            digest.update(_bytes(sample.labels))
        digest.update(b"\n")
    return json_digest(__version__, computed_as, weights_digest(model), digest.hexdigest())


def weights_digest(model: CausalLM) -> str:
    """Return the digest of a network's weights as they are in memory (32 hex digits)."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _bytes(ids: npt.NDArray[np.int32]) -> bytes:
    return ids.astype("<i4").tobytes()
