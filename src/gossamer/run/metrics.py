"""What a run measures, written down while it trains: `metrics.jsonl` for programs, boards for people.

`metrics.jsonl` holds one JSON object a line. Every one has `event` and `step`; the other keys hold numbers,
strings, booleans, or lists of numbers. A value that was not measured (`None`) has no key. A number that is
not finite is `null`, since JSON knows neither NaN nor infinity, and pandas, jq and polars read `null` as a missing
number.

These are the events; a reader can rely on `step` only. `tokens` and `elapsed` (seconds of training) say where it was:

    start       time, gossamer, torch, device, parameters, active_parameters (that one token passes; both with the
                multi-token-prediction head), mtp_parameters, mtp_active_parameters (of that head),
                flops_per_token, tokens_per_step, steps, corpus
    plan        width, tokens, epochs, bits_per_byte (predicted), error (of the prediction, relative), extrapolated,
                tokens_per_second, measured (widths): what was chosen for a budget (`gossamer.run.budget.BudgetPlan`)
    pairs       loss, seconds (of the embedding and the head, which learned from the text's bigrams before the first
                step)
    train       tokens, elapsed, loss, mtp_loss, aux_loss, z_loss, grad_norm, learning_rate, tokens_per_second,
                mfu (share of the device's measured peak), memory (peak bytes); of pairs sft_loss, accuracy (share in
                which the chosen answer leads), margin, reward_chosen, reward_rejected; of ratings accuracy (share that
                is told right), reward_chosen, reward_rejected, kl (estimate of the divergence from the base, nats)
    eval, end   tokens, elapsed, set (name of the validation text; one event for each), eval_tokens (how many of it were
                predicted), loss (nats per token), perplexity, bits_per_byte, mtp_acceptance (share of accepted drafts
                for each step of the head); flops and device_seconds: all that the run had cost by then, lost work and
                pauses included. The end reads more of the text than the evaluations before it; what it makes of the
                part that they read comes as an eval, too
    experts     tokens; for each layer with experts, the head's last: max_over_mean, dead (count), entropy (0 to 1),
                load (of each expert, mean 1)
    sample      text
    checkpoint  seconds (that training stood still)
    skip        reason (a step whose update was not taken)
    rollback    to (the step that training went back to; what was measured after it is undone)
    resume      time

A line reaches the operating system whole or, when the process is killed, torn at the end of the file: readers forget
such a last line. Damage anywhere else is reported with its line number, never skipped.

The boards are TensorBoard, always, and Weights & Biases where it is asked for. Both get the same numbers under the same
names, `event/name` or, for a named held-out set, `event/set/name`.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import secrets
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from gossamer.errors import UserError
from gossamer.files import write_atomically
from gossamer.reading import open_to_append, parse_json, read_bytes, read_text, text_of_name
from gossamer.units import is_number

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = [
    "METRICS_FILE",
    "Board",
    "MetricsWriter",
    "TensorBoard",
    "WeightsAndBiases",
    "forget_metrics",
    "read_metrics",
    "scalars",
]

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER, WANDB_FOLDER = "tensorboard", "wandb"
log = logging.getLogger("gossamer")
_MAX_FILE = 1 << 32  # bytes: tens of millions of events
_MAX_STEP = 1 << 53

# What is an axis of the curves, or how much an evaluation read, is no curve: over the steps it is a straight line.
_AXES = frozenset({"step", "tokens", "elapsed", "time", "eval_tokens"})
# A list gives a curve for each of its numbers up to this many: the layers of a network, not its experts.
_LONGEST = 128


class MetricsWriter:
    """Appends a run's events to `metrics.jsonl` and shows the numbers in TensorBoard and, if wanted, Weights & Biases.

    Args:
        run_dir: the run's folder; made if it is not there
        resume_step: the step of the checkpoint that the run continues from, None for a new run; events after that step
            are dropped from the records, so that no curve has double points (Weights & Biases keeps them)
        wandb_project: name of a Weights & Biases project that the numbers are sent to; None: none

    Raises:
        UserError: a new run in a folder that already holds measurements, or a damaged `metrics.jsonl` on resume;
            Weights & Biases is wanted and not installed, or does not let the run begin.
    """

    def __init__(self, run_dir: Path, resume_step: int | None = None, wandb_project: str | None = None) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        begun = path.exists() and path.stat().st_size > 0
        if begun and resume_step is None:
            raise UserError(f"{path} already holds measurements; continue the run with --resume or give another --out")
        lines = _until(_parse(path), resume_step) if begun and resume_step is not None else []
        # Before the file is touched: this one may refuse.
        others: list[Board] = [] if wandb_project is None else [WeightsAndBiases(run_dir, wandb_project)]
        if begun:
            write_atomically(path, b"".join(line + b"\n" for line, _ in lines))
        self._file = open_to_append(path)
        self._boards: list[Board] = others
        try:
            self._boards.insert(0, TensorBoard(run_dir, resume_step))
        except Exception as error:
            _warn_of_lost(TensorBoard.__name__, error)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one event and hand the line to the operating system before returning.

        Args:
            event: its kind; numbers appear in the boards as `event/name`, or `event/set/name` with a `set`
            step: the optimizer step that it belongs to, from 1; 0 is before training
            values: numbers, strings, booleans, lists of numbers (Python's, NumPy's or tensors; one element is a
                number); None leaves the key out. `start` and `resume` get the `time` (Unix seconds) unless it is given
        """
        record: dict[str, Any] = {"event": event}
        if event in ("start", "resume"):
            record["time"] = time.time()
        record["step"] = int(step)
        record |= {name: _plain(value) for name, value in values.items() if value is not None}
        # ASCII, since a model's output may hold halves of surrogate pairs, which UTF-8 cannot encode.
        line = json.dumps(finite_or_none(record), allow_nan=False)
        self._file.write(line.encode("ascii") + b"\n")
        self._file.flush()
        for board in tuple(self._boards):
            try:
                board.show(event, record["step"], record)
                if event == "rollback":
                    board.rewind(record["to"])
            except Exception as error:
                self._boards.remove(board)
                _warn_of_lost(type(board).__name__, error)

    def close(self, failed: bool = False) -> None:
        """Close all records, the boards' as those of a failed run if `failed`; a second call does nothing."""
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
    """Return the events of a run in the order in which they were written; numbers that were not finite are None.

    Raises:
        UserError: there is no `metrics.jsonl`, or a line is damaged that is not the torn end of a killed run's file.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{run_dir} has no {METRICS_FILE}; give the folder of a run, as made by 'gossamer train'")
    return [event for _, event in _parse(path)]


def forget_metrics(run_dir: Path) -> None:
    """Remove what was measured of a run that begins again; Weights & Biases keeps it."""
    shutil.rmtree(run_dir / TENSORBOARD_FOLDER, ignore_errors=True)
    (run_dir / METRICS_FILE).unlink(missing_ok=True)


def _parse(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return every line (without its newline) with its event, without a torn last line and blank ones."""
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
    """Return the event that a line holds; None if it holds none."""
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


def _warn_of_lost(board: str, error: Exception) -> None:
    """Say that a board has failed, which must not end the run."""
    log.warning("%s shows no more of this run: %s: %s", board, type(error).__name__, error)


def _until(lines: list[tuple[bytes, dict[str, Any]]], step: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the lines without what came after `step` in the newest course of the run, and what followed that."""
    begun = 0
    for index, (_, event) in enumerate(lines):
        back_to = event.get("to") if event["event"] == "rollback" else None
        if isinstance(back_to, int) and back_to <= step:
            begun = index + 1  # what came before is history, whatever its steps: readers know that it was undone
    return lines[:begun] + [(line, event) for line, event in lines[begun:] if event["step"] <= step]


def _plain(value: Any) -> Any:
    """Return a value of NumPy or PyTorch as Python's: one element as a number, more as lists."""
    if hasattr(value, "tolist"):
        return value.item() if math.prod(value.shape) == 1 else value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def finite_or_none(value: Any) -> Any:
    """Return a value of JSON with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Boards.


class Board(Protocol):
    """A place where a run's events are shown."""

    def show(self, event: str, step: int, record: dict[str, Any]) -> None:
        """Show an event; its numbers may be NaN or infinite."""

    def rewind(self, step: int) -> None:
        """Forget what was shown after `step`, to which training goes back."""

    def close(self, failed: bool) -> None:
        """Write what is still held back; a second call does nothing."""


def scalars(event: str, record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of an event by name: `train/loss`, `eval/code/loss`, `eval/mtp_acceptance/1`.

    The numbers of a list are counted from 1, as steps are; those of `experts` from 0, as layers are. A list of lists
    has no curves.
    """
    place = f"{event}/{record['set']}" if isinstance(record.get("set"), str) else event
    first = 0 if event == "experts" else 1
    found: dict[str, float] = {}
    for name, value in record.items():
        if name in _AXES:
            continue
        if _has_curve(value):
            found[f"{place}/{name}"] = value
        elif isinstance(value, list) and len(value) <= _LONGEST:
            numbered = enumerate(value, start=first)
            found |= {f"{place}/{name}/{index}": item for index, item in numbered if _has_curve(item)}
    return found


class TensorBoard:
    """Shows a run in TensorBoard, which reads the run's folder `tensorboard/`.

    Args:
        run_dir: the run's folder
        resume_step: the step that the run continues from; None for a new run
    """

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        self._folder = str(run_dir / TENSORBOARD_FOLDER)
        self._writer = self._open(None if resume_step is None else resume_step + 1)

    def _open(self, purge_step: int | None) -> SummaryWriter:
        # Imported here: it costs a second, and reading metrics needs none of it.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._folder, purge_step=purge_step)

    def show(self, event: str, step: int, record: dict[str, Any]) -> None:
        """Show what an event holds."""
        for name, value in scalars(event, record).items():
            self._writer.add_scalar(name, value, step)
        if isinstance(text := record.get("text"), str):
            # TensorBoard renders Markdown: four spaces make it a code block, shown as it is.
            shown = text.encode("utf-8", "replace").decode()
            self._writer.add_text(event, "\n".join("    " + line for line in shown.splitlines()), step)
        if event in ("eval", "end"):
            self._writer.flush()

    def rewind(self, step: int) -> None:
        """Begin a new file, since TensorBoard forgets only at the beginning of one."""
        self._writer.close()
        self._writer = self._open(step + 1)

    def close(self, failed: bool) -> None:
        """Write what is still held back."""
        self._writer.close()


class WeightsAndBiases:
    """Shows a run in a Weights & Biases project, under the name of the run's folder; its files go to `wandb/` there.

    Everything that the package reads from its environment holds: with `WANDB_MODE=offline` nothing is sent until
    `wandb sync`. A resumed run continues the same curves. These cannot forget: steps that a resume or a rollback
    repeats appear there twice.

    Raises:
        UserError: the package is not installed, or does not let the run begin (no key, no network).
    """

    def __init__(self, run_dir: Path, project: str) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ModuleNotFoundError as error:
            if error.name != "wandb":
                raise
            raise UserError(
                f"Weights & Biases (project {project!r}) needs a package that is not installed: pip install wandb"
            ) from error
        name, identity = text_of_name(run_dir.resolve().name), _identity(run_dir)
        try:
            self._run = wandb.init(project=project, name=name, id=identity, resume="allow", dir=str(run_dir))
        except wandb.errors.Error as error:
            raise UserError(
                f"Weights & Biases: {str(error).rstrip('.')}; WANDB_MODE=offline keeps the numbers here"
            ) from error
        _keep_identity(run_dir, identity)
        # Its own counter refuses to go back, as it must when a run resumes from a checkpoint: steps are a value.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def show(self, event: str, step: int, record: dict[str, Any]) -> None:
        """Show what an event holds."""
        if event == "start":
            described = {name: value for name, value in record.items() if name not in ("event", "step")}
            self._run.config.update(described, allow_val_change=True)
        elif found := scalars(event, record):
            self._run.log(found | {"step": step})

    def rewind(self, step: int) -> None:
        """Do nothing: steps that are logged again are shown beside the earlier ones."""

    def close(self, failed: bool) -> None:
        """End the run in the project."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None


def _identity(run_dir: Path) -> str:
    """Return the run's random name in its project; it is kept, so that a resumed run is the same run."""
    path = run_dir / WANDB_FOLDER / "id"
    return read_text(path).strip() if path.is_file() else secrets.token_hex(8)


def _keep_identity(run_dir: Path, identity: str) -> None:
    """Write down the run's name for the next start."""
    path = run_dir / WANDB_FOLDER / "id"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, identity + "\n")


def _has_curve(value: Any) -> bool:
    """Whether a value is a number, be it NaN or infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool)
