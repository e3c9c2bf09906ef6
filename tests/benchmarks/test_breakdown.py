"""breakdown.py: every event of a real step finds its part."""

from __future__ import annotations

from dataclasses import dataclass

import breakdown
import pytest
import torch
from peers import gossamer_step

from gossamer.device import default_device, is_accelerator
from gossamer.model.config import ModelConfig


@dataclass
class Event:
    """An event as torch.profiler gives it."""

    name: str
    self_cpu_time_total: float = 1e6
    cpu_parent: Event | None = None


def test_products_belong_to_what_is_around_them() -> None:
    loss = Event("_LinearCrossEntropyBackward", cpu_parent=Event("autograd::engine::evaluate_function"))
    step = Event("Optimizer.step#AdamW.step")
    expected = {
        "loss": [Event("aten::mm", cpu_parent=Event("aten::matmul", cpu_parent=loss)), loss],
        "dense products": [Event("aten::mm", cpu_parent=Event("aten::linear"))],
        "optimizer": [Event("aten::_foreach_add_", cpu_parent=step)],
        "clipping": [Event("aten::mul_", cpu_parent=Event("aten::_foreach_mul_"))],
        "joining and copying": [Event("aten::cat", cpu_parent=Event("SplitBackward"))],
        "rest": [Event("aten::mul")],
    }
    for part, events in expected.items():
        assert {breakdown.part_of(event) for event in events} == {part}
    found = breakdown.group([event for events in expected.values() for event in events], steps=2)
    assert found["loss"] == 1.0 and found["rest"] == 0.5 and sum(found.values()) == 3.5


@pytest.mark.skipif(is_accelerator(default_device()), reason="for CPUs")
def test_a_real_step_has_every_part(config: ModelConfig) -> None:
    step = gossamer_step(config, 2, 64)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    found = breakdown.group(profiler.events(), 1)
    assert all(found.values()), found
    machine = {"device": "cpu", "torch": "2", "date": "today", "gemm_gflops": 100.0, "copy_gbytes": 10.0}
    work = breakdown.flops(config, 2, 64)
    parts = {part: {"seconds": seconds, "flops": work.get(part, 0.0)} for part, seconds in found.items()}
    report = breakdown.report({"size": "x", "rows": 2, "length": 64, "machine": machine, "parts": parts})
    assert "| a step" in report and "100.0%" in report
