"""Checkpoints in every layout that is seen: read to the same weights, and written as they were or as asked for."""

import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import gossamer
from gossamer import hub
from gossamer.cli import main
from gossamer.data.tokenizer import train_bpe
from gossamer.hub.layout import NAMED_LAYOUTS, Layout, layout_of, named_layout, released_layout, written_layout
from hub_layouts import FAMILY, layouts, refused

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
QWEN3_5 = released_layout("qwen3_5_text")
VISION = {"model.visual.blocks.0.norm1.weight": torch.ones(3), "model.visual.merger.norm.weight": torch.ones(3)}


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@few
@given(
    kind=st.sampled_from(list(FAMILY)),
    layout=layouts,
    repeats=st.sampled_from([1, 2, 3, 8]),
    tied=st.booleans(),
    mtp=st.integers(0, 1),
)
def test_every_layout_is_read_and_written(
    build, write, same_weights, tmp_path_factory, kind, layout, repeats, tied, mtp
) -> None:
    changes = {"linear_num_value_heads": 2 * repeats, "tie_word_embeddings": tied, "num_nextn_predict_layers": mtp}
    model = build(**FAMILY[kind] | changes)
    folder = tmp_path_factory.mktemp("any")
    write(model, folder / "read", layout)
    assert same_weights(gossamer.load(folder / "read"), model)
    hub.export(folder / "read", folder / "written")
    again = gossamer.load(folder / "written")
    assert again.config.to_dict() == model.config.to_dict()
    assert same_weights(again, model)
    found = layout_of(names_in(folder / "read"), kind)
    assert layout_of(names_in(folder / "written"), kind) == written_layout(found)


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("name", NAMED_LAYOUTS)
def test_a_layout_that_is_asked_for(build, same_weights, tmp_path, kind, name) -> None:
    model = build(torch.bfloat16, **FAMILY[kind] | {"mlp_only_layers": ()})
    gossamer.save(model, tmp_path / "m")
    hub.export(tmp_path / "m", tmp_path / "exported", name)
    gossamer.save(model, tmp_path / "saved", layout=name)
    weights = "model.safetensors"
    assert (tmp_path / "exported" / weights).read_bytes() == (tmp_path / "saved" / weights).read_bytes()
    layout, config = named_layout(name, model.config)
    again = gossamer.load(tmp_path / "saved")
    assert again.config.to_dict() == config.to_dict()
    assert same_weights(again, model)
    assert layout_of(names_in(tmp_path / "saved"), kind).flat_projections == layout.flat_projections
    hub.export(tmp_path / "exported", tmp_path / "back", kind.removesuffix("_text").removesuffix("_moe"))
    assert (tmp_path / "back" / weights).read_bytes() == (tmp_path / "m" / weights).read_bytes()


def test_the_verb_converts(build, tmp_path, capsys) -> None:
    gossamer.save(build(mlp_only_layers=()), tmp_path / "m")
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "a"), "--layout", "qwen3_5_per_expert"]) == 0
    assert "model.layers.0.mlp.experts.0.up_proj.weight" in names_in(tmp_path / "a")
    assert "model.layers.0.linear_attn.in_proj_z.weight" in names_in(tmp_path / "a")
    capsys.readouterr()
    gossamer.save(build(), tmp_path / "mixed")  # one layer is dense, which Qwen3.5 cannot say
    for words, problem in (
        ([str(tmp_path / "mixed"), str(tmp_path / "b"), "--layout", "qwen3_5"], "mlp_only_layers"),
        ([str(tmp_path / "m"), str(tmp_path / "b.gguf"), "--to", "gguf", "--layout", "qwen3_5"], "--layout qwen3_5"),
    ):
        assert main(["export", *words]) == 2
        error = capsys.readouterr().err
        assert problem in error and error.count("\n") == 1
    assert not (tmp_path / "b").exists() and not (tmp_path / "b.gguf").exists()


def test_what_stays_in_float32_is_written_so(build, tmp_path) -> None:
    model = build(torch.bfloat16, **FAMILY["qwen3_5_text"])
    gossamer.save(model, tmp_path / "m")
    hub.export(tmp_path / "m", tmp_path / "n")
    with safe_open(tmp_path / "n" / "model.safetensors", "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert types["model.layers.0.linear_attn.A_log"] == types["model.layers.0.linear_attn.norm.weight"] == "F32"
    assert types["model.layers.0.linear_attn.in_proj_qkv.weight"] == "BF16"


# A checkpoint that also sees pictures.


def nested(values: dict) -> dict:
    outer = {"model_type": values["model_type"].removesuffix("_text"), "vision_config": {"depth": 1}}
    return outer | {"text_config": values, "image_token_id": 60, "tie_word_embeddings": values["tie_word_embeddings"]}


@pytest.fixture
def pictures(build, write, tmp_path) -> Path:
    """A checkpoint of Qwen3.5's with a vision tower."""
    model = build(**FAMILY["qwen3_5_text"])
    layout = Layout(trunk="model.language_model.", flat_projections=True)
    folder = write(model, tmp_path / "pictures", layout, lambda tensors: tensors.update(VISION))
    values = model.config.to_dict()
    values["rope_parameters"] |= {"mrope_section": [1, 1, 0], "mrope_interleaved": True}
    (folder / "config.json").write_text(json.dumps(nested(values)))
    return folder


def test_the_vision_tower_is_left_out_and_said_once(pictures, build, same_weights, caplog) -> None:
    with caplog.at_level(logging.INFO, "gossamer"):
        model = gossamer.load(pictures)
    assert same_weights(model, build(**FAMILY["qwen3_5_text"]))
    said, head = (record.getMessage() for record in caplog.records)
    for part in ("text alone", "vision_config", "mrope_section", "2 tensors", "model.visual."):
        assert part in said
    assert "with a multi-token-prediction head" in head


def test_its_text_part_is_exported(pictures, build, same_weights, tmp_path) -> None:
    hub.export(pictures, tmp_path / "text")
    assert not any(name.startswith("model.visual.") for name in names_in(tmp_path / "text"))
    assert json.loads((tmp_path / "text" / "config.json").read_text())["model_type"] == "qwen3_5_text"
    assert same_weights(gossamer.load(tmp_path / "text"), build(**FAMILY["qwen3_5_text"]))


def test_a_text_part_that_is_not_whole(build, write, pictures) -> None:
    config = (pictures / "config.json").read_text()
    lost = "model.language_model.layers.2.linear_attn.in_proj_qkv.weight"

    def change(tensors) -> None:
        tensors.update(VISION)
        del tensors[lost]

    layout = Layout(trunk="model.language_model.", flat_projections=True)
    write(build(**FAMILY["qwen3_5_text"]), pictures, layout, change)
    (pictures / "config.json").write_text(config)
    refused(pictures, str(pictures), "1 tensor is missing", lost)
    write(build(**FAMILY["qwen3_5_text"]), pictures, layout, lambda tensors: [tensors.clear(), tensors.update(VISION)])
    (pictures / "config.json").write_text(config)
    refused(pictures, "tensors are missing", "model.embed_tokens.weight")


@pytest.mark.parametrize(("outside", "inside"), [(True, False), (False, True), (None, True), (True, None)])
def test_what_is_said_outside_decides_whether_the_head_is_tied(build, write, tmp_path, outside, inside) -> None:
    tied = outside if outside is not None else inside
    model = build(**FAMILY["qwen3_5_text"], tie_word_embeddings=tied)
    write(model, tmp_path, QWEN3_5)
    values = nested(model.config.to_dict() | {"tie_word_embeddings": inside}) | {"tie_word_embeddings": outside}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert gossamer.load(tmp_path).config.tie_word_embeddings == tied


# The multi-token-prediction head.


def test_more_layers_are_promised_than_are_there(build, write, tmp_path, caplog, same_weights) -> None:
    model = build(**FAMILY["qwen3_5_text"])
    write(model, tmp_path, QWEN3_5, mtp_num_hidden_layers=3)
    assert same_weights(gossamer.load(tmp_path), model)
    assert "promises a multi-token-prediction head of 3 layers" in caplog.text


def test_a_second_layer_is_refused(build, write, tmp_path) -> None:
    name = "mtp.layers.1.input_layernorm.weight"
    write(build(), tmp_path, Layout(), lambda tensors: tensors.update({name: torch.zeros(32)}))
    refused(tmp_path, name, "second layer")


def test_a_head_without_its_block(build, write, tmp_path) -> None:
    lost = "mtp.layers.0.input_layernorm.weight"
    write(build(), tmp_path, Layout(), lambda tensors: tensors.pop(lost))
    refused(tmp_path, "1 tensor is missing", lost)


# Mixtures.


def test_two_prefixes(build, write, tmp_path) -> None:
    extra = "model.language_model.layers.0.input_layernorm.weight"
    write(build(), tmp_path, Layout(), lambda tensors: tensors.update({extra: torch.zeros(32)}))
    refused(tmp_path, str(tmp_path), extra, "two prefixes")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.linear_attn.in_proj_qkv.weight", (64, 32)),
        ("model.layers.0.linear_attn.in_proj_a.weight", (4, 32)),
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 32, 32)),
    ],
)
def test_weights_in_two_forms(build, write, tmp_path, name, shape) -> None:
    write(build(), tmp_path, Layout(), lambda tensors: tensors.update({name: torch.zeros(shape)}))
    refused(tmp_path, name, "stored twice")


def test_half_of_a_flat_projection(build, write, tmp_path) -> None:
    lost = "model.layers.0.linear_attn.in_proj_b.weight"
    write(build(), tmp_path, QWEN3_5, lambda tensors: tensors.pop(lost))
    refused(tmp_path, "1 tensor is missing", lost)


def test_a_flat_projection_of_another_shape(build, write, tmp_path) -> None:
    name = "model.layers.0.linear_attn.in_proj_z.weight"
    write(build(), tmp_path, QWEN3_5, lambda tensors: tensors.update({name: torch.zeros(31, 32)}))
    refused(tmp_path, name, "[31, 32]", "[32, 32]")


# Nothing that is no model.


def test_an_adapter_without_its_base_is_no_model(build, tmp_path) -> None:
    gossamer.save(build(), tmp_path)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3.5-0.8B"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    refused(tmp_path, "adapter", "its base, Qwen/Qwen3.5-0.8B, is not there")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "adapter")
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_the_keys_of_a_released_configuration(build, write, tmp_path, same_weights) -> None:
    """Those of Qwen3.5's releases that are written otherwise here, or not at all."""
    model = build(**FAMILY["qwen3_5_moe_text"], partial_rotary_factor=0.5)
    folder = write(model, tmp_path, QWEN3_5)
    values = model.config.to_dict()
    for key in ("architectures", "partial_rotary_factor", "rope_theta"):
        values.pop(key, None)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    values |= {
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 63,
        "full_attention_interval": 4,
        "mlp_only_layers": [],
        "output_gate_type": "swish",
        "output_router_logits": False,
        "pad_token_id": None,
        "rope_parameters": rope | {"mrope_interleaved": True, "mrope_section": [2, 1, 1]},
        "use_cache": True,
    }
    outer = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "transformers_version": "4.57.0.dev0"}
    outer |= {f"{name}_token_id": 60 for name in ("image", "video", "vision_start", "vision_end")}
    (folder / "config.json").write_text(json.dumps(nested(values) | outer))
    assert same_weights(gossamer.load(folder), model)
    changed = {"attn_output_gate": False, "output_gate_type": "sigmoid", "mtp_use_dedicated_embeddings": True}
    for key, value in changed.items():
        (folder / "config.json").write_text(json.dumps(nested(values | {key: value})))
        refused(folder, "config.json", f"{key} = {value!r} is not supported")


def test_nulls_ask_for_nothing(build, write, tmp_path, same_weights) -> None:
    model = build(**FAMILY["qwen3_5_moe_text"])
    keys = ("layer_types", "rms_norm_eps", "quantization_config", "something_new", "rope_scaling", "attn_output_gate")
    write(model, tmp_path, QWEN3_5, **dict.fromkeys(keys))
    assert same_weights(gossamer.load(tmp_path), model)


@pytest.mark.parametrize(("rows", "status"), [(280, 0), (264, 2)])
def test_a_tokenizer_and_an_embedding_of_other_sizes(build, tmp_path, capsys, rows, status) -> None:
    """Rows without a token are padding, as in Qwen's releases; a token without a row is refused."""
    tokenizer = train_bpe(["the cat sat on the mat, the cat sat there"], 280)
    assert tokenizer.vocab_size == 265
    gossamer.save(build(**FAMILY["qwen3_5_text"], vocab_size=rows), tmp_path / "m", tokenizer)
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 9)
    for words in (["sample", "--max_tokens=2"], ["eval", "--data", str(tmp_path / "text.txt")]):
        assert main([words[0], str(tmp_path / "m"), *words[1:]]) == status
        error = capsys.readouterr().err
        assert ("has 265 entries, but the embedding has only 264 rows" in error) == (status == 2)
