"""The routed experts with frozen weights and low-rank matrices beside them, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exactness import Inputs, assert_same, cast, check, double, every_dtype, implementations, inner_tolerance, seeds
from exactness import normal as normal_numbers
from gossamer import ops
from gossamer.certify.exactness import TOLERANCE
from gossamer.errors import UserError
from routed_experts import inputs_of as experts

every_implementation = pytest.mark.parametrize("implementation", implementations("frozen_grouped_mlp"))
WEIGHTS = ("gate_up_proj", "down_proj")


def inputs_of(ranks: tuple[int, int] = (2, 3), seed: int = 0, **sizes: object) -> Inputs:
    inputs, normal = experts(seed=seed, **sizes), normal_numbers(seed + 1)  # type: ignore[arg-type]
    count, double_width, hidden = inputs["gate_up_proj"].shape
    return inputs | {
        "gate_up_A": normal(count, ranks[0], hidden),
        "gate_up_B": normal(count, double_width, ranks[0]),
        "down_A": normal(count, ranks[1], double_width // 2),
        "down_B": normal(count, hidden, ranks[1]),
    }


@st.composite
def problems(draw: st.DrawFn) -> Inputs:
    count = draw(st.integers(1, 6))
    return inputs_of(
        (draw(st.integers(0, 4)), draw(st.integers(0, 4))),
        draw(seeds),
        tokens=draw(st.one_of(st.integers(0, 5), st.sampled_from([17, 64, 65]))),
        top_k=draw(st.integers(1, count)),
        experts=count,
        hidden=draw(st.integers(1, 9)),
        width=draw(st.integers(1, 9)),
        how=draw(st.sampled_from(["apart", "one", "skip"])),
    )


@every_implementation
@every_dtype
@settings(max_examples=20)
@given(problem=problems())
@example(problem=inputs_of(tokens=0))
@example(problem=inputs_of((0, 0)))
@example(problem=inputs_of(tokens=600, top_k=2, experts=2, how="one"))
@example(problem=inputs_of((16, 1), tokens=37, top_k=3, experts=6, hidden=24, width=16, how="skip"))
def test_float64_reference(implementation: str, dtype: torch.dtype, problem: Inputs) -> None:
    check("frozen_grouped_mlp", implementation, cast(problem, dtype), inner_tolerance(dtype))


@every_implementation
def test_gradcheck(implementation: str) -> None:
    inputs = cast(inputs_of(tokens=3, hidden=2, width=2), torch.float64)
    frozen = {name: inputs.pop(name) for name in ("expert_indices", *WEIGHTS)}
    names, leaves = list(inputs), [value.requires_grad_() for value in inputs.values()]
    with ops.forced(frozen_grouped_mlp=implementation):
        assert torch.autograd.gradcheck(
            lambda *given: ops.frozen_grouped_mlp(**frozen, **dict(zip(names, given, strict=True))), leaves
        )


@every_implementation
@pytest.mark.parametrize(("tokens", "hidden", "width"), [(1, 7, 3), (40, 9, 37), (23, 530, 17)])
def test_narrower_experts_with_gradients(implementation: str, tokens: int, hidden: int, width: int) -> None:
    """Weights in bfloat16 for all else in float32: nothing else is rounded, in the backward pass either."""
    narrow = cast(inputs_of(tokens=tokens, hidden=hidden, width=width), torch.float32)
    narrow |= {name: narrow[name].bfloat16() for name in WEIGHTS}

    def results(implementation: str, inputs: Inputs) -> dict[str, torch.Tensor]:
        leaves = {name: x.requires_grad_() for name, x in inputs.items() if x.is_floating_point()}
        with ops.forced(frozen_grouped_mlp=implementation):
            y = ops.frozen_grouped_mlp(**inputs | leaves)
        y.square().sum().backward()
        return {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items() if name not in WEIGHTS}

    expected = results("reference", double(narrow))
    assert_same(results(implementation, narrow), expected, TOLERANCE[torch.float32])
    assert all(narrow[name].grad is None for name in WEIGHTS)


@every_implementation
def test_of_rank_zero_it_is_the_routed_experts(implementation: str) -> None:
    inputs = cast(inputs_of((0, 0), tokens=9), torch.float32)
    plain = {name: inputs[name] for name in experts()}
    with ops.forced(frozen_grouped_mlp=implementation):
        torch.testing.assert_close(ops.frozen_grouped_mlp(**inputs), ops.grouped_mlp(**plain))


@pytest.mark.parametrize("name", ["gate_up_A", "gate_up_B", "down_A", "down_B"])
def test_factors_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"frozen_grouped_mlp: (gate_up|down)_A .* do not fit"):
        ops.frozen_grouped_mlp(**inputs_of() | {name: torch.zeros(4, 2, 2)})
