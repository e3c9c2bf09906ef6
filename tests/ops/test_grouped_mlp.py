"""The routed experts: every implementation against the float64 reference, whatever the routing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from exactness import (
    TOLERANCE,
    Inputs,
    assert_same,
    cast,
    check,
    double,
    every_dtype,
    implementations,
    inner_tolerance,
    seeds,
)
from gossamer import ops
from gossamer.errors import UserError
from routed_experts import inputs_of

every_implementation = pytest.mark.parametrize("implementation", implementations("grouped_mlp"))


@st.composite
def problems(draw: st.DrawFn) -> Inputs:
    experts = draw(st.integers(1, 6))
    return inputs_of(
        tokens=draw(st.one_of(st.integers(0, 5), st.sampled_from([17, 64, 65]))),
        top_k=draw(st.integers(1, experts)),
        experts=experts,
        hidden=draw(st.integers(1, 9)),
        width=draw(st.integers(1, 9)),
        how=draw(st.sampled_from(["apart", "one", "skip"])),
        seed=draw(seeds),
    )


@every_implementation
@every_dtype
@settings(max_examples=20)
@given(problem=problems())
@example(problem=inputs_of(tokens=0))
@example(problem=inputs_of(top_k=1, experts=1))
@example(problem=inputs_of(top_k=4, experts=4))
@example(problem=inputs_of(top_k=3, how="one"))
@example(problem=inputs_of(how="skip"))
def test_float64_reference(implementation: str, dtype: torch.dtype, problem: Inputs) -> None:
    check("grouped_mlp", implementation, cast(problem, dtype), inner_tolerance(dtype))


@every_implementation
@pytest.mark.parametrize(("tokens", "hidden", "width"), [(1, 7, 3), (40, 9, 37), (23, 530, 17)])
def test_narrower_experts_without_gradients(implementation: str, tokens: int, hidden: int, width: int) -> None:
    """Weights in bfloat16 for tokens in float32: nothing else is rounded, in one panel of the product or in several."""
    inputs = inputs_of(tokens=tokens, hidden=hidden, width=width)
    narrow = cast(inputs, torch.float32)
    narrow |= {name: narrow[name].bfloat16() for name in ("gate_up_proj", "down_proj")}
    with ops.forced(grouped_mlp="reference"):
        expected = ops.grouped_mlp(**double(narrow))
    with torch.no_grad(), ops.forced(grouped_mlp=implementation):
        assert_same({"y": ops.grouped_mlp(**narrow)}, {"y": expected}, TOLERANCE[torch.float32])


@every_implementation
def test_the_sum_written_out(implementation: str) -> None:
    inputs = cast(inputs_of(tokens=5, top_k=3), torch.float64)
    x, ids, weights, gate_up, down = inputs.values()
    with ops.forced(grouped_mlp=implementation):
        y = ops.grouped_mlp(**inputs)
    for n in range(len(x)):
        want = torch.zeros_like(x[n])
        for j, e in enumerate(ids[n].tolist()):
            gate, up = gate_up[e, :3] @ x[n], gate_up[e, 3:] @ x[n]
            want += weights[n, j] * (down[e] @ (F.silu(gate) * up))
        torch.testing.assert_close(y[n], want)


@every_implementation
def test_gradcheck(implementation: str) -> None:
    inputs = cast(inputs_of(tokens=3, hidden=2, width=2), torch.float64)
    ids = inputs.pop("expert_indices")
    leaves = [value.requires_grad_() for value in inputs.values()]
    with ops.forced(grouped_mlp=implementation):
        assert torch.autograd.gradcheck(lambda x, *rest: ops.grouped_mlp(x, ids, *rest), leaves)


@every_implementation
def test_an_idle_expert_has_a_gradient_of_zero(implementation: str) -> None:
    inputs = cast(inputs_of(how="skip"), torch.float32)
    stacks = [inputs[name].requires_grad_() for name in ("gate_up_proj", "down_proj")]
    with ops.forced(grouped_mlp=implementation):
        ops.grouped_mlp(**inputs).sum().backward()
    for stack in stacks:
        assert not stack.grad[0].any()
        assert stack.grad[1:].abs().sum() > 0


@every_implementation
@pytest.mark.parametrize("how", ["apart", "one", "skip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sizes_that_fill_whole_vectors(implementation: str, how: str, dtype: torch.dtype) -> None:
    """Rows of a multiple of 16 bytes, which grouped products need; other sizes are computed in another way."""
    inputs = inputs_of(tokens=37, top_k=3, experts=6, hidden=24, width=16, how=how)
    check("grouped_mlp", implementation, cast(inputs, dtype), inner_tolerance(dtype))


def test_what_a_grouped_product_leaves_for_idle_experts_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some chips it leaves their memory as it was; here that is NaN."""
    product = F.grouped_mm

    def careless(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        out = product(a, b, offs=offs)
        if out.ndim == 3:
            out[torch.diff(offs, prepend=offs.new_zeros(1)) == 0] = torch.nan
        return out

    monkeypatch.setattr(F, "grouped_mm", careless)
    inputs = inputs_of(tokens=9, experts=6, hidden=16, width=8, how="skip")
    check("grouped_mlp", "grouped_mm", cast(inputs, torch.bfloat16), inner_tolerance(torch.bfloat16))


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": torch.zeros(6, 4)},
        {"x": torch.zeros(2, 3, 5)},
        {"x": torch.zeros(5, 5)},
        {"expert_weights": torch.zeros(6, 3)},
        {"expert_indices": torch.zeros(6, dtype=torch.int64), "expert_weights": torch.zeros(6)},
        {"gate_up_proj": torch.zeros(4, 6, 4)},
        {"gate_up_proj": torch.zeros(4, 7, 5)},
        {"gate_up_proj": torch.zeros(6, 5)},
        {"down_proj": torch.zeros(4, 5, 4)},
        {"down_proj": torch.zeros(3, 5, 3)},
    ],
    ids=lambda wrong: " ".join(f"{name} {list(value.shape)}" for name, value in wrong.items()),
)
def test_wrong_shapes_are_refused_by_name(wrong: Inputs) -> None:
    with pytest.raises(UserError, match="grouped_mlp"):
        ops.grouped_mlp(**inputs_of() | wrong)
