"""The network's tensors with the names and layouts of llama.cpp's architecture `qwen3next`.

Names, layouts and the tensors that stay in float32 are those of llama.cpp's own converter (`conversion/qwen.py`,
`conversion/base.py`) and of the code that reads them (`src/models/qwen3next.cpp`), at its commit 0c1e57098. These
differ from the checkpoint:

- a norm's weight is stored as 1 + w, except for the gated norm of linear attention, whose weight is that already
- A_log is stored as −exp(A_log)
- in_proj_qkvz, whose rows are [q k v z] for each key head in turn, becomes [q | k | v] over all heads, and z
- an expert layer's gates and its up projections are two tensors
- the multi-token-prediction head is a block behind the last
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.hub.names import EMBEDDING, LM_HEAD, MTP_PREFIX, ROUTER_BIAS
from gossamer.model.config import ModelConfig

_OUTSIDE = {EMBEDDING: "token_embd.weight", LM_HEAD: "output.weight", "model.norm.weight": "output_norm.weight"}
_BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_ba.weight": "ssm_ba.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
_MTP = {
    "fc.weight": "nextn.eh_proj.weight",
    "pre_fc_norm_embedding.weight": "nextn.enorm.weight",
    "pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
    "norm.weight": "nextn.shared_head_norm.weight",
}
_QKVZ, _GATE_UP = "linear_attn.in_proj_qkvz.weight", "mlp.experts.gate_up_proj"
_FLOAT32_MATRICES = ("norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight")


def check_supported(config: ModelConfig, parameters: list[str]) -> None:
    """Refuse a network that llama.cpp's `qwen3next` does not compute, or would compute differently.

    Raises:
        UserError: it is such a network; the message names the reason.
    """
    for holds, what in (
        (not all(config.is_sparse(layer) for layer in range(config.num_hidden_layers)), "layers without experts"),
        (config.attention_bias, "attention_bias = true"),
        (not config.norm_topk_prob, "norm_topk_prob = false"),
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
            raise UserError(f"llama.cpp's qwen3next does not support {what}; export this model with --to hf")


def gguf_tensors(parameter: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a parameter of the network becomes in the file: names and tensors, in NumPy's shapes.

    A tensor on the meta device gives shapes and types. The types are those of `gguf_dtype`.
    """
    prefix, part = _place(parameter, config)
    for name, converted in _converted(part, tensor, config):
        yield prefix + name, converted.to(gguf_dtype(prefix + name, converted)).contiguous()


def gguf_dtype(name: str, tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor is stored: a matrix keeps one of two bytes, all else is float32."""
    narrow = (
        tensor.dtype in (torch.bfloat16, torch.float16) and tensor.ndim > 1 and not name.endswith(_FLOAT32_MATRICES)
    )
    return tensor.dtype if narrow else torch.float32


def _place(parameter: str, config: ModelConfig) -> tuple[str, str]:
    """Return the prefix of a parameter's block in the file, and its name in that block."""
    if parameter.startswith(MTP_PREFIX):
        part = parameter.removeprefix(MTP_PREFIX)
        return f"blk.{config.num_hidden_layers}.", part.removeprefix("layers.0.")
    if parameter.startswith("model.layers."):
        _, _, layer, part = parameter.split(".", 3)
        return f"blk.{layer}.", part
    return "", parameter


def _converted(part: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of a parameter of a block in the file."""
    if part == _QKVZ:
        qkv, z = _split_qkvz(tensor, config)
        yield "attn_qkv.weight", qkv
        yield "attn_gate.weight", z
    elif part == _GATE_UP:
        gate, up = tensor.chunk(2, dim=1)
        yield "ffn_gate_exps.weight", gate
        yield "ffn_up_exps.weight", up
    else:
        change = _CHANGES.get(part, _add_one if "norm" in part else None)
        yield (_OUTSIDE | _BLOCK | _MTP)[part], tensor if change is None else change(tensor)


def _add_one(weight: Tensor) -> Tensor:
    return weight.float() + 1


_CHANGES: dict[str, Callable[[Tensor], Tensor] | None] = {
    "linear_attn.norm.weight": None,
    "linear_attn.A_log": lambda log: -torch.exp(log.float()),
    "linear_attn.conv1d.weight": lambda kernel: kernel.squeeze(1),
}


def _split_qkvz(weight: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Split the weight of in_proj_qkvz into those of qkv and z.

    Args:
        weight: [key heads × (q k v z), hidden]
        config: of the network

    Returns:
        [q of all heads | k | v, hidden], and z [value heads × width, hidden].
    """
    heads, key = config.linear_num_key_heads, config.linear_key_head_dim
    value = config.linear_value_dim // heads
    parts = weight.view(heads, -1, weight.shape[-1]).split([key, key, value, value], dim=1)
    q, k, v, z = (part.flatten(0, 1) for part in parts)
    return torch.cat([q, k, v]), z
