"""What a run measures, written down while it trains: ``metrics.jsonl`` for programs, boards for the eyes.

``metrics.jsonl`` holds one JSON object a line. Every one has ``event`` and ``step``; the other keys hold numbers,
strings, booleans, or lists of numbers. Two kinds of nothing are told apart: a value that was not measured (``None``)
has no key, a number that is not finite is ``null``, since JSON knows neither NaN nor infinity and ``null`` is what
pandas, jq and polars already read as a missing number.

The events, all but ``step`` optional for a reader; ``tokens`` and ``elapsed`` (seconds of training) say where it was:

    start       time, gossamer, torch, device, parameters, active_parameters (that one token passes; both with the
                multi-token-prediction head), mtp_parameters, mtp_active_parameters (of that head alone),
                flops_per_token, tokens_per_step, steps, corpus
    pairs       loss, seconds (what the embedding and the head learned alone, before the first step, and in what time)
    train       tokens, elapsed, loss, mtp_loss, aux_loss, z_loss, grad_norm, learning_rate, tokens_per_second,
                mfu (share of the device's measured peak), memory (peak bytes)
    eval, end   tokens, elapsed, set (name of the held-out text; one event for each), eval_tokens (how many of it were
                predicted), loss (nats a token), perplexity, bits_per_byte, mtp_acceptance (share of accepted drafts for
                each step of the head); flops and device_seconds: all that the run had cost by then, lost work and
                pauses included. The end reads more of the text than the evaluations before it; what it makes of the
                part that they read comes as an eval, too
    experts     tokens; for each layer with experts, the head's last: max_over_mean, dead (count), entropy (0 to 1),
                load (of each expert, mean 1)
    sample      text
    checkpoint  seconds (that training stood still), best
    skip        reason (a step whose update was not taken)
    rollback    to (the step that training went back to; what was measured after it is undone)
    resume      time

A line reaches the operating system whole or, when the process is killed, torn at the end of the file: readers forget
such a last line. Damage anywhere else is reported with its line number, never skipped.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gossamer.errors import UserError
from gossamer.reading import is_number, open_to_append, parse_json, read_bytes
from gossamer.run.boards import TENSORBOARD_FOLDER, Board, TensorBoard, WeightsAndBiases

__all__ = ["METRICS_FILE", "MetricsWriter", "forget_metrics", "read_metrics", "write_atomically"]

METRICS_FILE = "metrics.jsonl"
log = logging.getLogger("gossamer")
_MAX_FILE = 1 << 32  # bytes: tens of millions of events
_MAX_STEP = 1 << 53


class MetricsWriter:
    """Append a run's events to ``metrics.jsonl`` and show the numbers in TensorBoard and, if wanted, Weights & Biases.

    Args:
        run_dir: the run's folder; made if it is not there.
        resume_step: None for a new run. For a continued one, the step of the checkpoint it continues from: events after
            that step are dropped from the records, so that no curve has double points (Weights & Biases keeps them).
        wandb_project: name of a Weights & Biases project to send the numbers to; None for none.

    Raises:
        UserError: a new run in a folder that already holds measurements, or a damaged ``metrics.jsonl`` on resume;
            Weights & Biases is wanted and not installed, or does not let the run begin.
    """

    def __init__(self, run_dir: Path, resume_step: int | None = None, wandb_project: str | None = None) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        begun = path.exists() and path.stat().st_size > 0
        if begun and resume_step is None:
            raise UserError(f"{path} already holds measurements; continue the run with --resume or give another --out")
        kept = _until(_parse(path), resume_step) if begun and resume_step is not None else []
        # Before the file is touched: this one may refuse.
        others: list[Board] = [] if wandb_project is None else [WeightsAndBiases(run_dir, wandb_project)]
        if begun:
            write_atomically(path, b"".join(line + b"\n" for line, _ in kept))
        self._file = open_to_append(path)
        self._boards: list[Board] = others
        try:
            self._boards.insert(0, TensorBoard(run_dir, resume_step))
        except Exception as error:
            _tell_of_lost(TensorBoard.__name__, error)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one event and hand the line to the operating system before returning.

        Args:
            event: its kind; numbers appear in the boards as ``event/name``, or ``event/set/name`` with a ``set``.
            step: the optimizer step it belongs to, the first being 1; 0 is before training.
            values: numbers, strings, booleans, lists of numbers (Python's, NumPy's or tensors; one element is a
                number). None leaves the key out. ``start`` and ``resume`` get the ``time`` (Unix seconds) unless it is
                given.
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
        for board in tuple(self._boards):
            try:
                board.show(event, record["step"], record)
                if event == "rollback":
                    board.rewind(record["to"])
            except Exception as error:
                self._boards.remove(board)
                _tell_of_lost(type(board).__name__, error)

    def close(self, failed: bool = False) -> None:
        """Close all records; ``failed``: the run did not end well. A second call does nothing."""
        self._file.close()
        for board in self._boards:
            board.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Read the events of a run in the order they were written; numbers that were not finite come as None.

    Raises:
        UserError: no ``metrics.jsonl``, or a damaged line that is not merely the torn end of a killed run's file.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{run_dir} has no {METRICS_FILE}; give the folder of a run, as made by 'gossamer train'")
    return [event for _, event in _parse(path)]


def forget_metrics(run_dir: Path) -> None:
    """Remove what was measured of a run that begins again; Weights & Biases keeps it."""
    shutil.rmtree(run_dir / TENSORBOARD_FOLDER, ignore_errors=True)
    (run_dir / METRICS_FILE).unlink(missing_ok=True)


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
    *lines, rest = read_bytes(path, max_bytes=_MAX_FILE).split(
        b"\n"
    )  # `rest` follows the last newline: empty, or what a kill tore
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
        event = parse_json(line.decode("utf-8"), METRICS_FILE, strict=False)  # a sample may hold half a surrogate pair
    except (UserError, UnicodeDecodeError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    step = event.get("step")
    return event if type(step) is int and 0 <= step < _MAX_STEP and all(map(_is_value, event.values())) else None


def _is_value(value: Any, inside: int = 2) -> bool:
    """Whether a value is what an event may hold: a number, text, or lists of numbers."""
    if isinstance(value, list):
        return inside > 0 and all(_is_value(item, inside - 1) for item in value)
    if type(value) is int and abs(value) >= 1 << 63:  # NumPy would make an object of it
        return False
    return value is None or isinstance(value, str | bool) or is_number(value)


def _tell_of_lost(board: str, error: Exception) -> None:
    """A picture of the run must not end the run."""
    log.warning("%s shows no more of this run: %s: %s", board, type(error).__name__, error)


def _until(lines: list[tuple[bytes, dict[str, Any]]], step: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Leave out what came after ``step``: of the newest course of the run that passed it, and all that followed."""
    begun = 0
    for index, (_, event) in enumerate(lines):
        back_to = event.get("to") if event["event"] == "rollback" else None
        if isinstance(back_to, int) and back_to <= step:
            begun = index + 1  # what came before is history, whatever its steps: readers know that it was undone
    return lines[:begun] + [(line, event) for line, event in lines[begun:] if event["step"] <= step]


def _plain(value: Any) -> Any:
    """Turn NumPy's values and tensors into Python's: one element into a number, more into lists."""
    if hasattr(value, "tolist"):
        return value.item() if math.prod(value.shape) == 1 else value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
