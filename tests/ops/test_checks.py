"""Checks of arguments: no call ends the process, and all implementations refuse the same arguments."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import CONFIG
from gossamer import ops
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.decode.decoder import Decoder
from gossamer.model.decode.drafts import DraftSampling, draft_tokens
from gossamer.model.decode.layers import OPTIONAL
from gossamer.model.decode.pool import StatePool
from gossamer.ops.matrix import Int8Matrix
from gossamer.ops.sequences import Sequences

CALLS = Path(__file__).parent / "random_calls.py"


def make_calls(first: int, count: int) -> None:
    """Make calls in a separate process; if it dies, the call whose number it printed last has failed."""
    command = [sys.executable, "-W", "ignore", str(CALLS), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_random_calls_give_a_result_or_a_users_mistake_through_every_implementation() -> None:
    make_calls(0, 60)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_many_random_calls_do(batch: int) -> None:
    first = batch * 1000 if "CI" in os.environ else random.randrange(10**9)
    make_calls(first, 1000)


@pytest.mark.parametrize("implementation", [one.name for one in ops.OPERATIONS["rms_norm"].implementations])
def test_a_whole_number_is_a_number(implementation: str) -> None:
    """ctypes would pass an integer in another register than the one that the kernel reads."""
    x, weight = torch.ones(2, 4), torch.ones(4)
    with ops.forced(rms_norm=implementation):
        torch.testing.assert_close(ops.rms_norm(x, weight, 1), ops.rms_norm(x, weight, 1.0))
        with pytest.raises(UserError, match="eps must be a finite number"):
            ops.rms_norm(x, weight, float("nan"))


def test_a_view_that_stands_for_other_numbers_does_not_reach_a_kernel() -> None:
    x = torch._neg_view(torch.ones(2, 4))  # holds 1, means −1
    with ops.forced(small_linear="native"), pytest.raises(UserError, match="not a plain tensor"):
        ops.small_linear(x, torch.ones(3, 4))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(CausalLM(CONFIG).eval().requires_grad_(False), StatePool(CONFIG, 4, 12, 4, 3, "cpu", torch.float32))


def test_a_layer_has_all_that_belongs_to_its_kind_and_nothing_else(decoder: Decoder) -> None:
    """A kernel gets addresses only, so a missing tensor would be read at 0."""
    trunk = decoder._trunk
    names, bias = set(trunk.tensors[0]._fields), set(OPTIONAL)
    for number, layer in enumerate(trunk.tensors):
        for name in names - bias:
            value = torch.ones(3) if (missing := getattr(layer, name) is None) else None
            changed = (*trunk.tensors[:number], layer._replace(**{name: value}), *trunk.tensors[number + 1 :])
            with pytest.raises(UserError, match="decode_layers: " if missing else "missing|belongs to no|fit"):
                replace(trunk, tensors=changed)


def test_only_a_matrix_is_of_int8(decoder: Decoder) -> None:
    """The kernel would read the numbers of anything else as float32, which is four times as long."""
    trunk, head = decoder._trunk, decoder._head
    assert head is not None
    narrow = Int8Matrix(torch.ones(CONFIG.hidden_size, dtype=torch.int8), torch.tensor(1.0))
    for name in ("input_layernorm", "post_attention_layernorm"):
        with pytest.raises(UserError, match=f"{name} must be a dense tensor of floating-point numbers"):
            replace(trunk, tensors=(trunk.tensors[0]._replace(**{name: narrow}), *trunk.tensors[1:]))
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        with pytest.raises(UserError, match=f"{name} must be a dense tensor of floating-point numbers"):
            replace(head, **{name: narrow})


@pytest.mark.parametrize("wrong", [0.5, True, None, "1", float("nan")])
def test_counts_and_places_are_whole_numbers(decoder: Decoder, wrong: Any) -> None:
    """A tensor made of other numbers would have another dtype than the kernel reads."""
    whole: dict[str, Any] = dict(slots=(0,), accepted=(0,), past=(0,), lengths=(1,), page_tables=((0,),), page_size=4)
    for name in whole:
        bad = {"page_size": wrong, "page_tables": ((wrong,),)}.get(name, (wrong,))
        with pytest.raises(UserError, match="must be whole numbers"):
            Sequences(**whole | {name: bad})
    assert decoder._head is not None
    sampling = DraftSampling((wrong,), torch.zeros(1), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(UserError, match="a count"):
        draft_tokens(torch.tensor([1]), torch.ones(1, CONFIG.hidden_size), decoder._head, Sequences(**whole), sampling)


def test_a_batch_without_a_row_is_refused_by_all_implementations() -> None:
    nothing = {
        "attention": [torch.ones(0, 3, 1, 2)] * 3,
        "short_conv": [torch.ones(0, 3, 2), torch.ones(2, 4)],
        "delta_rule": [torch.ones(0, 3, 1, 2)] * 3 + [torch.ones(0, 3, 1)] * 2,
    }
    for name, arguments in nothing.items():
        for one in ops.OPERATIONS[name].implementations:
            with ops.forced(**{name: one.name}), pytest.raises(UserError, match="at least one row"):
                getattr(ops, name)(*arguments)
