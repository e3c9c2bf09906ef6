"""The network's tensors with the names and layouts of llama.cpp's architectures, in both directions.

Names, layouts and the tensors that stay in float32 are those of llama.cpp's own converter (`conversion/qwen.py`,
`conversion/base.py`) and of the code that reads them (`src/models/qwen3next.cpp`, `qwen35.cpp`, `qwen35moe.cpp`), at
its commit 0c1e57098. These differ from the checkpoint:

- a norm's weight is stored as 1 + w, except for the gated norm of linear attention, whose weight is that already
- A_log is stored as −exp(A_log)
- in_proj_qkvz, whose rows are [q k v z] for each key head in turn, becomes [q | k | v] over all heads, and z
- in `qwen35` and `qwen35moe`, in_proj_ba becomes b and a, and value heads are tiled: the first one of every key head,
  then the second one of every key head. In the checkpoint, and in `qwen3next`, those of a key head are neighbors.
- an expert layer's gates and its up projections are two tensors
- the multi-token-prediction head is a block behind the last
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.hub.layout import Piece, flat_rows
from gossamer.hub.names import EMBEDDING, LM_HEAD, MTP_PREFIX, ROUTER_BIAS
from gossamer.model.config import ModelConfig
from gossamer.model.layer_spec import LayerSpec, layer_specs

QWEN3NEXT, QWEN35, QWEN35MOE = ARCHITECTURES = ("qwen3next", "qwen35", "qwen35moe")

_OUTSIDE = {EMBEDDING: "token_embd.weight", LM_HEAD: "output.weight", "model.norm.weight": "output_norm.weight"}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
_LINEAR_ATTENTION, _GATE_UP = "linear_attn.", "mlp.experts.gate_up_proj"
_MTP = {
    "fc.weight": "nextn.eh_proj.weight",
    "pre_fc_norm_embedding.weight": "nextn.enorm.weight",
    "pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
    "norm.weight": "nextn.shared_head_norm.weight",
}
_FLOAT32_MATRICES = ("norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight")


@dataclass(frozen=True)
class Conversion:
    """A change of a tensor's values between the network and the file.

    Attributes:
        stored: from the network's values to those of the file
        loaded: the way back
    """

    stored: Callable[[Tensor], Tensor]
    loaded: Callable[[Tensor], Tensor]


def _loaded_decay(stored: Tensor) -> Tensor:
    """Return the A_log of which −exp(A_log) is nearest to what is stored: equal to it, if it was written here."""
    decay = -stored.float()
    log = decay.double().log().float()
    for end in (torch.inf, -torch.inf):
        neighbor = torch.nextafter(log, torch.full_like(log, end))
        log = torch.where((log.exp() != decay) & (neighbor.exp() == decay), neighbor, log)
    return log


_ONE_MORE = Conversion(lambda weight: weight.float() + 1, lambda stored: stored.float() - 1)
_DECAY = Conversion(lambda log: -log.float().exp(), _loaded_decay)
_KERNEL = Conversion(lambda kernel: kernel.squeeze(1), lambda stored: stored.unsqueeze(1))


@dataclass(frozen=True)
class GgufTensor(Piece):
    """A tensor of the file as a part of a parameter of the network.

    Attributes:
        columns: the columns of the part in the order of the file; None: as they stand
        conversion: of the values; None: the same values
    """

    columns: Tensor | None = None
    conversion: Conversion | None = None

    def shape(self, parameter: Tensor) -> tuple[int, ...]:
        """Return the shape of this tensor in the file."""
        return tuple(self.read(parameter.to("meta")).shape)

    def read(self, parameter: Tensor) -> Tensor:
        """Return this tensor as the file has it, of the parameter."""
        part = super().read(parameter)
        if self.columns is not None:
            part = part[:, self.columns.to(part.device)]
        part = part if self.conversion is None else self.conversion.stored(part)
        return part.to(gguf_dtype(self.name, part)).contiguous()

    def write(self, parameter: Tensor, start: int, values: Tensor) -> None:
        """Set the rows of this part from `start` on to what the file has."""
        values = values if self.conversion is None else self.conversion.loaded(values)
        if self.columns is not None:  # its rows are in order
            values = values[:, self.columns.argsort()]
        super().write(parameter, start, values)


def architecture_of(config: ModelConfig, parameters: list[str]) -> str:
    """Return llama.cpp's name of the architecture that computes a network.

    Args:
        config: of the network
        parameters: the names of all its parameters

    Raises:
        UserError: llama.cpp does not compute it, or would compute it differently; the message names the reason.
    """
    is_sparse = {spec.is_sparse for spec in layer_specs(config)}
    sparse = QWEN3NEXT if config.model_type == "qwen3_next" else QWEN35MOE
    architecture = QWEN35 if is_sparse == {False} else sparse
    for holds, what in (
        (len(is_sparse) > 1, "layers without experts beside layers with experts"),
        (config.attention_bias, "attention_bias = true"),
        (config.num_experts > 0 and not config.norm_topk_prob, "norm_topk_prob = false"),
        # Here the norm of linear attention's q and k has an ε of its own, 1e-6; in llama.cpp it has this one.
        (config.rms_norm_eps != 1e-6, f"rms_norm_eps = {config.rms_norm_eps} (only 1e-06)"),
        (
            config.linear_key_head_dim != config.linear_value_head_dim,
            f"linear_key_head_dim = {config.linear_key_head_dim} other than "
            f"linear_value_head_dim = {config.linear_value_head_dim}",
        ),
        (any(name.endswith(ROUTER_BIAS) for name in parameters), "biases of the routers (balance: loss trains none)"),
    ):
        if holds:
            raise UserError(f"llama.cpp's {architecture} does not support {what}; export this model with --to hf")
    return architecture


def gguf_dtype(name: str, tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor is stored: a matrix keeps one of two bytes, all else is float32."""
    narrow = tensor.dtype in (torch.bfloat16, torch.float16) and tensor.ndim > 1 and not is_float32(name)
    return tensor.dtype if narrow else torch.float32


def is_float32(name: str) -> bool:
    """Whether a tensor of the file is in float32 whatever type the others have, though it may be a matrix."""
    return name.endswith(_FLOAT32_MATRICES)


def gguf_tensors(parameter: str, config: ModelConfig, architecture: str) -> list[GgufTensor]:
    """Return the tensors that a parameter of the network is in a file of an architecture."""
    specs = layer_specs(config)
    for block, spec in enumerate(specs):
        if parameter.startswith(f"{spec.name}."):
            part = parameter.removeprefix(f"{spec.name}.")
            tiled = architecture != QWEN3NEXT
            return [replace(one, name=f"blk.{block}.{one.name}") for one in _in_layer(part, spec, tiled)]
    conversion = _ONE_MORE if "norm" in parameter else None
    if parameter.startswith(MTP_PREFIX):
        name = f"blk.{config.num_hidden_layers}.{_MTP[parameter.removeprefix(MTP_PREFIX)]}"
        return [GgufTensor(name, conversion=conversion)]
    return [GgufTensor(_OUTSIDE[parameter], conversion=conversion)]


def _in_layer(part: str, spec: LayerSpec, tiled: bool) -> list[GgufTensor]:
    """Return the tensors that a parameter of a layer is, by their names in a block."""
    if part.startswith(_LINEAR_ATTENTION):
        return _linear_attention(spec, tiled)[part.removeprefix(_LINEAR_ATTENTION)]
    if part == _GATE_UP:
        gate, up = slice(0, spec.moe_intermediate_size), slice(spec.moe_intermediate_size, None)
        return [
            GgufTensor("ffn_gate_exps.weight", (slice(None), gate)),
            GgufTensor("ffn_up_exps.weight", (slice(None), up)),
        ]
    return [GgufTensor(_LAYER[part], conversion=_ONE_MORE if "norm" in part else None)]


@lru_cache(maxsize=2)
def _linear_attention(spec: LayerSpec, tiled: bool) -> dict[str, list[GgufTensor]]:
    """Return the tensors that each parameter of a layer's linear attention is.

    Args:
        spec: of the layer
        tiled: the value heads are tiled in the file, not key head by key head
    """
    flat = flat_rows(
        spec.linear_num_key_heads,
        spec.linear_num_value_heads,
        spec.linear_key_head_dim,
        spec.linear_value_head_dim,
    )
    heads, values = torch.arange(spec.linear_num_value_heads), torch.arange(spec.linear_value_dim)
    if tiled:
        heads, values = (_tiled(order, spec.linear_num_key_heads, len(heads)) for order in (heads, values))
    channels = torch.cat([torch.arange(2 * spec.linear_key_dim), 2 * spec.linear_key_dim + values])
    beta_alpha = [
        GgufTensor("ssm_beta.weight", rows=flat["b"][heads]),
        GgufTensor("ssm_alpha.weight", rows=flat["a"][heads]),
    ]
    return {
        "in_proj_qkvz.weight": [
            GgufTensor("attn_qkv.weight", rows=flat["qkv"][channels]),
            GgufTensor("attn_gate.weight", rows=flat["z"][values]),
        ],
        "in_proj_ba.weight": beta_alpha if tiled else [GgufTensor("ssm_ba.weight")],
        "conv1d.weight": [GgufTensor("ssm_conv1d.weight", rows=channels, conversion=_KERNEL)],
        "dt_bias": [GgufTensor("ssm_dt.bias", rows=heads)],
        "A_log": [GgufTensor("ssm_a", rows=heads, conversion=_DECAY)],
        "norm.weight": [GgufTensor("ssm_norm.weight")],
        "out_proj.weight": [GgufTensor("ssm_out.weight", columns=values if tiled else None)],
    }


def _tiled(order: Tensor, key_heads: int, value_heads: int) -> Tensor:
    """Reorder the rows of value heads, [value heads × width], from key head by key head to tiled."""
    return order.view(key_heads, value_heads // key_heads, -1).transpose(0, 1).flatten()
