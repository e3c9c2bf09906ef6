"""Adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors, read and written.

`load_adapter` reads what is written here, and what PEFT writes: from 0.19 on and before, with rank-stabilized scales,
with stacked experts and with a module for each matrix of each expert. Nothing is left out: what cannot be added to the
network is refused by name. An adapter that is written has one scale for all of its modules, so that a reader who knows
no patterns gets it right; config.json, tokenizer and generation settings lie beside it, and the folder can be used as a
model wherever its base is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gossamer.errors import UserError
from gossamer.files import disk_errors, replacing, write_atomically
from gossamer.hub.adapter_config import FIRST_VERSION, AdapterConfig, read_adapter_config, written_config
from gossamer.hub.adapter_layout import (
    Factors,
    Part,
    fits_stack,
    joined,
    of_part,
    parts_of,
    stack_names,
    stacked,
    tail,
    unstacked,
    written_parts,
)
from gossamer.hub.base_sample import SAMPLE, require_same_base, sample_of
from gossamer.hub.companions import copy_companions, json_text, token_values
from gossamer.hub.drafts import DRAFTS, head_tensors, read_drafts, set_drafts
from gossamer.hub.find import ADAPTER_CONFIG, CONFIG, find_adapter, find_model
from gossamer.hub.names import first_few
from gossamer.hub.shards import StoredTensor, read_header, read_metadata, read_tensors, utf8_path
from gossamer.model.causal_lm import CausalLM
from gossamer.model.experts import Experts
from gossamer.model.linear import LowRank
from gossamer.model.low_rank import EXPERTS_GATE_UP, Target, targets_of

__all__ = ["load_adapter", "save_adapter"]

_WEIGHTS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_KEY = re.compile(
    r"base_model\.model\.(?:model\.|model\.language_model\.|language_model\.model\.|language_model\.)?"
    r"(layers\.\d+\.[\w.]+)\.lora_([AB])(?:\.default)?\.weight"
)
# PEFT takes modules of these names for those of experts, in a network of this type alone.
_TAKEN_FOR_EXPERTS, _OF_TYPE = ("gate_proj", "up_proj", "down_proj"), "qwen3_next"


# Writing.


@dataclass(frozen=True)
class _Entry:
    """A module or parameter in the lists of adapter_config.json: its name, and the name's end that the lists have."""

    name: str
    listed: str
    is_parameter: bool
    rank: int


def save_adapter(model: CausalLM, folder: str | Path, base: str | Path, apart: bool = False) -> None:
    """Write what is added to a network's weights as an adapter of PEFT's, and beside it what a model has but weights.

    A multi-token-prediction head that is trained is written, too, as `drafts.safetensors`.

    Args:
        model: with matrices of low rank beside some of its weights
        folder: made if it is missing; files in it that are no part of an adapter's weights stay
        base: the model that the adapter is for
        apart: a module for each matrix of each expert, as vLLM reads them; else experts are stacked

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    targets = [target for target in targets_of(model) if target.low_rank is not None]
    assert targets, "there is nothing to write"
    # The experts decide the rank that is named if they lie apart, since PEFT knows no patterns for those.
    main = next((target for target in targets if isinstance(target.owner, Experts) == apart), targets[0])
    rank, scale = _rank(main), _low_rank(main).scale
    tensors, entries = dict[str, Tensor](), list[_Entry]()
    for target in targets:
        low_rank = _low_rank(target)
        factors = Factors(low_rank.A.detach(), low_rank.B.detach() * (low_rank.scale / scale), scale)
        if isinstance(target.owner, Experts) and not apart:
            inner, outer = stack_names(target)
            has_two = target.kind == EXPERTS_GATE_UP and target.owner.down_low_rank is not None
            _put(tensors, inner if has_two else outer, stacked(factors))
            entries.append(_Entry(target.parameter, tail(target.parameter), True, _rank(target)))
            continue
        for part in written_parts(target, model.config, apart):
            _put(tensors, part.module, of_part(factors, part))
            entries.append(_entry(target, part, model.config.model_type))
    values = written_config(
        base=str(Path(base).resolve()),
        rank=rank,
        alpha=scale * rank,
        ranks=_patterns(entries, rank),
        target_modules=_listed(entry for entry in entries if not entry.is_parameter),
        target_parameters=_listed(entry for entry in entries if entry.is_parameter),
    )
    place, source = Path(folder), find_model(base)
    with disk_errors(place, "name a folder elsewhere"):
        place.mkdir(parents=True, exist_ok=True)
        (place / ADAPTER_CONFIG).unlink(missing_ok=True)  # an adapter is one by this file
        (place / DRAFTS).unlink(missing_ok=True)
        if head := head_tensors(model):
            write_tensors(head, place / DRAFTS, {})
        copy_companions(source, place)
        write_atomically(place / CONFIG, json_text(model.config.to_dict() | token_values(source)))
        write_tensors(tensors, place / _WEIGHTS, {SAMPLE: sample_of(model)})
        write_atomically(place / ADAPTER_CONFIG, json_text(values))


def _low_rank(target: Target) -> LowRank:
    assert target.low_rank is not None
    return target.low_rank


def _rank(target: Target) -> int:
    return _low_rank(target).A.shape[-2]


def _entry(target: Target, part: Part, model_type: str) -> _Entry:
    """Return the entry of a module that is no stack of experts."""
    leaf = part.module.rpartition(".")[2]
    if isinstance(target.owner, Experts):
        return _Entry(re.sub(r"(?<=experts\.)\d+", "[0-9]+", part.module), leaf, False, _rank(target))
    if model_type == _OF_TYPE and leaf in _TAKEN_FOR_EXPERTS:
        return _Entry(f"{part.module}.weight", f"{tail(part.module)}.weight", True, _rank(target))
    return _Entry(part.module, tail(part.module), False, _rank(target))


def _listed(entries: Iterable[_Entry]) -> list[str]:
    return list(dict.fromkeys(entry.listed for entry in entries))


def _patterns(entries: list[_Entry], rank: int) -> dict[str, int]:
    """Return the ranks that differ from `rank`: by the ends of names where all of one end agree."""
    ranks = defaultdict[str, set[int]](set)
    for entry in entries:
        ranks[tail(entry.name)].add(entry.rank)
    shared = {end: next(iter(found)) for end, found in ranks.items() if len(found) == 1}
    own = {entry.name: entry.rank for entry in entries if tail(entry.name) not in shared}
    return {name: one for name, one in (shared | own).items() if one != rank}


def _put(tensors: dict[str, Tensor], module: str, factors: Factors) -> None:
    for letter, factor in (("A", factors.A), ("B", factors.B)):
        # A copy, since safetensors takes no two tensors that share memory.
        tensors[f"base_model.model.{module}.lora_{letter}.weight"] = factor.float().cpu().clone().contiguous()


def write_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(file) as temporary, utf8_path(temporary) as path:
        try:
            temporary.touch()  # safetensors lets nobody else read it, whatever the umask
            mode = temporary.stat().st_mode
            save_file(tensors, path, metadata={"format": "pt"} | metadata)
            temporary.chmod(mode)
        except SafetensorError as error:  # the operating system's error as text
            raise OSError(str(error)) from error


# Reading.


def load_adapter(model: CausalLM, path: str | Path) -> None:
    """Put the matrices of an adapter beside a network's weights; nothing of the network is trained any more.

    Args:
        model: without such matrices
        path: the folder of a tuned run, of an adapter that was written here, or of one of PEFT's

    Raises:
        UserError: there is no adapter, it is of another kind or for another network, or it has what gossamer cannot
            add; the message names it, and the network is unchanged.
    """
    folder = find_adapter(path)
    stored = _StoredAdapter(folder, read_adapter_config(folder))
    require_same_base(model, stored.metadata, folder)
    found: list[tuple[Target, Factors]] = []
    for target in targets_of(model):
        assert target.low_rank is None, "one adapter at a time"
        if (factors := stored.factors(target, model)) is not None:
            found.append((target, factors))
    stored.require_nothing_left()
    head = read_drafts(model, folder)
    model.requires_grad_(False)
    for target, factors in found:
        low_rank = LowRank(target.weight, factors.A.shape[-2], factors.scale)
        low_rank.A.data.copy_(factors.A)
        low_rank.B.data.copy_(factors.B)
        target.low_rank = low_rank.requires_grad_(False)
    set_drafts(model, head)


class _StoredAdapter:
    """An adapter's file, of which factors are taken until nothing is left."""

    def __init__(self, folder: Path, config: AdapterConfig) -> None:
        self.config, self.file = config, folder / _WEIGHTS
        if not self.file.is_file():
            if (folder / _PICKLED).is_file():
                raise UserError(
                    f"{folder / _PICKLED}: pickled weights can run any code and are never loaded; save the adapter "
                    "again with safe_serialization=True"
                )
            raise UserError(f"{folder}: lacks {_WEIGHTS}; save the adapter again")
        self.metadata = read_metadata(self.file)
        self._told_by_shape: bool | None = None
        self._stored: dict[str, dict[str, tuple[str, StoredTensor]]] = defaultdict(dict)
        self._taken: set[str] = set()
        for key, tensor in read_header(self.file).items():
            match = _KEY.fullmatch(key)
            if match is None:
                raise UserError(f"{self.file}: {key} is no factor of LoRA in a layer; gossamer adds nothing else")
            self._stored[f"model.{match[1]}"][match[2]] = key, tensor
        for module, pair in self._stored.items():
            if len(pair) < 2:
                raise UserError(f"{self.file}: {module} has one factor of two; save the adapter again")

    def factors(self, target: Target, model: CausalLM) -> Factors | None:
        """Take the factors of what is added to a target; None if that is nothing."""
        if isinstance(target.owner, Experts) and (name := self._stack_of(target)) is not None:
            return self._stacked(target, name, model)
        for parts in parts_of(target, model.config):
            if found := [part for part in parts if part.module in self._stored]:
                return joined(target.weight.shape, [(part, self._part(target, part)) for part in found])
        return None

    def require_nothing_left(self) -> None:
        """Refuse modules that the network does not have, or beside which gossamer puts nothing (UserError)."""
        if left := sorted(self._stored.keys() - self._taken):
            raise UserError(
                f"{self.file}: {len(left)} modules are none that gossamer adds to in this network: "
                f"{first_few(left)}; leave them out of the adapter's targets, or name the base it is for"
            )

    def _take(self, module: str, pattern_name: str) -> Factors:
        self._taken.add(module)
        pair = self._stored[module]
        tensors = read_tensors({key: tensor for key, tensor in pair.values()})
        A, B = (tensors[pair[letter][0]].float() for letter in "AB")
        return Factors(A, B, self.config.scale_of(pattern_name))

    def _part(self, target: Target, part: Part) -> Factors:
        shape = target.weight[part.index].shape if part.rows is None else (len(part.rows), target.weight.shape[-1])
        rank = self.config.rank_of(part.module if not self._is_parameter(part) else f"{part.module}.weight")
        A, B = (self._stored[part.module][letter][1].shape for letter in "AB")
        if ((rank, shape[-1]), (shape[-2], rank)) != (A, B):
            raise self._wrong_shape(part.module, A, B, (rank, shape[-1]), (shape[-2], rank))
        return self._take(part.module, f"{part.module}.weight" if self._is_parameter(part) else part.module)

    def _is_parameter(self, part: Part) -> bool:
        name = f"{part.module}.weight"
        return any(name == one or name.endswith(f".{one}") for one in self.config.target_parameters)

    # Stacked experts.

    def _stack_of(self, target: Target) -> str | None:
        """Return the module that holds the factors of a target among stacked experts."""
        inner, outer = stack_names(target)
        if inner in self._stored:
            return inner if target.kind == EXPERTS_GATE_UP else outer if outer in self._stored else None
        if outer not in self._stored:
            return None
        experts = target.parameter.rpartition(".")[0]
        named = [
            leaf
            for leaf in ("gate_up_proj", "down_proj")
            if any(f".{experts}.{leaf}".endswith(f".{one}") for one in self.config.target_parameters)
        ]
        if len(named) != 1:
            raise UserError(
                f"{self.config.file}: target_parameters must name one of gate_up_proj and down_proj, since {outer} has "
                "the factors of one"
            )
        return outer if target.parameter.endswith(named[0]) else None

    def _stacked(self, target: Target, module: str, model: CausalLM) -> Factors:
        is_swapped = self._is_swapped(model, target, module)
        rank, (experts, rows, width) = self.config.rank_of(target.parameter), target.weight.shape
        A, B = (self._stored[module][letter][1].shape for letter in "AB")
        if is_swapped is None or A[0] != rank * experts:
            raise self._wrong_shape(module, A, B, (rank * experts, width), (rows, rank * experts))
        return unstacked(self._take(module, target.parameter), experts, is_swapped)

    def _is_swapped(self, model: CausalLM, target: Target, module: str) -> bool | None:
        """Whether a stack's factors are those of PEFT before 0.19; None if they are of neither's shapes.

        Raises:
            UserError: the shapes are those of both, and neither other stacks nor the configuration say which.
        """
        fitting = self._fitting(target, module)
        if len(fitting) < 2:
            return next(iter(fitting), None)
        if self._told_by_shape is None:
            for other in targets_of(model):
                name = self._stack_of(other) if isinstance(other.owner, Experts) else None
                if name is not None and len(told := self._fitting(other, name)) == 1:
                    self._told_by_shape = told[0]
        if self._told_by_shape is not None:
            return self._told_by_shape
        if self.config.version is not None:
            return self.config.version < FIRST_VERSION
        rows = target.weight.shape[1]
        raise UserError(
            f"{self.config.file}: does not say which version of PEFT wrote it, and with {rows} rows and columns the "
            f"factors of {module} fit PEFT before 0.19 as well as later; add peft_version"
        )

    def _fitting(self, target: Target, module: str) -> list[bool]:
        A, B = (self._stored[module][letter][1].shape for letter in "AB")
        return [swapped for swapped in (False, True) if fits_stack(A, B, target.weight.shape, swapped)]

    def _wrong_shape(self, module: str, A: tuple[int, ...], B: tuple[int, ...], *wanted: tuple[int, ...]) -> UserError:
        return UserError(
            f"{self.file}: the factors of {module} are {list(A)} and {list(B)}, but its rank and the network make them "
            f"{list(wanted[0])} and {list(wanted[1])}; the adapter is for another base"
        )
