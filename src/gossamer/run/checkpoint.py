"""Training state on disk: everything that a run needs to continue as if it had never stopped.

A checkpoint is a folder, `checkpoints/step-00000500/`. It holds tensors (weights, optimizer state, random state) in
PyTorch's distributed format, each process writing its part and any number of processes reading them; `progress.json`,
which is a `TrainerState`; and `manifest.json`, a checksum of every file. It is written under another name, then
renamed: a crash leaves either the whole of it or nothing that passes for one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer import device as devices
from gossamer import hub
from gossamer.cost.ledger import Work
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.files import building, disk_errors, publish, sweep
from gossamer.model.causal_lm import CausalLM
from gossamer.reading import checked, open_to_read, read_json, read_object
from gossamer.run.stop import Progress
from gossamer.train.parallel import gathered_model
from gossamer.train.world import SINGLE_PROCESS, World
from gossamer.typed import Range

__all__ = [
    "ModelCopier",
    "ModelWriter",
    "Saver",
    "TrainerState",
    "best_checkpoint",
    "checkpoint_to_resume",
    "copy_model",
    "load_checkpoint",
    "newest_checkpoint",
    "prune_checkpoints",
    "read_state",
    "save_checkpoint",
    "saved_tokenizer",
    "snapshot",
]

log = logging.getLogger("gossamer")

Optimizers = Optimizer | list[Optimizer]

_CHECKPOINTS, _MODEL = "checkpoints", "model"  # folders of a run
_PREFIX = "step-"
_STATE, _MANIFEST = "progress.json", "manifest.json"
_REMEDY = "move the run to another disk, and continue with --resume; earlier checkpoints are untouched"


class _Manifest(TypedDict):
    """The contents of manifest.json: the digest of every other file of the checkpoint."""

    files: dict[str, str]


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint holds beside its tensors.

    Attributes:
        progress: how far the run was
        data: the position in the data, from `TrainBatches.state_dict`
        ledger: the work that led to these weights; None: unknown
        validation_loss: of the validation at this step; None if there was none
    """

    progress: Progress
    data: Mapping[str, Any] = field(default_factory=dict)
    ledger: Work | None = None
    validation_loss: Annotated[float, Range(-1e30, 1e30)] | None = None


def read_state(folder: Path) -> TrainerState:
    """Return the state in a checkpoint's progress.json.

    Raises:
        UserError: it is damaged; the line names the field.
    """
    path = folder / _STATE
    found = read_object(path)
    if "progress" not in found:  # as gossamer 0.1.0 wrote it, all in one level
        names = {"step": "step", "tokens": "tokens", "elapsed": "elapsed", "done": "fraction"}
        progress = {"fraction": 1.0} | {new: found.pop(old) for old, new in names.items() if old in found}
        found = {"progress": progress} | found
    return checked(found, TrainerState, str(path))


def snapshot(model: nn.Module, optimizers: Optimizers, trained_only: bool = False) -> dict[str, Any]:
    """Return a copy in host memory of all tensors that a checkpoint holds; training may go on meanwhile.

    Args:
        model: the network
        optimizers: its optimizers
        trained_only: leave out what is frozen
    """
    return _copied(_tensors(model, optimizers, trained_only))


def save_checkpoint(run: Path, tensors: dict[str, Any], state: TrainerState, world: World = SINGLE_PROCESS) -> Path:
    """Write a checkpoint. Every process calls this; the folder is one that all of them see.

    Args:
        run: the run's folder
        tensors: from `snapshot`
        state: the rest, as it was when the snapshot was made
        world: the processes

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk is full or refuses; what was there before is untouched.
    """
    folder = run / _CHECKPOINTS / f"{_PREFIX}{state.progress.step:08d}"
    disk = partial(disk_errors, folder.parent, _REMEDY)
    with ExitStack() as opened:

        def begin() -> Path:
            with disk():
                return opened.enter_context(building(folder))

        def finish() -> None:
            with disk():
                (temporary / _STATE).write_text(json.dumps(asdict(state)))
                checksums[_STATE] = _digest(temporary / _STATE)
                (temporary / _MANIFEST).write_text(json.dumps({"files": checksums}, indent=1))
                publish(temporary, folder)

        temporary = world.call_on_main(begin)
        with disk(), _quiet():
            dcp.save(tensors, checkpoint_id=temporary, process_group=world.group, no_dist=world.size == 1)
            checksums = _checksums(temporary, world)
        world.call_on_main(finish)
    return folder


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint of a run that is whole; damaged ones are passed over with a warning."""
    for folder in reversed(_checkpoints(run)):
        if problem := _damage(folder):
            log.warning("checkpoint %s is damaged (%s); using the one before it", folder, problem)
        else:
            return folder
    return None


def checkpoint_to_resume(run: Path) -> Path | None:
    """Return the newest checkpoint that is whole, or None if the run was stopped before it had written one.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = newest_checkpoint(run)
    if found is None and _checkpoints(run):
        raise UserError(f"--resume: no checkpoint of {run} is whole; begin the run anew in another folder")
    return found


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: Optimizers,
    world: World = SINGLE_PROCESS,
    trained_only: bool = False,
) -> TrainerState:
    """Put a checkpoint's weights, optimizer state and random state in place, and return the rest.

    Every process calls this; how many there were when it was written, and on what devices, does not matter. With
    `trained_only`, as it was written, what is frozen stays as it is.

    Raises:
        UserError: the checkpoint is of another model.
    """
    tensors = _tensors(model, optimizers, trained_only)
    # One that was written on a device of another kind holds no random state for this one.
    written = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors["random"] = {name: value for name, value in tensors["random"].items() if f"random.{name}" in written}
    try:
        with _quiet():
            dcp.load(tensors, checkpoint_id=folder, no_dist=world.size == 1)
    except dcp.api.CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise UserError(f"checkpoint {folder} is of another model: {reason}") from error
    with _quiet():
        set_state_dict(
            model,
            optimizers,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
            options=StateDictOptions(strict=not trained_only),
        )
    # Whether AdamW is one kernel is a matter of this device, not of the one that wrote the checkpoint.
    for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
        if "fused" in optimizer.defaults:
            for group in optimizer.param_groups:
                group["fused"] = optimizer.defaults["fused"]
    devices.set_rng_state(tensors["random"], _device(model))
    return read_state(folder)


def prune_checkpoints(run: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and the best, and what a crash has left unfinished."""
    folders = _checkpoints(run)
    best = best_checkpoint(run)
    for folder in folders[:-keep]:
        if folder != best:
            shutil.rmtree(folder, ignore_errors=True)
    sweep(run / _CHECKPOINTS, age=0)  # nobody else writes there


def best_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint with the lowest validation loss; None if none has one."""
    losses: dict[Path, float] = {}
    for folder in _checkpoints(run):
        with suppress(UserError):  # a damaged one is not the best
            loss = read_state(folder).validation_loss
            if loss is not None:
                losses[folder] = loss
    return min(losses, key=lambda folder: losses[folder], default=None)


def saved_tokenizer(run: Path) -> Tokenizer:
    """Return the tokenizer that a run was begun with, which lies beside its model."""
    return Tokenizer.load(run / _MODEL)


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / _CHECKPOINTS).glob(f"{_PREFIX}*"))


def _tensors(model: nn.Module, optimizers: Optimizers, trained_only: bool) -> dict[str, Any]:
    """Return all tensors of a checkpoint, in memory shared with the training."""
    options = StateDictOptions(ignore_frozen_params=trained_only)
    weights, moments = get_state_dict(model, optimizers, options=options)
    return {"model": weights, "optimizer": moments, "random": devices.get_rng_state(_device(model))}


def _copied(value: Any) -> Any:
    """Return nested dictionaries of tensors with copies of them in host memory."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _checksums(folder: Path, world: World) -> dict[str, str]:
    """Return the digest of every file in a folder; each process reads its share of them."""
    names = sorted(path.name for path in folder.iterdir())
    shares = world.all_gather({name: _digest(folder / name) for name in names[world.rank :: world.size]})
    return {name: digest for share in shares for name, digest in share.items()}


def _damage(folder: Path) -> str:
    """Return why a checkpoint cannot be trusted; empty if it can."""
    try:
        files = read_json(folder / _MANIFEST, _Manifest)["files"]
        for name, expected in files.items():
            if Path(name).name != name:
                return f"{_MANIFEST} names {name!r}, which is no file of this folder"
            if _digest(folder / name) != expected:
                return f"{name} has changed"
        if missing := {_STATE, ".metadata"} - files.keys():
            return f"{_MANIFEST} lacks {min(missing)}"
        read_state(folder)
    except UserError as error:
        return str(error)
    return ""


def _digest(path: Path) -> str:
    """Return the size of a file and the SHA-256 of its bytes."""
    with open_to_read(path) as file:
        return f"{os.fstat(file.fileno()).st_size}:{hashlib.file_digest(file, 'sha256').hexdigest()}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence PyTorch, which warns on every save and load of a single process that no process group exists."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


# Saving while training continues.

ModelWriter = Callable[[], None]
"""Writes a copy of what was learned into the run's folder; called in the background."""

ModelCopier = Callable[[CausalLM], ModelWriter | None]
"""Copies what is to be written, and returns what writes it; every process calls it, and gets None but for the main."""


def copy_model(run: Path, tokenizer: Tokenizer, world: World, model: CausalLM) -> ModelWriter | None:
    """Copy a network, and return what writes it with its tokenizer into a run's `model/`; see `ModelCopier`."""
    whole = gathered_model(model, world, copy=True)
    return None if whole is None else partial(hub.save, whole, run / _MODEL, tokenizer)


class Saver:
    """Writes a run's model/ and checkpoints/ in a background thread, one save at a time.

    Training waits for the copy of what it changes, not for the disk.

    Args:
        run: the run's folder, which all processes see
        copy: copies what is to be written beside the checkpoint; see `Parts.copy_model`
        keep: how many of the newest checkpoints stay, beside the best
        world: the processes; their threads talk in a group of their own
        trained_only: checkpoints leave out what is frozen

    Attributes:
        seconds: how long the newest finished save took; None: none has finished
    """

    def __init__(self, run: Path, copy: ModelCopier, keep: int, world: World, trained_only: bool = False) -> None:
        self.run, self.copy, self.keep, self.trained_only = run, copy, keep, trained_only
        self.world, self._thread_world = world, world.new_group()
        self.seconds: float | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, model: CausalLM, optimizers: list[Optimizer], state: TrainerState, wait: bool = False) -> float:
        """Copy a checkpoint and begin to write it. Every process calls this.

        Args:
            model: the network
            optimizers: its optimizers
            state: the rest of the checkpoint
            wait: return when it is written

        Returns:
            Seconds that training has waited, for the save before this one to end and for the copy.

        Raises:
            UserError: this save, or the one before it, could not be written.
        """
        began = time.perf_counter()
        self.wait()
        tensors, write_model = snapshot(model, optimizers, self.trained_only), self.copy(model)
        # Not a daemon: a program that ends lets it finish.
        self._thread = threading.Thread(target=self._write, args=(began, tensors, write_model, state), name="saver")
        self._thread.start()
        if wait:
            self.wait()
        return time.perf_counter() - began

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until nothing is being written; raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the save that is under way end, whatever has ended training; its error counts if there is no other."""
        try:
            self.wait()
        except Exception:
            if error is None:
                raise

    def _write(
        self, began: float, tensors: dict[str, Any], write_model: ModelWriter | None, state: TrainerState
    ) -> None:
        """Write a save; runs in the thread."""
        try:
            if write_model is not None:
                write_model()
            save_checkpoint(self.run, tensors, state, self._thread_world)
            if self.world.is_main:
                prune_checkpoints(self.run, self.keep)
            self.seconds = time.perf_counter() - began
        except BaseException as error:  # `check` raises it in the thread that trains
            self._error = error
