"""A trace of a few training steps, for the usual viewers: Perfetto, chrome://tracing and TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from gossamer import device as devices
from gossamer.files import replacing

PROFILE_FOLDER = "profile"
WARM_UP = 3  # steps that are not recorded: allocations, kernels that are built, a profiler that starts
RECORDED = 3


class StepProfile:
    """Records some steps of a run after their warm-up, with the shapes of what they compute, into `out`/profile.

    Args:
        out: the run's folder
        device: where the steps run
        step: the step that the run continues from
        say: called with a line about where the trace is, or why there is none
    """

    def __init__(self, out: Path, device: torch.device, step: int, say: Callable[[str], None]) -> None:
        self.folder, self._say = out / PROFILE_FOLDER, say
        self._first_step, self._steps = step, 0
        kinds = torch.profiler.supported_activities()
        if not devices.is_accelerator(device):
            kinds = {torch.profiler.ProfilerActivity.CPU}
        self._profiler: torch.profiler.profile | None = torch.profiler.profile(
            activities=kinds,
            schedule=torch.profiler.schedule(wait=0, warmup=WARM_UP, active=RECORDED, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )

    def step(self) -> None:
        """Note that a step is over; once the trace is written, nothing is done."""
        if self._profiler is not None:
            self._steps += 1
            self._profiler.step()

    def _write(self, profiler: torch.profiler.profile) -> None:
        self._profiler = None
        first, last = self._first_step + WARM_UP + 1, self._first_step + self._steps
        if last < first:
            return  # `__exit__` says so
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"steps-{first}-{last}.pt.trace.json.gz"  # TensorBoard's plug-in looks for this ending
        with replacing(path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        self._say(f"profile of steps {first} to {last}: {path} (open it at ui.perfetto.dev or in chrome://tracing)")

    def __enter__(self) -> Self:
        assert self._profiler is not None
        self._profiler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profiler is None:
            return
        self._profiler.stop()
        if self._steps <= WARM_UP:
            self._profiler = None
            self._say(f"no profile: the run ended within the {WARM_UP} steps of warm-up that go before it")
