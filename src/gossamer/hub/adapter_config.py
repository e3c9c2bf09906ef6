"""PEFT's adapter_config.json: what it says about the factors of an adapter, and what gossamer writes there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from gossamer.errors import UserError, shorten
from gossamer.hub.find import ADAPTER_CONFIG
from gossamer.reading import checked, read_object
from gossamer.typed import shown

FIRST_VERSION = (0, 19)  # of PEFT, with the factors of stacked experts as they are now
_WRITTEN_VERSION = "0.19.0"
# Fields that do not say what an adapter computes, or that its tensors say again.
_NOT_COMPUTED = frozenset(
    "auto_mapping task_type revision inference_mode lora_dropout layers_to_transform layers_pattern exclude_modules "
    "megatron_core qalora_group_size runtime_config eva_config ensure_weight_tying".split()
)
_BASE_UNCHANGED = (True, False, "gaussian", "eva", "orthogonal")  # other ways to begin change the weights of the base
_SAVE_AGAIN = "save the adapter again"


class _Fields(TypedDict, total=False):
    peft_type: str
    base_model_name_or_path: str | None
    r: int
    lora_alpha: float
    target_modules: list[str] | str | None
    target_parameters: list[str] | None
    rank_pattern: dict[str, int] | None
    alpha_pattern: dict[str, float] | None
    use_rslora: bool
    peft_version: str | None
    init_lora_weights: bool | str
    bias: str


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter_config.json says.

    Attributes:
        file: the file
        base: the model that the adapter was trained for, as the file names it; "" if it does not
        rank: r of a module that no pattern names
        alpha: α of a module that no pattern names
        rank_pattern: r by the end of a module's name, a regular expression
        alpha_pattern: α in the same way
        rank_stabilized: whether the scale is α / √r, not α / r
        target_parameters: parameters that have factors, by the ends of their names
        version: of PEFT, its first two numbers; None: the file does not say
    """

    file: Path
    base: str
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool
    target_parameters: tuple[str, ...]
    version: tuple[int, int] | None

    def rank_of(self, name: str) -> int:
        """Return the rank of a module or a parameter."""
        return _by_pattern(self.rank_pattern, name, self.rank)

    def scale_of(self, name: str) -> float:
        """Return the scale of a module or a parameter."""
        rank, alpha = self.rank_of(name), _by_pattern(self.alpha_pattern, name, self.alpha)
        return alpha / (rank**0.5 if self.rank_stabilized else rank)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Return what the adapter_config.json of a folder says.

    Raises:
        UserError: there is none, or the adapter is of a kind that gossamer does not compute; the line names the field.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise UserError(
            f"{folder}: holds no adapter ({ADAPTER_CONFIG}); name a run of `gossamer tune --lora` or PEFT's"
        )
    values = read_object(file)
    said: _Fields = checked(values, _Fields, str(file), _SAVE_AGAIN)
    _require_lora(values, file)
    rank, patterns = said.get("r", 8), (said.get("rank_pattern") or {}, said.get("alpha_pattern") or {})
    for pattern in (key for one in patterns for key in one):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{file}: the pattern {shown(pattern)} is no regular expression; {_SAVE_AGAIN}") from error
    if min([rank, *patterns[0].values()]) < 1:
        raise UserError(f"{file}: a rank must be 1 or more; {_SAVE_AGAIN}")
    return AdapterConfig(
        file=file,
        base=said.get("base_model_name_or_path") or "",
        rank=rank,
        alpha=said.get("lora_alpha", 8.0),
        rank_pattern=patterns[0],
        alpha_pattern=patterns[1],
        rank_stabilized=said.get("use_rslora", False),
        target_parameters=tuple(said.get("target_parameters") or ()),
        version=_version(said.get("peft_version")),
    )


def _require_lora(values: dict[str, Any], file: Path) -> None:
    """Refuse what is no plain LoRA (UserError)."""
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(f"{file}: peft_type = {shown(kind)}: only LoRA is computed here")
    if values.get("bias", "none") != "none":
        raise UserError(f"{file}: bias = {shown(values['bias'])}: trained biases are not read; train with bias='none'")
    begun = values.get("init_lora_weights", True)
    if begun not in _BASE_UNCHANGED:
        raise UserError(
            f"{file}: init_lora_weights = {shown(begun)}: changes the weights of the base, too; convert the adapter to "
            "a plain one with PEFT (path_initial_model_for_weight_conversion)"
        )
    known = _NOT_COMPUTED | _Fields.__annotations__.keys()
    for key, value in values.items():
        if key not in known and value:
            raise UserError(f"{file}: {shorten(key)} = {shown(value)}: only plain LoRA is computed here")


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return the value of the first pattern that a name ends with, as PEFT looks it up."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _version(text: str | None) -> tuple[int, int] | None:
    found = re.match(r"(\d{1,6})\.(\d{1,6})", text or "")
    return (int(found[1]), int(found[2])) if found else None


def written_config(
    base: str,
    rank: int,
    alpha: float,
    ranks: Mapping[str, int],
    target_modules: list[str],
    target_parameters: list[str],
) -> dict[str, Any]:
    """Return the content of an adapter_config.json whose modules all have one scale, α / r.

    Args:
        base: where the base lies
        rank: r of what `ranks` does not name
        alpha: α of what `ranks` does not name
        ranks: ranks by the ends of modules' and parameters' names
        target_modules: the ends of modules' names
        target_parameters: the ends of parameters' names
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "peft_version": _WRITTEN_VERSION,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": dict(ranks),
        "alpha_pattern": {name: alpha * one / rank for name, one in ranks.items()},
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": target_modules,
        "target_parameters": target_parameters or None,
    }
