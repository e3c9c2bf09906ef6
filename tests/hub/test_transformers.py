"""transformers reads what is written here, and what it writes is read here: the same logits both ways."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import gossamer
from gossamer.hub import write
from gossamer.hub.layout import NAMED_LAYOUTS
from hub_layouts import FAMILY

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def theirs(build):
    """transformers' own network with random weights; keywords change the configuration."""

    def theirs(**changes):
        values = build(**changes).config.to_dict()
        return randomized(getattr(transformers, values["architectures"][0]), their_config(values))

    return theirs


def their_config(values: dict):
    return transformers.AutoConfig.for_model(**values)


def randomized(kind, config):
    torch.manual_seed(5)
    network = kind(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def their_load(folder, dtype=torch.float32):
    network, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return network.eval()


@torch.no_grad()
def close(ours, theirs, tokens, tolerance=1e-5) -> None:
    one, other = ours(tokens).logits, theirs(tokens).logits
    scale = float(other.abs().max())
    assert scale > 0.1  # there is something to compare
    assert float((one - other).abs().max()) <= tolerance * max(1.0, scale)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_experts": 0, "num_nextn_predict_layers": 0},
        {"layer_types": ("full_attention", "linear_attention") * 2, "rope_theta": 5e5, "attention_bias": True},
    ],
)
@pytest.mark.parametrize("shard_bytes", [10**9, 30_000])
def test_transformers_reads_what_is_saved(build, tmp_path, tokens, monkeypatch, changes, shard_bytes) -> None:
    monkeypatch.setattr(write, "_SHARD_BYTES", shard_bytes)
    model = build(**changes)
    gossamer.save(model, tmp_path)
    close(model, their_load(tmp_path), tokens)


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("shard_bytes", ["1GB", "30KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saves_is_read(theirs, tmp_path, tokens, caplog, released, shard_bytes, tied) -> None:
    network = theirs(tie_word_embeddings=tied)
    network.save_pretrained(tmp_path, save_original_format=released, max_shard_size=shard_bytes)
    model = gossamer.load(tmp_path)
    close(model, network, tokens)
    assert model.mtp is None  # transformers has none, whatever the configuration it copies says
    assert "promises a multi-token-prediction head" in caplog.text


def test_there_and_back(theirs, tmp_path, tokens) -> None:
    """What transformers wrote, exported, is what it wrote."""
    network = theirs()
    network.save_pretrained(tmp_path / "theirs")
    gossamer.hub.export(tmp_path / "theirs", tmp_path / "ours")
    again = their_load(tmp_path / "ours").state_dict()
    assert again.keys() == network.state_dict().keys()
    assert all(torch.equal(again[name], weight) for name, weight in network.state_dict().items())


def test_bfloat16(build, tmp_path, tokens) -> None:
    """With the released weights' scale; and all experts are chosen, lest a rounding choose another expert."""
    exact = build(num_experts_per_tok=4, initializer_range=0.02)
    gossamer.save(exact, tmp_path / "exact")
    model = gossamer.load(tmp_path / "exact", dtype=torch.bfloat16)
    gossamer.save(model, tmp_path / "narrow")
    network = their_load(tmp_path / "narrow", torch.bfloat16)
    close(gossamer.load(tmp_path / "narrow"), network, tokens, tolerance=1e-2)
    network.save_pretrained(tmp_path / "theirs")
    again = gossamer.load(tmp_path / "theirs")
    assert again.model.layers[0].linear_attn.A_log.dtype == torch.float32
    close(again, network, tokens, tolerance=1e-2)


def test_transformers_stops_at_the_end_of_text(build, tmp_path) -> None:
    class Tokenizer:
        eot_id = 3

        def save(self, folder) -> None:
            pass

    gossamer.save(build(), tmp_path, Tokenizer())
    assert their_load(tmp_path).generation_config.eos_token_id == 3


# Qwen3.5 and its successors.

TOWER = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
newer = pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_5_moe_text"])


def same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@newer
@pytest.mark.parametrize("as_released", [True, False])
@pytest.mark.parametrize("repeats", [1, 3, 8])
def test_a_newer_model_there_and_back(theirs, tmp_path, tokens, kind, as_released, repeats) -> None:
    network = theirs(**FAMILY[kind] | {"linear_num_value_heads": 2 * repeats, "tie_word_embeddings": repeats == 1})
    network.save_pretrained(tmp_path / "theirs", save_original_format=as_released)
    close(gossamer.load(tmp_path / "theirs"), network, tokens)
    gossamer.hub.export(tmp_path / "theirs", tmp_path / "ours")
    again = their_load(tmp_path / "ours")
    assert type(again) is type(network)
    assert same_tensors(again.state_dict(), network.state_dict())


@newer
@pytest.mark.parametrize("as_released", [True, False])
def test_the_language_model_of_one_that_sees_pictures(build, tmp_path, tokens, kind, as_released) -> None:
    """Its text part is what transformers' language model computes, and can be loaded as one after an export."""
    outer = kind.removesuffix("_text")
    values = {"model_type": outer, "text_config": build(**FAMILY[kind]).config.to_dict(), "vision_config": TOWER}
    name = f"{'Qwen3_5Moe' if 'moe' in kind else 'Qwen3_5'}ForConditionalGeneration"
    network = randomized(getattr(transformers, name), their_config(values))
    network.save_pretrained(tmp_path / "theirs", save_original_format=as_released)
    model = gossamer.load(tmp_path / "theirs")
    close(model, network, tokens)
    gossamer.hub.export(tmp_path / "theirs", tmp_path / "ours")
    again = their_load(tmp_path / "ours")
    expected = {
        key.replace("model.language_model.", "model."): value
        for key, value in network.state_dict().items()
        if ".visual." not in key
    }
    assert same_tensors(again.state_dict(), expected)


@pytest.mark.parametrize("name", NAMED_LAYOUTS)
@pytest.mark.parametrize("kind", FAMILY)
def test_transformers_reads_every_layout(build, tmp_path, tokens, kind, name) -> None:
    """The same network under each model type, whatever it was before."""
    model = build(**FAMILY[kind] | {"mlp_only_layers": ()})
    gossamer.save(model, tmp_path, layout=name)
    close(model, their_load(tmp_path), tokens)


@pytest.mark.parametrize("kind", FAMILY)
def test_transformers_drops_the_multi_token_prediction_head(build, tmp_path, kind) -> None:
    """As the documentation says."""
    gossamer.save(build(**FAMILY[kind]), tmp_path / "ours")
    their_load(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert gossamer.load(tmp_path / "ours").mtp is not None
    assert gossamer.load(tmp_path / "theirs").mtp is None


def test_fp8_is_dequantized_as_transformers_does(build, tmp_path, tokens) -> None:
    """Made by transformers' own quantizer, whose blocks have to divide the shapes."""
    quantize = transformers.integrations.finegrained_fp8.Fp8Quantize
    quantization = transformers.FineGrainedFP8Config(weight_block_size=(8, 8))
    gossamer.save(build(**FAMILY["qwen3_5_moe_text"]), tmp_path / "exact", layout="qwen3_5_per_expert")
    make = quantize(type("Quantizer", (), {"quantization_config": quantization}))
    tensors = {}
    for name, tensor in load_file(tmp_path / "exact" / "model.safetensors").items():
        tensors |= make.convert({name: tensor}) if name.endswith("_proj.weight") else {name: tensor}
    (tmp_path / "fp8").mkdir()
    save_file(tensors, tmp_path / "fp8" / "model.safetensors")
    values = json.loads((tmp_path / "exact" / "config.json").read_text())
    said = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(values | {"quantization_config": said}))
    gossamer.hub.export(tmp_path / "fp8", tmp_path / "bf16")
    ours, theirs = their_load(tmp_path / "bf16", torch.bfloat16), their_load(tmp_path / "fp8", torch.bfloat16)
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in tensors.values())
    assert same_tensors(ours.state_dict(), theirs.state_dict())
