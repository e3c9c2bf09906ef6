"""What is read, and above all what is refused: every message names the file or the tensor."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import gossamer
from gossamer import UserError
from gossamer.hub import names, shards, write
from gossamer.hub.layout import forms
from hub_layouts import refused

EXPERT = "model.layers.0.mlp.experts.2.gate_proj.weight"


def edit_config(folder: Path, **changes) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def stack_experts(tensors: dict[str, torch.Tensor], model) -> None:
    for parameter, tensor in model.named_parameters():
        if ".experts." in parameter:
            for piece in forms(parameter, tensor.shape, model.config)[1]:
                del tensors[piece.name]
            tensors[parameter] = tensor.detach().clone()


@pytest.fixture
def saved(build, tmp_path) -> Path:
    gossamer.save(build(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(build, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(write, "_SHARD_BYTES", 30_000)
    gossamer.save(build(), tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*"))) > 3
    return tmp_path / "sharded"


def test_stacked_experts_are_read_too(build, saved, same_weights) -> None:
    model = build()
    edit_weights(saved, lambda tensors: stack_experts(tensors, model))
    assert same_weights(gossamer.load(saved), model)


def test_a_sharded_checkpoint_has_the_same_weights(build, sharded, same_weights) -> None:
    assert same_weights(gossamer.load(sharded), build())


@pytest.mark.parametrize("window", [1, 100, 5000])
def test_windows_of_any_size_give_the_same_weights(build, saved, same_weights, monkeypatch, window) -> None:
    """Smaller than a row, than a tensor, than the file."""
    monkeypatch.setattr(shards, "_window", lambda size: window)
    assert same_weights(gossamer.load(saved), build())


def test_loading_leaves_random_numbers_and_threads_alone(saved) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    gossamer.load(saved)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_is_in_evaluation_mode(saved) -> None:
    assert not any(module.training for module in gossamer.load(saved).modules())


def test_the_model_can_be_trained(saved, tokens) -> None:
    model = gossamer.load(saved)
    out = model(tokens, labels=tokens)
    (out.loss + out.mtp_loss + out.aux_loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# Multi-token prediction.


def drop_mtp(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("mtp.")]:
        del tensors[name]


@pytest.mark.parametrize("key", [0, 1, ...])
@pytest.mark.parametrize("present", [True, False])
def test_the_tensors_decide_about_mtp(build, saved, caplog, tokens, key, present) -> None:
    edit_config(saved, num_nextn_predict_layers=key)
    if not present:
        edit_weights(saved, drop_mtp)
    with caplog.at_level(logging.INFO, "gossamer"):
        model = gossamer.load(saved)
    (record,) = caplog.records
    promised_in_vain = key == 1 and not present
    assert record.levelno == (logging.WARNING if promised_in_vain else logging.INFO)
    assert ("promises a multi-token-prediction head" in record.getMessage()) == promised_in_vain
    assert promised_in_vain or f"{'with' if present else 'without'} a multi" in record.getMessage()
    assert model.config.num_nextn_predict_layers == int(present)
    assert (model.mtp is not None) == present
    assert torch.equal(model(tokens).logits, build()(tokens).logits)


# Types.


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_weights_get_the_wanted_type_but_for_those_that_stay_wide(build, tmp_path, tokens, stored, wanted) -> None:
    gossamer.save(build(stored), tmp_path / "m")
    # As others store them: everything narrow.
    edit_weights(tmp_path / "m", lambda tensors: tensors.update({k: v.to(stored) for k, v in tensors.items()}))
    model = gossamer.load(tmp_path / "m", dtype=wanted)
    for name, parameter in model.named_parameters():
        wide = name.endswith(("A_log", "dt_bias", "linear_attn.norm.weight"))
        assert parameter.dtype == (torch.float32 if wide else wanted or stored), name
    assert model.model.layers[0].linear_attn.A_log.isfinite().all()
    logits = model(tokens).logits
    assert logits.dtype in (wanted or stored, torch.float32)  # the wider where a processor has no bfloat16 units
    assert logits.isfinite().all()


def test_experts_stored_in_two_types_get_the_wider(build, saved) -> None:
    model = build(torch.bfloat16)
    gossamer.save(model, saved)
    edit_weights(saved, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].float() + 1e-4}))
    loaded = gossamer.load(saved).model.layers[0].mlp.experts.gate_up_proj
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded[2, :16], model.model.layers[0].mlp.experts.gate_up_proj[2, :16].float() + 1e-4)


def test_a_dtype_that_holds_no_weights(saved) -> None:
    for dtype in (torch.int64, "bfloat16"):
        with pytest.raises(UserError, match="dtype"):
            gossamer.load(saved, dtype=dtype)


def test_an_unknown_device(saved) -> None:
    with pytest.raises(UserError, match="cpuu"):
        gossamer.load(saved, device="cpuu")


# Tied embeddings.


def test_a_tied_head_may_be_stored_if_it_is_the_same(build, tmp_path, same_weights) -> None:
    model = build(tie_word_embeddings=True)
    gossamer.save(model, tmp_path)
    embedding = model.model.embed_tokens.weight.detach()
    edit_weights(tmp_path, lambda tensors: tensors.update({names.LM_HEAD: embedding.clone()}))
    assert same_weights(gossamer.load(tmp_path), model)
    for other in (embedding + 1, embedding[:-1].clone()):
        edit_weights(tmp_path, lambda tensors, other=other: tensors.update({names.LM_HEAD: other}))
        refused(tmp_path, names.LM_HEAD, "tie_word_embeddings")


def test_an_untied_head_must_be_there(saved) -> None:
    edit_weights(saved, lambda tensors: tensors.pop(names.LM_HEAD))
    refused(saved, "1 tensor is missing", names.LM_HEAD)


# Files that cannot be read.


def test_a_truncated_file(saved) -> None:
    file = saved / "model.safetensors"
    for length in (file.stat().st_size - 1, 1000, 8, 0):
        os.truncate(file, length)
        refused(saved, str(file), "not a whole safetensors file")


def test_a_header_that_is_none(saved) -> None:
    (saved / "model.safetensors").write_bytes(b"\xff" * 4096)
    refused(saved, "model.safetensors", "not a whole safetensors file")


def test_a_missing_shard(sharded) -> None:
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.unlink()
    refused(sharded, victim.name, "missing")


def test_a_shard_of_another_checkpoint(sharded) -> None:
    one, other = sorted(sharded.glob("model-*.safetensors"))[:2]
    first = next(iter(load_file(one)))
    shutil.copyfile(other, one)
    with pytest.raises(UserError, match=r"is in .* and in|lacks"):
        gossamer.load(sharded)
    save_file({"something": torch.zeros(1)}, one)
    refused(sharded, one.name, "lacks", first)


def test_a_shard_that_the_index_does_not_name(sharded, build, same_weights) -> None:
    first = sorted(sharded.glob("model-*.safetensors"))[0]
    shutil.copyfile(first, sharded / "model-00001-of-00099.safetensors")  # of an older download
    assert same_weights(gossamer.load(sharded), build())
    extra = first.with_name(first.name.replace("00001", "00077", 1))
    shutil.copyfile(first, extra)
    refused(sharded, extra.name, "does not name this shard")


@pytest.mark.parametrize(
    "index",
    [
        "{}",
        '{"weight_map": [1]}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../b"}}',
        '{"weight_map": {"a": "' + "b" * 300 + '"}}',
    ],
    ids=["empty", "list", "number", "outside", "long"],
)
def test_an_index_that_is_none(sharded, index) -> None:
    (sharded / names.INDEX).write_text(index)
    refused(sharded, names.INDEX)


def test_pickled_weights_are_refused(saved) -> None:
    (saved / "model.safetensors").unlink()
    refused(saved, "holds neither model.safetensors")
    torch.save({}, saved / "pytorch_model.bin")
    refused(saved, "pytorch_model.bin", "pickle", "safetensors")


def test_a_file_replaced_while_it_is_read(saved, monkeypatch) -> None:
    monkeypatch.setattr(shards, "_window", lambda size: 1)
    file = saved / "model.safetensors"
    rows = shards.read_rows(file, shards.read_header(file))
    next(rows)
    shutil.copyfile(file, saved / "new")
    os.replace(saved / "new", file)
    with pytest.raises(UserError, match="replaced while"):
        list(rows)


# Checkpoints that do not fit their configuration.


def test_missing_tensors_are_counted_and_named(saved) -> None:
    edit_weights(saved, lambda tensors: tensors.pop(EXPERT))
    refused(saved, "1 tensor is missing", EXPERT)
    more = [f"model.layers.2.mlp.experts.{expert}.up_proj.weight" for expert in range(4)]
    edit_weights(saved, lambda tensors: [tensors.pop(name) for name in more])
    refused(saved, "5 tensors are missing", EXPERT, *more[:2], "…")


@pytest.mark.parametrize("changes", [{"num_experts": 1 << 20}, {"num_hidden_layers": 4096, "layer_types": ...}])
def test_a_network_far_larger_than_its_files_is_not_laid_out(saved, changes, monkeypatch) -> None:
    monkeypatch.setattr("gossamer.hub.read.CausalLM", None)
    edit_config(saved, **changes)
    refused(saved, "config.json describes a network of", "the files hold")


def test_unexpected_tensors_are_named(saved) -> None:
    edit_weights(saved, lambda tensors: tensors.update({"model.layers.9.norm.weight": torch.zeros(2)}))
    refused(saved, "1 tensor is not in the network", "model.layers.9.norm.weight")


def test_another_shape(saved) -> None:
    edit_config(saved, vocab_size=65)
    refused(saved, "model.embed_tokens.weight", "[64, 32]", "[65, 32]")


def test_another_shape_of_an_expert(saved) -> None:
    edit_weights(saved, lambda tensors: tensors.update({EXPERT: torch.zeros(32, 16)}))
    refused(saved, EXPERT, "[32, 16]", "[16, 32]")


def test_experts_stored_twice(build, saved) -> None:
    stacked = "model.layers.0.mlp.experts.gate_up_proj"
    weights = build().get_parameter(stacked).detach()
    edit_weights(saved, lambda tensors: tensors.update({stacked: weights}))
    refused(saved, stacked, "twice")


def test_quantized_checkpoints(saved) -> None:
    edit_weights(saved, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].to(torch.uint8)}))
    refused(saved, EXPERT, "U8", "unquantized release")
    edit_config(saved, quantization_config={"quant_method": "fp8"})
    refused(saved, "quantized")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"num_expert": 4}, "num_experts"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers"),
    ],
)
def test_configurations_that_are_refused(saved, changes, named) -> None:
    edit_config(saved, **changes)
    refused(saved, str(saved / "config.json"), named)


def test_the_released_configuration_is_understood(build, saved, same_weights) -> None:
    """Qwen/Qwen3-Next-80B-A3B-Instruct's keys, where it differs from what is written here."""
    edit_config(
        saved,
        **dict.fromkeys(("layer_types", "rope_parameters", "dtype", "num_nextn_predict_layers"), ...),
        attention_dropout=0.0,
        bos_token_id=151643,
        eos_token_id=151645,
        full_attention_interval=4,
        mlp_only_layers=[1],
        output_router_logits=False,
        partial_rotary_factor=0.25,
        rope_scaling=None,
        rope_theta=10000000,
        torch_dtype="bfloat16",
        transformers_version="4.57.0.dev0",
        use_cache=True,
        use_sliding_window=False,
    )
    model = gossamer.load(saved)
    assert same_weights(model, build())
    assert (model.config.rope_theta, model.config.num_nextn_predict_layers) == (10000000, 1)


def test_a_file_is_mapped_again_for_every_window(saved, monkeypatch) -> None:
    """What has been read of a map counts as memory until it is closed."""
    opened = []
    monkeypatch.setattr(shards, "safe_open", lambda *args, **keys: opened.append(args) or safe_open(*args, **keys))
    monkeypatch.setattr(shards, "_window", lambda size: size // 4)
    gossamer.load(saved)
    assert 5 <= len(opened) <= 7  # the header, and about four windows


def test_messages_are_one_line(saved) -> None:
    (saved / "config.json").write_text("{\n\n")
    with pytest.raises(UserError, match=re.escape(str(saved / "config.json"))) as caught:
        gossamer.load(saved)
    assert "\n" not in str(caught.value)
