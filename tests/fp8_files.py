"""Checkpoints made FP8 by blocks, as Qwen's releases are, and what their weights then are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

BLOCK = [16, 12]  # multiples of no shape here
FP8 = torch.float8_e4m3fn


def quantize(weight: torch.Tensor, block: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in FP8 and its scales, which put the largest number of each block at the top of the range."""
    rows, columns = weight.shape
    quantized = torch.empty(rows, columns, dtype=FP8)
    scales = torch.empty(math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scales[i, j] = weight[part].float().abs().max() / 448
            quantized[part] = (weight[part].float() / scales[i, j]).to(FP8)
    return quantized, scales


def product(weight: torch.Tensor, scales: torch.Tensor, block: list[int]) -> torch.Tensor:
    """The definition, number by number."""
    w, s = weight.float().numpy(), scales.float().numpy()
    i, j = np.indices(w.shape)
    return torch.from_numpy(w * s[i // block[0], j // block[1]])


def is_quantized(name: str) -> bool:
    """Which tensors are FP8 in Qwen's releases, but for the attention gates, which have too few rows to matter here."""
    return name.endswith("_proj.weight") or ".in_proj_qkv" in name or ".in_proj_z" in name


def quantize_files(folder: Path, scale_dtype: torch.dtype, block: list[int] = BLOCK) -> dict[str, torch.Tensor]:
    """Make a checkpoint FP8; return what its tensors are now, dequantized in float32."""
    expected, tensors = {}, {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if is_quantized(name):
                tensors[name], scales = quantize(tensor, block)
                tensors[f"{name}_scale_inv"] = scales.to(scale_dtype)
                expected[name] = product(tensors[name], tensors[f"{name}_scale_inv"], block)
            else:
                tensors[name] = expected[name] = tensor
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(tensors, folder / "model.safetensors")
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": block}
    edit_config(folder, quantization_config=quantization)
    return expected


def edit_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json."""
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
