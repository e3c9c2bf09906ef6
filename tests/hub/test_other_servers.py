"""vLLM and SGLang find every tensor that is written, and find all that they need.

The rules are those of their loaders, read in vLLM 0.33.0 (`qwen3_next.py`, `qwen3_5.py` and their `_mtp.py`) and in
SGLang 0.5.23: how a tensor's name becomes a parameter and a part of it. A part in several tensors counts once each.
"""

import re

import pytest

from gossamer import CausalLM
from gossamer.hub.layout import named_layout, tensors_in
from hub_layouts import FAMILY

# (pattern, parameter, part): the first rule that matches decides.
ATTENTION = [(rf"\.{part}_proj\.", ".qkv_proj.", part) for part in "qkv"]
DENSE = [(r"\.(mlp|shared_expert)\.gate_proj\.", r".\1.gate_up_proj.", "0")]
DENSE += [(r"\.(mlp|shared_expert)\.up_proj\.", r".\1.gate_up_proj.", "1")]
EXPERTS = [(r"\.experts\.(\d+)\.gate_proj\.weight", ".experts.w13_weight", r"gate \1")]
EXPERTS += [(r"\.experts\.(\d+)\.up_proj\.weight", ".experts.w13_weight", r"up \1")]
EXPERTS += [(r"\.experts\.(\d+)\.down_proj\.weight", ".experts.w2_weight", r"down \1")]
FUSED = [(r"\.experts\.gate_up_proj$", ".experts.w13_weight", "all")]
FUSED += [(r"\.experts\.down_proj$", ".experts.w2_weight", "all")]
FLAT = [(r"\.in_proj_qkv\.", ".in_proj_qkvz.", "qkv"), (r"\.in_proj_z\.", ".in_proj_qkvz.", "z")]
FLAT += [(r"\.in_proj_b\.", ".in_proj_ba.", "b"), (r"\.in_proj_a\.", ".in_proj_ba.", "a")]
RULES = [*EXPERTS, *FUSED, *ATTENTION, *DENSE, *FLAT]

# What of the checkpoint each server's model and draft model take, and how they begin its names.
VLLM = {
    "trunk": lambda name: None if name.startswith("mtp.") else re.sub(r"^model\.language_model\.", "model.", name),
    "mtp": lambda name: re.sub(r"^mtp\.", "model.", name) if name.startswith("mtp.") else None,
}
SGLANG = {
    "trunk": lambda name: name if name.startswith("model.") or name == "lm_head.weight" else None,
    "mtp": lambda name: re.sub(r"^mtp\.", "model.", name) if name.startswith("mtp.") else None,
}


def found(names, take) -> set[tuple[str, str]]:
    """The parameters and parts that the names lead to."""
    parts = set()
    for name in filter(None, map(take, names)):
        for pattern, parameter, part in RULES:
            if (match := re.search(pattern, name)) is not None:
                parts.add((re.sub(pattern, parameter, name), match.expand(part)))
                break
        else:
            parts.add((name, ""))
    return parts


def block(prefix: str, config, is_linear: bool, flat: bool, fused: bool) -> set[tuple[str, str]]:
    """The parameters of a block, with their parts."""
    wanted = {(f"{prefix}{norm}.weight", "") for norm in ("input_layernorm", "post_attention_layernorm")}
    if is_linear:
        at = f"{prefix}linear_attn."
        wanted |= {(at + name, "") for name in ("conv1d.weight", "A_log", "dt_bias", "norm.weight", "out_proj.weight")}
        wanted |= {(f"{at}in_proj_qkvz.weight", part) for part in (("qkv", "z") if flat else ("",))}
        wanted |= {(f"{at}in_proj_ba.weight", part) for part in (("b", "a") if flat else ("",))}
    else:
        at = f"{prefix}self_attn."
        wanted |= {(f"{at}qkv_proj.weight", part) for part in "qkv"}
        wanted |= {(f"{at}{name}.weight", "") for name in ("o_proj", "q_norm", "k_norm")}
    dense = f"{prefix}mlp."
    if config.num_experts:
        experts = range(config.num_experts)
        wanted |= {(f"{dense}gate.weight", ""), (f"{dense}shared_expert_gate.weight", "")}
        gates = ["all"] if fused else [f"{part} {expert}" for part in ("gate", "up") for expert in experts]
        downs = ["all"] if fused else [f"down {expert}" for expert in experts]
        wanted |= {(f"{dense}experts.w13_weight", part) for part in gates}
        wanted |= {(f"{dense}experts.w2_weight", part) for part in downs}
        dense += "shared_expert."
    return wanted | {(f"{dense}gate_up_proj.weight", part) for part in "01"} | {(f"{dense}down_proj.weight", "")}


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("layout_name", ["qwen3_next", "qwen3_5", "qwen3_5_per_expert", "qwen3_5_language_model"])
@pytest.mark.parametrize("server", [VLLM, SGLANG], ids=["vLLM", "SGLang"])
def test_every_name_is_found_and_none_is_missing(build, kind, layout_name, server) -> None:
    model: CausalLM = build(**FAMILY[kind] | {"mlp_only_layers": ()})
    layout, config = named_layout(layout_name, model.config)
    if layout.trunk != "model." and server is SGLANG:
        pytest.skip("SGLang has this prefix only beside a vision tower, as docs/checkpoints.md says")
    names = tensors_in(layout, model, config)
    form = {"flat": layout.flat_projections, "fused": layout.stacked_experts}
    wanted = {("model.embed_tokens.weight", ""), ("model.norm.weight", ""), ("lm_head.weight", "")}
    for layer, mixer in enumerate(config.mixers):
        wanted |= block(f"model.layers.{layer}.", config, mixer == "linear_attention", **form)
    assert found(names, server["trunk"]) == wanted
    ends = ("fc", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    wanted = block("model.layers.0.", config, False, **form) | {(f"model.{name}.weight", "") for name in ends}
    assert found(names, server["mtp"]) == wanted


@pytest.mark.parametrize(
    ("layers", "experts", "tensors"),
    [(64, 0, 1199 - 333), (92, 512, 1609)],  # Qwen3.8-27B without the tensors of its tower, and Qwen3.8-2.4T-A95B
)
def test_as_many_tensors_as_are_released(build, layers, experts, tensors) -> None:
    """Stacked experts are two tensors, however many there are, and the sizes do not matter."""
    kind = "qwen3_5_moe_text" if experts else "qwen3_5_text"
    model = build(**FAMILY[kind] | {"num_hidden_layers": layers})
    assert len(tensors_in(named_layout("qwen3_5", model.config)[0], model, model.config)) == tensors
