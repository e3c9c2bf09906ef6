"""transformers reads what is written here, and what it writes is read here: the same logits both ways."""

import os

import pytest
import torch

import gossamer
from gossamer.hub import write

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def theirs(build):
    """transformers' own network with random weights; keywords change the configuration."""

    def theirs(**changes):
        config = transformers.Qwen3NextConfig.from_dict(build(**changes).config.to_dict())
        torch.manual_seed(5)
        network = transformers.Qwen3NextForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return network

    return theirs


def their_load(folder, dtype=torch.float32):
    network, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return network.eval()


@torch.no_grad()
def close(ours, theirs, tokens, tolerance=1e-5) -> None:
    one, other = ours(tokens).logits, theirs(tokens).logits
    assert one.dtype == other.dtype
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
