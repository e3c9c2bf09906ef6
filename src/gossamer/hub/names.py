"""The names of the network's parameters in a checkpoint, and the two layouts of its experts.

- released, one tensor for each expert: `mlp.experts.{e}.gate_proj.weight`, `up_proj`, `down_proj`. Written by Qwen, by
  transformers and by `gossamer.save`; read by vLLM and SGLang.
- stacked, the network's own: `mlp.experts.gate_up_proj` [E, 2I, hidden], `mlp.experts.down_proj` [E, hidden, I].
  Written by transformers with `save_original_format=False`.

Everything else has one name and one shape in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer.errors import shorten

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_PATTERN = "model{suffix}.safetensors"
LM_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
MTP_PREFIX = "mtp."
# Only where a router was balanced with one: Qwen3-Next's own checkpoints hold none. The name is DeepSeek-V3's.
ROUTER_BIAS = ".mlp.gate.e_score_correction_bias"

# Where one expert's matrix lies in the stacked parameter, or () for the whole of a parameter.
Index = tuple[int | slice, ...]

_GATE_UP, _DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"
# A_log becomes −inf in a narrower type and these are a few hundred numbers: float32 whatever the model is loaded in.
_FLOAT32_PARAMETERS = (".linear_attn.A_log", ".linear_attn.dt_bias", ".linear_attn.norm.weight", ROUTER_BIAS)


def released_names(parameter: str, shape: torch.Size) -> Iterator[tuple[str, Index]]:
    """Yield the tensors that a parameter is in the released layout: each one's name, and its place in the parameter.

    Every place is contiguous in memory, so that it is read and written without a copy.
    """
    if parameter.endswith(_GATE_UP):
        prefix, width = parameter.removesuffix("gate_up_proj"), shape[1] // 2
        for expert in range(shape[0]):
            yield f"{prefix}{expert}.gate_proj.weight", (expert, slice(0, width))
            yield f"{prefix}{expert}.up_proj.weight", (expert, slice(width, None))
    elif parameter.endswith(_DOWN):
        prefix = parameter.removesuffix("down_proj")
        for expert in range(shape[0]):
            yield f"{prefix}{expert}.down_proj.weight", (expert,)
    else:
        yield parameter, ()


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all that a network holds, by its own names: parameters, a tied one once, and the biases of routers."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def released_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all that a network holds in the released layout, as views of it."""
    return {
        name: tensor.detach()[index]
        for own, tensor in tensors_of(model).items()
        for name, index in released_names(own, tensor.shape)
    }


def load_dtype(parameter: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a parameter when the model is loaded in `dtype`: that one, or at least float32."""
    return torch.promote_types(dtype, torch.float32) if parameter.endswith(_FLOAT32_PARAMETERS) else dtype


def is_weight_file(path: Path) -> bool:
    """Whether a file of a model directory belongs to its weights."""
    return path.name in (WEIGHTS, INDEX) or path.match("model-*-of-*.safetensors")


def first_few(names: Iterable[str], max_names: int = 3) -> str:
    """Return the first few names, for a message of one line."""
    names = list(names)
    return ", ".join(map(shorten, names[:max_names])) + (", …" if len(names) > max_names else "")
