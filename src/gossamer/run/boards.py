"""Where a run's numbers are looked at while it trains: TensorBoard always, Weights & Biases where it is asked for.

Both get the same numbers under the same names, ``event/name`` or, of a named held-out set, ``event/set/name``.
"""

from __future__ import annotations

import importlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gossamer.errors import UserError
from gossamer.reading import read_text, text_of_name

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TENSORBOARD_FOLDER", "Board", "TensorBoard", "WeightsAndBiases", "scalars"]

TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER = "wandb"

# The axes of the curves, and how much an evaluation read, are no curves: over the step they are straight lines.
_AXES = frozenset({"step", "tokens", "elapsed", "time", "eval_tokens"})
# A list gives a curve for each of its numbers up to this many: the layers of a network, not its experts.
_LONGEST = 128


class Board(Protocol):
    """A place where a run's events are shown."""

    def show(self, event: str, step: int, record: dict[str, Any]) -> None:
        """Show an event; numbers may be NaN or infinite."""

    def rewind(self, step: int) -> None:
        """Forget what was shown after ``step``, which training goes back to."""

    def close(self, failed: bool) -> None:
        """Hand over what is still kept back. A second call does nothing."""


def scalars(event: str, record: dict[str, Any]) -> dict[str, float]:
    """Name the numbers of an event: ``train/loss``, ``eval/code/loss``, ``eval/mtp_acceptance/1``.

    A list counts as its steps do, from 1; those of ``experts`` from 0, as a checkpoint numbers its layers. A list of
    lists has no curves.
    """
    place = f"{event}/{record['set']}" if isinstance(record.get("set"), str) else event
    first = 0 if event == "experts" else 1
    found: dict[str, float] = {}
    for name, value in record.items():
        if name in _AXES:
            continue
        if _is_number(value):
            found[f"{place}/{name}"] = value
        elif isinstance(value, list) and len(value) <= _LONGEST:
            numbered = enumerate(value, start=first)
            found |= {f"{place}/{name}/{index}": item for index, item in numbered if _is_number(item)}
    return found


class TensorBoard:
    """The run's folder ``tensorboard/``.

    Args:
        run_dir: the run's folder.
        resume_step: the step that the run goes on from, None for a new one.
    """

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        self._folder = str(run_dir / TENSORBOARD_FOLDER)
        self._writer = self._open(None if resume_step is None else resume_step + 1)

    def _open(self, purge_step: int | None) -> SummaryWriter:
        # Imported here: it costs a second, and reading metrics needs none of it.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._folder, purge_step=purge_step)

    def show(self, event: str, step: int, record: dict[str, Any]) -> None:
        for name, value in scalars(event, record).items():
            self._writer.add_scalar(name, value, step)
        if isinstance(text := record.get("text"), str):
            # TensorBoard renders Markdown: four spaces make it a code block, shown as it is.
            shown = text.encode("utf-8", "replace").decode()
            self._writer.add_text(event, "\n".join("    " + line for line in shown.splitlines()), step)
        if event in ("eval", "end"):
            self._writer.flush()

    def rewind(self, step: int) -> None:
        # TensorBoard forgets only at the beginning of a file.
        self._writer.close()
        self._writer = self._open(step + 1)

    def close(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of a Weights & Biases project, named as the run's folder; its files go to the run's ``wandb/``.

    Everything that package reads from its environment holds: with ``WANDB_MODE=offline`` nothing is sent until
    ``wandb sync``. A resumed run goes on in the same curves. They cannot forget: the steps that a resume or a rollback
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
        if event == "start":
            described = {name: value for name, value in record.items() if name not in ("event", "step")}
            self._run.config.update(described, allow_val_change=True)
        elif found := scalars(event, record):
            self._run.log(found | {"step": step})

    def rewind(self, step: int) -> None:
        pass

    def close(self, failed: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None


def _identity(run_dir: Path) -> str:
    """The run's name among all of a project, drawn once and kept: a resumed run is the same run."""
    path = run_dir / WANDB_FOLDER / "id"
    return read_text(path).strip() if path.is_file() else secrets.token_hex(8)


def _keep_identity(run_dir: Path, identity: str) -> None:
    path = run_dir / WANDB_FOLDER / "id"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(identity + "\n", encoding="ascii")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
