"""Calls of flash-linear-attention, checked by a stand-in with the library's own requirements."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from exactness import TOLERANCE, Inputs, assert_same, cumulative, double, evaluate, normal
from gossamer import ops
from gossamer.device import fla_obstacle
from gossamer.ops.delta_rule import fla
from gossamer.ops.delta_rule.reference import reference

CPU = torch.device("cpu")


def inputs_of(batch: int, length: int, documents: int | None = None, cu_seqlens: Tensor | None = None) -> Inputs:
    random = normal(0)
    return {
        "q": random(batch, length, 2, 5),
        "k": random(batch, length, 2, 5),
        "v": random(batch, length, 4, 3),
        "g": -0.1 * random(batch, length, 4).exp(),
        "beta": random(batch, length, 4).sigmoid(),
        "initial_state": None if documents is None else random(documents, 4, 5, 3),
        "cu_seqlens": cu_seqlens,
    }


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None,
    output_final_state: bool,
    use_qk_l2norm_in_kernel: bool,
    cu_seqlens: Tensor,
    cu_seqlens_cpu: Tensor,
) -> tuple[Tensor, Tensor]:
    assert len(q) == len(k) == len(v) == 1, "packed documents come as one row"
    assert k.dtype == v.dtype == q.dtype and g.dtype == beta.dtype == torch.float32
    assert output_final_state and use_qk_l2norm_in_kernel
    assert cu_seqlens.dtype == torch.int64 and torch.equal(cu_seqlens, cu_seqlens_cpu)
    lengths = tuple(cu_seqlens.diff().tolist())
    assert min(lengths) > 0, "its chunk indices know no document without a token"
    assert initial_state is None or (initial_state.dtype == torch.float32 and len(initial_state) == len(lengths))
    return reference(q, k, v, g, beta, initial_state, lengths)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("fla.ops.gated_delta_rule")
    module.chunk_gated_delta_rule = chunk_gated_delta_rule
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", module)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("documents", [None, 5], ids=["from zero", "from given states"])
@pytest.mark.parametrize("lengths", [[3, 0, 4, 0, 1], [2, 2, 2, 1, 1]], ids=str)
def test_the_library_gets_what_it_wants_and_its_answer_fits(lengths: list[int], documents: int | None) -> None:
    inputs = inputs_of(2, 4, documents=documents, cu_seqlens=cumulative(lengths))
    with ops.forced(delta_rule="reference"):
        expected = evaluate(ops.delta_rule, double(inputs))
    narrow = {name: None if x is None or name == "cu_seqlens" else x.float() for name, x in inputs.items()}

    def packed(cu_seqlens: None, **rest: Any) -> tuple[Tensor, Tensor]:
        return fla.packed(**rest, lengths=tuple(lengths))

    assert_same(evaluate(packed, narrow), expected, TOLERANCE[torch.float32])


@pytest.mark.usefixtures("stand_in")
def test_what_it_computes_less_exactly_does_not_go_there() -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("went to the library")

    sys.modules["fla.ops.gated_delta_rule"].chunk_gated_delta_rule = refuse
    inputs = {name: x if x is None else x.float() for name, x in inputs_of(1, 5).items()}
    del inputs["cu_seqlens"]
    fla.fla(**inputs, lengths=(5,))  # float32
    narrow = {name: x.bfloat16() if name in "qkv" else x for name, x in inputs.items()}
    fla.fla(**narrow, lengths=(5,))  # an odd head
    with torch.no_grad():
        fla.fla(**narrow, lengths=(1, 1, 1, 1, 1))  # decoding


def test_a_cpu_does_not_run_it() -> None:
    assert fla_obstacle(CPU) in ("flash-linear-attention is not installed", "a CPU")
    assert ops.OPERATIONS["delta_rule"].choose(CPU).name != "fla"
