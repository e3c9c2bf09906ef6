"""The speed of a machine for what it is, measured in some seconds; and in plain words what keeps it from more.

Times of two machines cannot be compared; shares can. Each operation's call at a small fixed shape, on two threads at
most, is set against the roofline that this machine's own products and copies give at this moment, and that share
against the one that `shares.json` has for processors with the same vector unit. What comes out far below it has a cause
that is not the processor: subnormal floats, a missing compiler, threads that do not run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gossamer import device as devices
from gossamer import ops
from gossamer.certify.timing import (
    BOTH,
    FRESH,
    Rates,
    copy_rate,
    operation_of,
    seconds_of,
    time_operations,
    training_inputs,
)
from gossamer.cores import cpu_quota
from gossamer.model.config import ModelConfig
from gossamer.reading import read_object
from gossamer.train.recipe import load_recipe
from gossamer.units import byte_rate, flops, percent

SHARES = Path(__file__).with_name("shares.json")
RECIPE, ROWS, LENGTH, THREADS = "micro", 2, 256, 2  # what operations are timed with
FAR_BELOW = 3.0  # times below its record: on a machine that others use, a share is now and then half of what it was
SLOW_GATES = 2.0  # how many times as long a fresh network's gates may take as a trained one's
MIN_GAIN = 0.5  # of products on all threads over one, as a share of the number of threads
_GEMM_SIZE, _COPY_MEGABYTES = 1024, 64
_MAX_LOAD = 0.75  # of the processors, by other programs


@dataclass(frozen=True)
class Finding:
    """Something that costs speed.

    Attributes:
        what: the problem, in a sentence
        remedy: what to do about it
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


@dataclass(frozen=True)
class ThreadUse:
    """The threads of a process, and the processors that it may use.

    Attributes:
        threads: threads of PyTorch and the native kernels
        wanted: the value of OMP_NUM_THREADS; empty if there is none
        machine: logical processors of the machine
        bound: logical processors that the process may run on
        quota: how many processors' time its control groups give it; infinite without a limit
        threads_per_core: logical processors that share a core
        load: programs that wanted a processor during the last minute, on average
    """

    threads: int
    wanted: str
    machine: int
    bound: int
    quota: float
    threads_per_core: int
    load: float

    @property
    def usable(self) -> int:
        """Threads that can run at the same time."""
        return max(1, min(self.bound, math.ceil(self.quota) if math.isfinite(self.quota) else self.bound))

    @property
    def cores(self) -> int:
        """Cores that these threads run on."""
        return max(1, self.usable // self.threads_per_core)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, which has no infinity."""
        own = asdict(self) | {"usable": self.usable, "cores": self.cores}
        return own | {"quota": self.quota if math.isfinite(self.quota) else None}


def thread_use() -> ThreadUse:
    """Look up the threads of this process, now."""
    machine = os.cpu_count() or 1
    return ThreadUse(
        threads=torch.get_num_threads(),
        wanted=os.environ.get("OMP_NUM_THREADS", ""),
        machine=machine,
        bound=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine,
        quota=cpu_quota(),
        threads_per_core=devices.processor().threads_per_core,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )


def thread_findings(use: ThreadUse) -> Iterator[Finding]:
    """Tell what is wrong with the number of threads, or with the machine at this moment."""
    if use.threads > use.usable:
        set_by = f"OMP_NUM_THREADS={use.wanted} asks for" if use.wanted else "PyTorch takes"
        yield Finding(
            f"{set_by} {use.threads} threads, but this process may use {use.usable} of the machine's {use.machine} "
            f"processors ({_explain_limit(use)}); threads that wait for one another wait for those that do not run",
            f"set OMP_NUM_THREADS={use.cores}, or unset it",
        )
    elif use.threads > use.cores:
        yield Finding(
            f"{use.threads} threads share {use.cores} cores: two hardware threads of a core share its arithmetic units",
            f"try OMP_NUM_THREADS={use.cores}",
        )
    elif 2 * use.threads <= use.cores:
        why = f"OMP_NUM_THREADS={use.wanted}" if use.wanted else "PyTorch chose so"
        yield Finding(
            f"{use.threads} of {use.cores} cores are used ({why})", f"OMP_NUM_THREADS={use.cores} uses all of them"
        )
    if use.load > _MAX_LOAD * use.usable:
        yield Finding(
            f"other programs kept {use.load:.1f} of {use.usable} processors busy during the last minute",
            "the rates below are of what they left; measure again when the machine is quiet",
        )


def _explain_limit(use: ThreadUse) -> str:
    if use.quota < use.bound:
        return f"its control group's quota is {use.quota:g} processors"
    if use.bound < use.machine:
        return f"it is bound to {use.bound} of them"
    return "that is all there are"


def examine_speed(device: torch.device) -> dict[str, Any]:
    """Measure a device.

    Returns:
        A dictionary with these keys.

        - processor: the name under which its figures are kept
        - threads: what the process has and may use, on a CPU
        - gemm_flops, copy_bytes_per_second: rates on all threads
        - gemm_gain: rate of products on all threads over that on one, on a CPU
        - subnormals: "off" if PyTorch's functions count them as zero, otherwise "on"; on a CPU
        - operations: rows with operation, implementation, chosen, seconds, share of the roofline and recorded share
        - recorded: where the recorded shares come from; None if there are none
        - findings: what is wrong, each with its remedy
    """
    dtype, cpu = devices.compute_dtype(device, "auto"), device.type == "cpu"
    use = thread_use() if cpu else None
    gemm = devices.peak_rate(device, dtype)
    found: dict[str, Any] = {
        "processor": devices.device_key(device),
        "threads": None if use is None else use.to_dict(),
        "gemm_flops": gemm,
        "gemm_gain": _gain(device, dtype, gemm) if cpu else None,
        "copy_bytes_per_second": copy_rate(device, 4 * _COPY_MEGABYTES),
        "subnormals": ("off" if flushes_subnormals() else "on") if cpu else None,
    }
    reference = recorded_shares(devices.processor().vectors) if cpu else None
    shares: Mapping[str, float] = {} if reference is None else reference["shares"]
    found["operations"] = [
        row | {"recorded": shares.get(share_name(row["operation"], row["implementation"]))}
        for row in measure_operations(device, dtype)
    ]
    found["recorded"] = None if reference is None else {key: reference[key] for key in reference if key != "shares"}
    findings = [] if use is None else list(thread_findings(use))
    findings += _speed_findings(found)
    found["findings"] = [{"what": one.what, "remedy": one.remedy} for one in findings]
    return found


def measure_operations(device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Time each training operation, forward and backward, by the implementation that runs and by PyTorch alone."""
    config = operation_config()

    def rates() -> Rates:
        a = torch.randn(_GEMM_SIZE, _GEMM_SIZE, device=device, dtype=dtype)
        seconds = seconds_of(lambda: torch.mm(a, a), device, min_seconds=0.05)
        return Rates(2.0 * _GEMM_SIZE**3 / seconds, copy_rate(device, _COPY_MEGABYTES))

    def is_wanted(operation: ops.Operation, name: str) -> bool:
        return name in (operation.choose(device).name, operation.pytorch_implementation().name)

    with max_threads(THREADS):
        inputs = training_inputs(config, ROWS, LENGTH, device, dtype)
        rows = time_operations(config, inputs, LENGTH, rates, seconds=0.2, is_wanted=is_wanted)
    columns = ("operation", "implementation", "chosen", "seconds", "failure", "left_out")
    return [
        {key: row[key] for key in columns if key in row} | {"share": row.get("roofline_share")}
        for row in rows
        if row["direction"] == BOTH or "seconds" not in row
    ]


def operation_config() -> ModelConfig:
    """Return the network whose operations are timed."""
    return load_recipe(RECIPE).model


def share_name(operation: str, implementation: str) -> str:
    """Return the name under which a share is recorded."""
    return f"{operation}: {implementation}"


def recorded_shares(vectors: str) -> dict[str, Any] | None:
    """Read what was measured on a processor with this vector unit: processor, torch, date, shares; None if nothing."""
    recorded: dict[str, dict[str, Any]] = read_object(SHARES)
    return recorded.get(vectors)


def flushes_subnormals() -> bool:
    """Find out whether PyTorch's functions count subnormal floats as zero, in all threads."""
    tiny = torch.full((1 << 20,), 1e-39)  # enough for all threads
    return not bool((tiny * 0.5).count_nonzero())


@contextmanager
def max_threads(count: int) -> Iterator[None]:
    """Limit PyTorch and the native kernels to `count` threads within this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gain(device: torch.device, dtype: torch.dtype, rate: float) -> float:
    """Measure how many times as fast products are on all threads as on one."""
    with max_threads(1):
        return rate / devices.peak_rate(device, dtype)


def _speed_findings(found: Mapping[str, Any]) -> Iterator[Finding]:
    """Tell what the measured figures say is wrong."""
    use, gain = found["threads"], found["gemm_gain"]
    if use is not None and use["threads"] > 1 and gain < MIN_GAIN * use["threads"]:
        yield Finding(
            f"products on {use['threads']} threads are only {gain:.1f} times as fast as on one",
            "other programs, or a limit of this container, take their time; fewer threads may be faster",
        )
    if found["subnormals"] == "on":
        yield Finding(
            "subnormal floats are computed with, which takes some processors forty times as long",
            "torch.set_flush_denormal(True) before the first computation, as gossamer's own commands do",
        )
    rows = {(row["operation"], row["implementation"]): row for row in found["operations"]}
    for (name, implementation), row in rows.items():
        trained = rows.get((operation_of(name), implementation))
        if name.endswith(FRESH) and trained and "seconds" in row and "seconds" in trained:
            times = row["seconds"] / trained["seconds"]
            if times > SLOW_GATES:
                yield Finding(
                    f"{operation_of(name)} ({implementation}) takes {times:.1f} times as long with a fresh network's "
                    "gates as with a trained one's",
                    "subnormal floats reach it; please report this with the output of gossamer doctor --speed --json",
                )
    for row in found["operations"]:
        what = share_name(row["operation"], row["implementation"])
        if reason := row.get("failure") or row.get("left_out"):
            yield Finding(f"{what} could not be timed", reason)
        elif row["recorded"] and row["share"] * FAR_BELOW < row["recorded"]:
            yield Finding(
                f"{what} reaches {percent(row['share'])} of this machine's roofline, elsewhere "
                f"{percent(row['recorded'])}",
                "measure again on a quiet machine; if it stays so, please report it",
            )
    chosen = {row["operation"]: row["implementation"] for row in found["operations"] if row["chosen"]}
    native = ops.describe(torch.device("cpu"))["delta_rule"]["implementations"]
    assert isinstance(native, dict)
    if use is not None and chosen and native.get("native") != "able":
        yield Finding(
            f"the native kernels are not available ({native.get('native')}), PyTorch's own functions serve instead",
            "install a C++ compiler, such as the package g++, or name one in CXX",
        )


def report(found: Mapping[str, Any]) -> str:
    """Write what `examine_speed` has found, for people."""
    use, recorded = found["threads"], found["recorded"]
    lines = [f"speed of {found['processor']}"]
    gain = "" if found["gemm_gain"] is None else f", {found['gemm_gain']:.1f} times those of one thread"
    lines.append(f"  products    {flops(found['gemm_flops'])}/s{gain}")
    lines.append(f"  copies      {byte_rate(found['copy_bytes_per_second'])}")
    if use is not None:
        quota = "" if use["quota"] is None else f", a quota of {use['quota']:g}"
        lines.append(f"  threads     {use['threads']} on {use['cores']} cores ({use['machine']} processors{quota})")
        lines.append(f"  subnormals  {found['subnormals']}")
    width = max(len(row["operation"]) for row in found["operations"])
    inner = max(len(row["implementation"]) for row in found["operations"])
    head = f"{'forward and backward':<{width}}  {'by':<{inner}}      ms  of the roofline"
    lines += ["", head + ("" if recorded is None else "  recorded")]
    for row in found["operations"]:
        name = f"{row['operation']:<{width}}  {row['implementation']:<{inner}}"
        if row["share"] is None:
            lines.append(f"{name}  {row.get('failure') or row.get('left_out')}")
            continue
        then = f"  {row['recorded']:>8.0%}" if row["recorded"] is not None else ""
        lines.append(f"{name}  {1000 * row['seconds']:>6.1f}  {row['share']:>15.0%}{then}")
    if recorded is None:
        lines.append("nothing is recorded for this kind of processor to compare with")
    else:
        lines.append(f"recorded on {recorded['processor']}, {recorded['date']}, torch {recorded['torch']}")
    lines.append("")
    findings = [f"- {one['what']}: {one['remedy']}" for one in found["findings"]]
    lines += findings or ["nothing is far below what it should be"]
    return "\n".join(lines)
