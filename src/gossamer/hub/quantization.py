"""What config.json says about a quantization: FP8 by blocks is read, every other kind is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.errors import UserError, shorten
from gossamer.typed import shown

LOAD_INSTEAD = (
    "load the unquantized release, or the FP8 one by blocks (quant_method fp8, weight_block_size), "
    "or a GGUF file of it with llama.cpp"
)
_NAMES = {"awq": "AWQ", "gptq": "GPTQ", "modelopt": "ModelOpt", "modelopt_fp4": "ModelOpt (NVFP4)", "fp8": "FP8"}
_MAX_BLOCK = 1 << 20

Block = tuple[int, int]


def read_block(values: Mapping[str, Any]) -> Block | None:
    """Return the rows and columns of a block of a config.json's FP8 weights; None: the checkpoint is not quantized.

    Raises:
        UserError: it is quantized in another way; the message names that, and what can be loaded instead.
    """
    inner = values.get("text_config")
    parts = [values, *([inner] if isinstance(inner, Mapping) else [])]
    keys = ("quantization_config", "compression_config", "quantization")
    found = next((part[key] for part in parts for key in keys if part.get(key) is not None), None)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise UserError(f"quantization_config = {shown(found)}: expected an object")
    block = found.get("weight_block_size")
    is_block = (
        isinstance(block, list) and len(block) == 2 and all(type(n) is int and 0 < n <= _MAX_BLOCK for n in block)
    )
    if found.get("quant_method") == "fp8" and found.get("fmt") in (None, "e4m3") and is_block:
        rows, columns = block  # type: ignore[misc]  # checked above
        return rows, columns
    raise UserError(f"a checkpoint quantized as {_kind(found)}, which gossamer does not read; {LOAD_INSTEAD}")


def _kind(quantization: Mapping[str, Any]) -> str:
    """Return the name of a quantization, with what else its config.json tells of it."""
    method = quantization.get("quant_method", "MLX" if "group_size" in quantization else None)
    name = _NAMES.get(method, shorten(method)) if isinstance(method, str) else "an unknown kind"
    details = [str(quantization[key]) for key in ("format", "quant_algo", "fmt") if quantization.get(key) is not None]
    if quantization.get("bits") is not None:
        details.append(f"{quantization['bits']} bits")
    if method == "fp8":
        details.append(f"weight_block_size {quantization.get('weight_block_size')}")
    return f"{name} ({shorten(', '.join(details))})" if details else name
