"""FP8 by blocks is dequantized to exactly weight × scale; what else is quantized is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import gossamer
from fp8_files import FP8, edit_config, is_quantized, product, quantize_files
from gossamer import UserError, hub
from gossamer.hub import shards
from gossamer.hub.fp8 import dequantized, read_scales
from gossamer.hub.layout import Layout
from hub_layouts import FAMILY, refused

WEIGHT = "model.layers.0.linear_attn.in_proj_qkv.weight"
SCALE = WEIGHT + "_scale_inv"
LAYOUT = Layout(flat_projections=True)


def edit_weights(folder: Path, **changes) -> None:
    """Set tensors; None removes one."""
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.fixture
def released(build, write, tmp_path) -> Path:
    """A checkpoint as Qwen's FP8 releases are: flat projections, a tensor for each expert."""
    write(build(torch.bfloat16, **FAMILY["qwen3_5_moe_text"]), tmp_path / "m", LAYOUT)
    quantize_files(tmp_path / "m", torch.bfloat16)
    return tmp_path / "m"


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("kind", "window"),
    [("qwen3_next", None), ("qwen3_5_text", 100), ("qwen3_5_text", None), ("qwen3_5_moe_text", None)],
)
def test_a_checkpoint_is_dequantized(build, write, tmp_path, monkeypatch, scale_dtype, kind, window) -> None:
    layout = Layout() if kind == "qwen3_next" else LAYOUT
    write(build(torch.bfloat16, **FAMILY[kind]), tmp_path / "m", layout)
    expected = quantize_files(tmp_path / "m", scale_dtype)
    if window is not None:
        monkeypatch.setattr(shards, "_window", lambda size: window)
    hub.export(tmp_path / "m", tmp_path / "bf16")
    written = load_file(tmp_path / "bf16" / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == (torch.bfloat16 if is_quantized(name) else tensor.dtype), name
        assert torch.equal(written[name], tensor.to(written[name].dtype)), name
    assert "quantization_config" not in json.loads((tmp_path / "bf16" / "config.json").read_text())


def test_in_float32_nothing_is_rounded(build, write, tmp_path) -> None:
    write(build(**FAMILY["qwen3_5_text"]), tmp_path, LAYOUT)
    expected = quantize_files(tmp_path, torch.float32)
    model = gossamer.load(tmp_path, dtype=torch.float32)
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(model.get_parameter(name), expected[name])


def test_scales_in_another_shard(build, tmp_path, monkeypatch, released) -> None:
    whole = gossamer.load(released)
    tensors = load_file(released / "model.safetensors")
    (released / "model.safetensors").unlink()
    files = {name: f"part-{name.endswith('_scale_inv')}.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, released / file)
    (released / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    again = gossamer.load(released)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 20), min_size=2, max_size=3),
    block=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    data=st.data(),
)
def test_any_rows_of_any_shape(shape, block, data) -> None:
    *stack, rows, columns = shape
    weight = torch.randn(shape).to(FP8)
    scale = torch.rand(*stack, math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    matrices = zip(weight, scale, strict=True) if stack else [(weight, scale)]
    whole = torch.stack([product(one, its, block) for one, its in matrices]).view(shape)
    start = data.draw(st.integers(0, shape[0] - 1))
    stop = data.draw(st.integers(start + 1, shape[0]))
    found = list(dequantized(weight[start:stop], start, scale, block))
    assert [first for first, _ in found] == [start]
    assert torch.equal(found[0][1], whole[start:stop])


def test_much_is_dequantized_a_few_rows_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr("gossamer.hub.fp8._CHUNK", 20)
    weight, scale = torch.randn(7, 8).to(FP8), torch.rand(4, 2)
    found = list(dequantized(weight, 0, scale, (2, 4)))
    assert [first for first, _ in found] == [0, 2, 4, 6]
    assert torch.equal(torch.cat([rows for _, rows in found]), product(weight, scale, [2, 4]))


def test_stacked_experts(build, write, tmp_path, released) -> None:
    """As transformers saves them: the scales are stacked, too."""
    apart = gossamer.load(released)
    tensors = load_file(released / "model.safetensors")
    for layer in (f"{part}.mlp.experts." for part in [*(f"model.layers.{i}" for i in range(4)), "mtp.layers.0"]):
        for end in ("", "_scale_inv"):
            gates, ups, downs = (
                [tensors.pop(f"{layer}{expert}.{part}_proj.weight{end}") for expert in range(4)]
                for part in ("gate", "up", "down")
            )
            both = [torch.cat(pair) for pair in zip(gates, ups, strict=True)]
            tensors[f"{layer}gate_up_proj{end}"], tensors[f"{layer}down_proj{end}"] = map(torch.stack, (both, downs))
    save_file(tensors, released / "model.safetensors")
    stacked = gossamer.load(released)
    assert all(torch.equal(one, other) for one, other in zip(apart.parameters(), stacked.parameters(), strict=True))


def test_a_block_with_rows_of_both_projections() -> None:
    name, file = "model.layers.0.mlp.experts.gate_up_proj", Path("f")
    stored = {
        name: shards.StoredTensor(file, (4, 36, 12), FP8),
        f"{name}_scale_inv": shards.StoredTensor(file, (4, 3, 1), torch.float32),
    }
    with pytest.raises(UserError, match="both the gate and the up projection"):
        read_scales(stored, (12, 12))


# What does not fit.


def test_scales_that_do_not_fit(released) -> None:
    whole = load_file(released / "model.safetensors")
    for scale, problem in (
        (whole[SCALE][:-1].clone(), "[3, 3]"),
        (whole[SCALE].flatten(), "[12]"),
        (whole[SCALE].to(FP8), "float8_e4m3fn"),
    ):
        edit_weights(released, **{SCALE: scale})
        refused(released, "model.safetensors", SCALE, problem, "[4, 3] blocks of 16 × 12")
    edit_weights(released, **{SCALE: None})
    refused(released, WEIGHT, f"without {SCALE}")
    edit_weights(released, **{SCALE: whole[SCALE], WEIGHT: whole[WEIGHT].to(torch.bfloat16)})
    refused(released, f"{SCALE} scales {WEIGHT}, which is not stored as F8_E4M3")
    edit_weights(released, **{WEIGHT: None})
    refused(released, "1 tensor is missing", WEIGHT)


def test_a_vector_in_fp8(released) -> None:
    name = "model.norm.weight"
    edit_weights(released, **{name: torch.ones(32).to(FP8), f"{name}_scale_inv": torch.ones(3)})
    refused(released, name, "only matrices are")


def test_fp8_that_the_configuration_does_not_know(released) -> None:
    edit_config(released, quantization_config=None)
    refused(released, "F8_E4M3", "no blocks", "unquantized release")


def test_fp8_that_is_promised_and_not_there_is_told(build, tmp_path, caplog) -> None:
    gossamer.save(build(), tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    hub.load(tmp_path)
    assert f"{tmp_path}: config.json promises FP8 weights, but none is stored so" in caplog.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.layers.0.mlp.up_proj.qweight", ["packed as AWQ, GPTQ", "unquantized release"]),
        ("model.layers.0.mlp.up_proj.weight_packed", ["compressed-tensors", "unquantized release"]),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", ["a PEFT adapter", "adapter_config.json"]),
    ],
)
def test_tensors_of_no_model_are_told_by_their_kind(build, tmp_path, name, told) -> None:
    gossamer.save(build(), tmp_path)
    edit_weights(tmp_path, **{name: torch.ones(2, 2)})
    refused(tmp_path, name, *told)


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ({"quant_method": "awq", "bits": 4}, "AWQ (4 bits)"),
        ({"quant_method": "gptq", "bits": 8}, "GPTQ (8 bits)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "(nvfp4-pack-quantized)"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt (NVFP4)"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"group_size": 64, "bits": 4}, "MLX (4 bits)"),
        ({"quant_method": "fp8"}, "FP8 (weight_block_size None)"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "FP8 (weight_block_size [128])"),
        ({"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}, "FP8 (e5m2, "),
        ({"quant_method": ["x"]}, "an unknown kind"),
        ({}, "an unknown kind"),
        ("int4", "expected an object"),
    ],
)
def test_other_quantizations_are_refused_by_their_name(build, tmp_path, quantization, name) -> None:
    gossamer.save(build(), tmp_path)
    edit_config(tmp_path, quantization_config=quantization)
    refused(tmp_path, str(tmp_path / "config.json"), name)
    if name != "expected an object":
        refused(tmp_path, "quantized", "unquantized release", "FP8", "llama.cpp")


def test_the_quantization_of_a_checkpoint_that_sees_pictures(build, tmp_path) -> None:
    gossamer.save(build(**FAMILY["qwen3_5_text"]), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    inner = values | {"quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_5", "text_config": inner}))
    refused(tmp_path, "AWQ")
