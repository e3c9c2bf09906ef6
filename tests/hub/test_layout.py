"""Which layout a checkpoint has by its names, and that the pieces of each form are the whole parameter, once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from gossamer import CausalLM, ModelConfig, UserError
from gossamer.hub.layout import (
    Layout,
    Piece,
    forms,
    layout_of,
    named_layout,
    released_layout,
    tensors_in,
    written_layout,
)
from hub_layouts import layouts
from model_configs import configs


def build(config: ModelConfig) -> CausalLM:
    model = CausalLM(config, random_weights=False)
    for number, parameter in enumerate(model.parameters()):
        parameter.data = torch.arange(parameter.numel()).view(parameter.shape) + 1000.0 * number
    return model


@settings(max_examples=30, deadline=None)
@given(config=configs())
def test_the_pieces_of_every_form_cover_the_parameter_once(config: ModelConfig) -> None:
    for name, parameter in build(config).named_parameters():
        for pieces in forms(name, parameter.shape, config):
            again, covered = torch.zeros_like(parameter), torch.zeros_like(parameter)
            with torch.no_grad():
                for piece in pieces:
                    part = piece.read(parameter)
                    assert tuple(part.shape) == piece.shape(parameter)
                    for start in range(0, len(part), 3):
                        piece.write(again, start, part[start : start + 3])
                        piece.write(covered, start, piece.read(covered)[start : start + 3] + 1)
            assert torch.equal(again, parameter)
            assert bool((covered == 1).all())
            assert len({piece.name for piece in pieces}) == len(pieces)


@settings(max_examples=30, deadline=None)
@given(config=configs(), layout=layouts)
def test_the_names_tell_the_layout(config: ModelConfig, layout: Layout) -> None:
    model = build(config)
    names = tensors_in(layout, model, config).keys()
    found = layout_of(names, config.model_type)
    assert tensors_in(found, model, config).keys() == names
    assert layout_of([*names, "model.visual.blocks.0.norm1.weight"], config.model_type) == found


def test_flat_rows_are_those_of_transformers() -> None:
    """[q k v z] of each key head become q | k | v, each of all heads, and z; the gates are interleaved alike."""
    config = ModelConfig(
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=1, linear_value_head_dim=1
    )
    rows = {
        piece.name.rpartition("in_proj_")[2]: piece.rows.tolist()
        for name, width in (("in_proj_qkvz", 12), ("in_proj_ba", 8))
        for piece in forms(f"model.layers.0.linear_attn.{name}.weight", torch.Size([width, 3]), config)[1]
    }
    assert rows == {
        "qkv.weight": [0, 6, 1, 7, 2, 3, 8, 9],
        "z.weight": [4, 5, 10, 11],
        "b.weight": [0, 1, 4, 5],
        "a.weight": [2, 3, 6, 7],
    }


def test_the_gate_is_the_first_half() -> None:
    name = "model.layers.3.mlp.experts.gate_up_proj"
    _, apart = forms(name, torch.Size([1, 6, 2]), ModelConfig())
    assert apart == [
        Piece("model.layers.3.mlp.experts.0.gate_proj.weight", (0, slice(0, 3))),
        Piece("model.layers.3.mlp.experts.0.up_proj.weight", (0, slice(3, None))),
    ]


def test_everything_else_has_one_form() -> None:
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.shared_expert.down_proj.weight"):
        assert forms(name, torch.Size([4, 4]), ModelConfig()) == [[Piece(name)]]


def test_what_no_name_tells_is_as_released() -> None:
    for model_type in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        assert layout_of([], model_type) == released_layout(model_type)
        flat = layout_of(["model.layers.0.linear_attn.in_proj_qkv.weight"], model_type)
        assert flat == replace(released_layout(model_type), flat_projections=True)


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.0.input_layernorm.weight", "model.language_model.layers.1.input_layernorm.weight"],
        ["model.norm.weight", "language_model.model.embed_tokens.weight"],
        ["mtp.fc.weight", "model.mtp.norm.weight"],
        ["lm_head.weight", "language_model.lm_head.weight"],
    ],
)
def test_a_mixture_of_prefixes_is_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match="two prefixes") as refusal:
        layout_of(names, "qwen3_5_text")
    assert all(name in str(refusal.value) for name in names)


def test_a_layout_by_its_name_changes_the_model_type() -> None:
    config = ModelConfig(num_experts=4, num_experts_per_tok=2)
    layout, same = named_layout("qwen3_next", config)
    assert (layout, same) == (released_layout("qwen3_next"), config)
    for name, trunk, stacked in (
        ("qwen3_5", "model.", True),
        ("qwen3_5_per_expert", "model.", False),
        ("qwen3_5_language_model", "model.language_model.", True),
    ):
        layout, newer = named_layout(name, config)
        assert newer == replace(config, model_type="qwen3_5_moe_text")
        assert (layout.trunk, layout.stacked_experts, layout.flat_projections) == (trunk, stacked, True)
        assert named_layout("qwen3_next", newer)[1] == config
    assert named_layout("qwen3_5", replace(config, num_experts=0))[1].model_type == "qwen3_5_text"
    with pytest.raises(UserError, match="layout 'gguf': must be one of qwen3_next, qwen3_5"):
        named_layout("gguf", config)
    with pytest.raises(UserError, match="layout qwen3_5: mlp_only_layers"):
        named_layout("qwen3_5", replace(config, mlp_only_layers=(0,)))


def test_what_is_read_is_written_where_other_programs_look() -> None:
    wrapped = Layout(trunk="language_model.model.", mtp="language_model.mtp.", head="language_model.lm_head.weight")
    assert written_layout(wrapped) == Layout()
    assert written_layout(replace(wrapped, stacked_mtp_experts=True)) == Layout(stacked_mtp_experts=True)
