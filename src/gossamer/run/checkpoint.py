"""Training state on disk: everything that a run needs to go on as if it had never stopped.

A checkpoint is a folder, `checkpoints/step-00000500/`: tensors (weights, optimizer state, random state) in PyTorch's
distributed format, each process writing its part and any number of processes reading them, `progress.json` (counters,
the place in the data) and `manifest.json` (a checksum of every file). It is written under another name, then renamed: a
crash leaves either the whole of it or nothing that is taken for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer import device as devices
from gossamer.cost.ledger import Work
from gossamer.data.packing import DataPosition
from gossamer.errors import UserError
from gossamer.reading import checked, open_to_read, read_json, read_object
from gossamer.train.world import ALONE, World
from gossamer.typed import Range

log = logging.getLogger("gossamer")

Optimizers = Optimizer | list[Optimizer]

_PREFIX = "step-"
_PROGRESS, _MANIFEST = "progress.json", "manifest.json"


class _Manifest(TypedDict):
    """What manifest.json holds: the digest of every other file of the checkpoint."""

    files: dict[str, str]


_Count = Annotated[int, Range(0, (1 << 63) - 1)]
_Amount = Annotated[float, Range(0, 1e30)]


class Position(TypedDict):
    """How far a run was, as its trainer goes on from.

    Attributes:
        step, tokens: that were trained
        elapsed: seconds of training
        data: the place in the data
    """

    step: _Count
    tokens: _Count
    elapsed: _Amount
    data: DataPosition


class _Progress(TypedDict):
    """What progress.json may hold beside the step.

    Attributes:
        step, tokens, elapsed, data: see `Position`
        done: share of the run that lay behind, 0 to 1
        ledger: the work that led to these weights
        validation_loss: of the evaluation at this step, if there was one
    """

    step: _Count
    tokens: NotRequired[_Count]
    elapsed: NotRequired[_Amount]
    data: NotRequired[dict[str, Any]]
    done: NotRequired[_Amount]
    ledger: NotRequired[Work | None]
    validation_loss: NotRequired[Annotated[float, Range(-1e30, 1e30)] | None]


def read_progress(folder: Path) -> dict[str, Any]:
    """A checkpoint's progress.json (UserError: it is damaged; the line names the field)."""
    path = folder / _PROGRESS
    found = read_object(path)
    checked(found, _Progress, str(path))
    return found


def snapshot(model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """A copy in host memory of all tensors that a checkpoint holds; training may go on while it is written."""
    return _copied(_state(model, optimizers))


def save_checkpoint(
    run: Path, step: int, state: dict[str, Any], progress: dict[str, Any], world: World = ALONE
) -> Path:
    """Write the `snapshot` taken after `step`; `progress` is what JSON can hold of the rest. Returns the folder.

    Every process calls this; the folder is one that all of them see.

    Raises:
        UserError: the disk is full; what was there before is untouched.
    """
    folder = run / "checkpoints" / f"{_PREFIX}{step:08d}"
    partial = folder.with_name(f".partial-{folder.name}")

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        with _disk_errors(partial):
            partial.mkdir(parents=True)

    def finish() -> None:
        with _disk_errors(partial):
            (partial / _PROGRESS).write_text(json.dumps({"step": step, **progress}))
            checksums[_PROGRESS] = _digest(partial / _PROGRESS)
            (partial / _MANIFEST).write_text(json.dumps({"files": checksums}, indent=1))
            _sync(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            _sync_folder(folder.parent)

    world.on_main(begin)
    with _disk_errors(partial), _quiet():
        dcp.save(state, checkpoint_id=partial, process_group=world.group, no_dist=world.size == 1)
        checksums = _checksums(partial, world)
    world.on_main(finish)
    return folder


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run that is whole; a damaged one is passed over with a warning."""
    for folder in reversed(_checkpoints(run)):
        if problem := _damage(folder):
            log.warning("checkpoint %s is damaged (%s); using the one before it", folder, problem)
        else:
            return folder
    return None


def checkpoint_to_resume(run: Path) -> Path | None:
    """The newest checkpoint that is whole, or None of a run that was stopped before it had written one.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = newest_checkpoint(run)
    if found is None and _checkpoints(run):
        raise UserError(f"--resume: no checkpoint of {run} is whole; begin the run anew in another folder")
    return found


def load_checkpoint(folder: Path, model: nn.Module, optimizers: Optimizers, world: World = ALONE) -> dict[str, Any]:
    """Put a checkpoint's weights, optimizer state and random state in place; returns its `progress`.

    Every process calls this; how many there were when it was written, and on what devices, does not matter.

    Raises:
        UserError: the checkpoint is of another model.
    """
    state = _state(model, optimizers)
    # One that was written on a device of another kind holds no random state for this one.
    written = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state["random"] = {name: value for name, value in state["random"].items() if f"random.{name}" in written}
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=folder, no_dist=world.size == 1)
    except dcp.api.CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise UserError(f"checkpoint {folder} is of another model: {reason}") from error
    with _quiet():
        set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    devices.set_random_state(state["random"], _device(model))
    return read_progress(folder)


def prune_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best, and what a crash left unfinished."""
    folders = _checkpoints(run)
    best = best_checkpoint(run)
    for folder in folders[:-keep]:
        if folder != best:
            shutil.rmtree(folder, ignore_errors=True)
    for partial in (run / "checkpoints").glob(f".partial-{_PREFIX}*"):
        shutil.rmtree(partial, ignore_errors=True)


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest `validation_loss` in its progress; None if none was evaluated."""
    losses: dict[Path, float] = {}
    for folder in _checkpoints(run):
        with suppress(UserError):  # a damaged one is none of the best
            loss = read_progress(folder).get("validation_loss")
            if loss is not None:
                losses[folder] = loss
    return min(losses, key=lambda folder: losses[folder], default=None)


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob(f"{_PREFIX}*"))


def _state(model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizers)
    return {"model": weights, "optimizer": moments, "random": devices.random_state(_device(model))}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def _device(model: nn.Module) -> Any:
    return next(model.parameters()).device


def _checksums(folder: Path, world: World) -> dict[str, str]:
    """Of every file in a folder, each process reading its share of them."""
    names = sorted(path.name for path in folder.iterdir())
    shares = world.gather({name: _digest(folder / name) for name in names[world.rank :: world.size]})
    return {name: digest for share in shares for name, digest in share.items()}


def _damage(folder: Path) -> str:
    """Why a checkpoint cannot be trusted, or ""."""
    try:
        files = read_json(folder / _MANIFEST, _Manifest)["files"]
        for name, expected in files.items():
            if Path(name).name != name:
                return f"{_MANIFEST} names {name!r}, which is no file of this folder"
            if _digest(folder / name) != expected:
                return f"{name} has changed"
        if missing := {_PROGRESS, ".metadata"} - files.keys():
            return f"{_MANIFEST} lacks {min(missing)}"
        read_progress(folder)
    except UserError as error:
        return str(error)
    return ""


def _digest(path: Path) -> str:
    with open_to_read(path) as file:
        return f"{os.fstat(file.fileno()).st_size}:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def _disk_errors(partial: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        # PyTorch's zip writer calls a write that came out short an "unexpected pos".
        if "No space left on device" in str(error) or "unexpected pos" in str(error):
            raise UserError(
                f"no space left on the disk for a checkpoint in {partial.parent}; earlier checkpoints are untouched: "
                "make room and go on with --resume"
            ) from error
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch warns on every save and load of a single process that no process group exists."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
