"""What a run measures, written down while it trains: ``metrics.jsonl`` for programs, ``tensorboard/`` for the eyes.

``metrics.jsonl`` holds one JSON object a line. Every one has ``event`` (start, train, eval, sample, resume, end) and
``step``; the other keys are flat: numbers, strings, booleans. Two kinds of nothing are told apart: a value that was not
measured (``None``) has no key, a number that is not finite has the key with ``null``, since JSON knows neither NaN nor
infinity and ``null`` is what pandas, jq and polars already read as a missing number.

A line reaches the operating system whole or, when the process is killed, torn at the end of the file: readers forget
such a last line. Damage anywhere else is reported with its line number, never skipped.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gossamer.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["METRICS_FILE", "MetricsWriter", "read_metrics", "write_atomically"]

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

# The axes of the curves, not curves: over the step they are straight lines.
_AXES = frozenset({"tokens", "elapsed", "time"})


class MetricsWriter:
    """Append a run's events to ``metrics.jsonl`` and mirror the numbers to TensorBoard.

    Args:
        run_dir: the run's folder; made if it is not there.
        resume_step: None for a new run. For a continued one, the step of the checkpoint it continues from: events after
            that step are dropped from both records, so that no curve has double points.

    Raises:
        UserError: a new run in a folder that already holds measurements, or a damaged ``metrics.jsonl`` on resume.
    """

    def __init__(self, run_dir: Path, resume_step: int | None = None) -> None:
        # Imported here: it costs a second, and reading metrics needs none of it.
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        if path.exists() and path.stat().st_size > 0:
            if resume_step is None:
                raise UserError(
                    f"{path} already holds measurements; continue the run with --resume or give another --out"
                )
            kept = [line for line, event in _parse(path) if event["step"] <= resume_step]
            write_atomically(path, b"".join(line + b"\n" for line in kept))
        self._file = path.open("ab")
        purge_step = None if resume_step is None else resume_step + 1
        self._board: SummaryWriter = SummaryWriter(str(run_dir / TENSORBOARD_FOLDER), purge_step=purge_step)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one event and hand the line to the operating system before returning.

        Args:
            event: its kind; numbers appear in TensorBoard as ``event/name``.
            step: the optimizer step it belongs to, the first being 1; 0 is before training.
            values: numbers (Python's, NumPy's or one-element tensors), strings, booleans. None leaves the key out.
                ``start`` and ``resume`` get the ``time`` (Unix seconds) unless it is given.
        """
        record: dict[str, Any] = {"event": event}
        if event in ("start", "resume"):
            record["time"] = time.time()
        record["step"] = int(step)
        record |= {name: _plain(value) for name, value in values.items() if value is not None}
        # ASCII, since a model's output may hold halves of surrogate pairs, which UTF-8 cannot encode.
        line = json.dumps({name: _finite(value) for name, value in record.items()}, allow_nan=False)
        self._file.write(line.encode("ascii") + b"\n")
        self._file.flush()
        self._mirror(event, int(step), record)

    def _mirror(self, event: str, step: int, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name in ("event", "step") or name in _AXES or isinstance(value, bool):
                continue
            if isinstance(value, int | float):
                self._board.add_scalar(f"{event}/{name}", value, step)
            elif name == "text":
                # TensorBoard renders Markdown: four spaces make it a code block, shown as it is.
                self._board.add_text(event, "\n".join("    " + line for line in _encodable(value).splitlines()), step)
        if event in ("eval", "end"):
            self._board.flush()

    def close(self) -> None:
        """Close both records. A second call does nothing."""
        self._file.close()
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Read the events of a run in the order they were written; numbers that were not finite come as None.

    Raises:
        UserError: no ``metrics.jsonl``, or a damaged line that is not merely the torn end of a killed run's file.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{run_dir} has no {METRICS_FILE}; give the folder of a run, as made by 'gossamer train'")
    return [event for _, event in _parse(path)]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file whole: readers, and a crash, find the old content or the new, never half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _parse(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Pair every line (without its newline) with its event, leaving out a torn last line and blank ones."""
    *lines, rest = path.read_bytes().split(b"\n")  # `rest` follows the last newline: empty, or what a kill tore
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        event = _event(line)
        if event is None:
            raise UserError(f"{path}, line {number}, is damaged (no event with a step); restore or delete that line")
        events.append((line, event))
    # A strict prefix of a JSON object is never one itself, so whatever parses here is complete but for its newline.
    last = _event(rest)
    return events if last is None else [*events, (rest, last)]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(event, dict) and isinstance(event.get("event"), str) and type(event.get("step")) is int:
        return event
    return None


def _plain(value: Any) -> Any:
    """Turn a NumPy scalar or a tensor of one element into Python's number."""
    return value.item() if hasattr(value, "item") else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
