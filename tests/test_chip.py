"""The test chip is as strict as a new chip may be, and fails as it is told to."""

from __future__ import annotations

import gc

import pytest

import chip_runs


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        ("torch.ones(3, device=device) + torch.ones(3)", "aten::add: expected all tensors to be on 'testchip'"),
        ("torch.ones(3, device=device)[torch.tensor([0, 2])]", "aten::index: expected all tensors to be on 'testchip'"),
        ("torch.ones(3, device=device).double()", "testchip has no float64"),
        ("torch.ones(3, dtype=torch.float64).to(device)", "testchip has no float64"),
        ("torch.ones(3, device=device) * torch.tensor(2, dtype=torch.float64)", "testchip has no float64"),
        ("torch.view_as_complex(torch.ones(3, 2, device=device))", "testchip has no complex64"),
        ("torch.randn(3, device=device, generator=torch.Generator())", "aten::normal_: expected a generator of"),
    ],
)  # fmt: skip
def test_it_refuses_what_chips_lack(on_chip, code, refusal):
    assert on_chip(chip_runs.attempt, code).startswith(f"RuntimeError: {refusal}")


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("(torch.ones(3, device=device) * torch.tensor(2.0)).tolist()", "[2.0, 2.0, 2.0]"),
        ("torch.ones(2, device=device).to('cpu', torch.float64)", "tensor([1., 1.], dtype=torch.float64)"),
        ("torch.tensor([1, 2], device=device).device", "testchip:0"),
        ("torch.accelerator.current_accelerator(check_available=True)", "testchip"),
        ("(torch.zeros(2, device=device) + 1).sum().item()", "2.0"),
        ("torch.inference_mode()(lambda: torch.ones(1, 2, device=device).T.flatten().sum().item())()", "2.0"),
    ],
)  # fmt: skip
def test_the_chip_computes_what_pytorch_asks(on_chip, code, value):
    assert on_chip(chip_runs.attempt, code) == value


def test_its_random_numbers_are_its_own(on_chip):
    draws = "(torch.manual_seed(3), torch.rand(2, device=device).tolist(), torch.rand(2).tolist())[1:]"
    first = on_chip(chip_runs.attempt, draws)
    assert first == on_chip(chip_runs.attempt, draws)
    numbers, host = eval(first)
    assert numbers == host  # seeded alike, and drawing from one left the other where it was


def test_a_lacking_operator_is_named_as_pytorch_names_it(on_chip):
    sort = "torch.ones(3, device=device).topk(1).values.tolist()"
    told = on_chip(chip_runs.attempt, sort, lack="aten.topk")
    assert told.startswith("NotImplementedError: Could not run 'aten::topk' with arguments from the 'testchip' backend")
    assert on_chip(chip_runs.attempt, sort) == "[1.0]"


def test_what_is_left_to_the_host_is_counted_apart(on_chip):
    code = "(torch.ones(3, device=device).cumsum(0).tolist(), chip.host_census(), chip.census()['aten.cumsum.default'])"
    told = on_chip(chip_runs.attempt, code, fall_back="aten.cumsum")
    assert told == "([1.0, 2.0, 3.0], Counter({'aten.cumsum.default': 1}), 0)"


@pytest.mark.parametrize(
    ("operator", "code", "value"),
    [
        ("aten.mul", "(torch.ones(2, device=device) * 3).tolist()", "[6.0, 6.0]"),
        ("aten.mul.Tensor", "(torch.ones(2, device=device) * 3).tolist()", "[6.0, 6.0]"),
        ("aten.mul.Scalar", "(torch.ones(2, device=device) * 3).tolist()", "[3.0, 3.0]"),
        ("aten.add_", "torch.ones(2, device=device).add_(1).tolist()", "[4.0, 4.0]"),
        ("aten.add_", "torch.ones(2, dtype=torch.int64, device=device).add_(1).tolist()", "[2, 2]"),
        ("aten._foreach_mul_", "(x := torch.ones(1, device=device), torch._foreach_mul_([x], 3), x.item())[2]", "6.0"),
    ],
)  # fmt: skip
def test_a_broken_operator_is_wrong_by_the_factor(on_chip, operator, code, value):
    assert on_chip(chip_runs.attempt, code, break_operator=(operator, 2.0)) == value


def test_a_fault_in_an_operator_that_pytorch_does_not_have_is_a_slip(on_chip):
    assert on_chip(chip_runs.attempt, "0", lack="aten.no_such_thing").startswith("AttributeError")


def test_memory_is_counted_and_runs_out(on_chip):
    made = "torch.ones(300, device=device).view(3, 100)[1:].sum().item()"
    assert on_chip(chip_runs.attempt, made) == "200.0"
    on_chip(gc.collect)  # tests before this one may have left rings of tensors, and tensors that are cached
    before = int(on_chip(chip_runs.attempt, "chip.allocated()"))
    held = f"({made}, chip.allocated(), chip.peak())"
    assert on_chip(chip_runs.attempt, held) == f"(200.0, {before}, {before + 1204})"  # 300 numbers and their sum
    told = on_chip(chip_runs.attempt, made, capacity=before + 1000)
    taken = f"{before:,} of {before + 1000:,} bytes taken, 1,200 more asked for"
    assert told == f"OutOfMemoryError: testchip out of memory: {taken}"


def test_an_unplugged_chip_is_gone(on_chip):
    gone = "(chip.unplug(), torch.accelerator.current_accelerator(check_available=True))[1]"
    assert on_chip(chip_runs.attempt, gone) == "None"
    code = "(x := torch.ones(2, device=device), chip.unplug(), x + 1)"
    assert on_chip(chip_runs.attempt, code) == "RuntimeError: aten::add: device 'testchip' does not answer"
