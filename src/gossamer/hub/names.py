"""The names of the network's own tensors, and of the files in which a checkpoint holds weights.

`gossamer/hub/layout.py` says under which names a checkpoint holds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer.errors import shorten

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_PATTERN = "model{suffix}.safetensors"
LM_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TRUNK_PREFIX, MTP_PREFIX = "model.", "mtp."
# Only where a router was balanced with one: Qwen3-Next's own checkpoints hold none. The name is DeepSeek-V3's.
ROUTER_BIAS = ".mlp.gate.e_score_correction_bias"

# A_log becomes −inf in a narrower type and these are a few hundred numbers: float32 whatever the model is loaded in.
_FLOAT32_PARAMETERS = (".linear_attn.A_log", ".linear_attn.dt_bias", ".linear_attn.norm.weight", ROUTER_BIAS)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all that a network holds, by its own names: parameters, a tied one once, and the biases of routers."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def load_dtype(parameter: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a parameter when the model is loaded in `dtype`: that one, or at least float32."""
    return torch.promote_types(dtype, torch.float32) if parameter.endswith(_FLOAT32_PARAMETERS) else dtype


def is_weight_file(path: Path) -> bool:
    """Whether a file of a model directory belongs to its weights."""
    # Qwen3.5's shards are called model.safetensors-00001-of-00002.safetensors.
    return path.name in (WEIGHTS, INDEX) or path.match("model[-.]*-of-*.safetensors")


def first_few(names: Iterable[str], max_names: int = 3) -> str:
    """Return the first few names, for a message of one line."""
    names = list(names)
    return ", ".join(map(shorten, names[:max_names])) + (", …" if len(names) > max_names else "")
