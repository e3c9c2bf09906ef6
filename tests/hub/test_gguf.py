"""What llama.cpp is given: every weight once, in its places, and a tokenizer that it splits texts like."""

import errno
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import gossamer
from gossamer import UserError, hub
from gossamer.data.tokenizer import Tokenizer, char_tokenizer, train_bpe
from gossamer.hub import gguf_file
from gossamer.hub.gguf_vocabulary import read_vocabulary

gguf = pytest.importorskip("gguf")

few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VOCAB = 300
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the cat sat on the mat, the cat sat there"], 280)


@pytest.fixture
def saved(build, tokenizer, tmp_path):
    """A network that llama.cpp can compute, as a directory; keywords change the configuration."""

    def saved(dtype: torch.dtype = torch.float32, **changes) -> Path:
        model = build(dtype, **{"vocab_size": VOCAB, "mlp_only_layers": ()} | changes)
        gossamer.save(model, tmp_path / "net", tokenizer)
        return tmp_path / "net"

    return saved


def read(file: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The keys of a GGUF file, and its tensors in float32."""
    reader = gguf.GGUFReader(file)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    for tensor in reader.tensors:
        assert tensors[tensor.name].shape == tuple(reversed(tensor.shape.tolist()))
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


def expected(folder: Path) -> dict[str, np.ndarray]:
    """What llama.cpp wants of a checkpoint, head by head and expert by expert."""
    stored = {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    found = {
        "token_embd.weight": stored.pop("model.embed_tokens.weight"),
        "output_norm.weight": stored.pop("model.norm.weight") + 1,
    }
    if "lm_head.weight" in stored:
        found["output.weight"] = stored.pop("lm_head.weight")
    blocks = [f"model.layers.{layer}." for layer in range(config["num_hidden_layers"])]
    if "mtp.fc.weight" in stored:
        end = f"blk.{len(blocks)}.nextn"
        found[f"{end}.eh_proj.weight"] = stored.pop("mtp.fc.weight")
        found[f"{end}.enorm.weight"] = stored.pop("mtp.pre_fc_norm_embedding.weight") + 1
        found[f"{end}.hnorm.weight"] = stored.pop("mtp.pre_fc_norm_hidden.weight") + 1
        found[f"{end}.shared_head_norm.weight"] = stored.pop("mtp.norm.weight") + 1
        blocks.append("mtp.layers.0.")
    for number, block in enumerate(blocks):

        def take(name: str, block: str = block) -> np.ndarray:
            return stored.pop(block + name)

        new = {
            "attn_norm.weight": take("input_layernorm.weight") + 1,
            "post_attention_norm.weight": take("post_attention_layernorm.weight") + 1,
            "ffn_gate_inp.weight": take("mlp.gate.weight"),
            "ffn_gate_inp_shexp.weight": take("mlp.shared_expert_gate.weight"),
        }
        for part in ("gate", "up", "down"):
            experts = [take(f"mlp.experts.{e}.{part}_proj.weight") for e in range(config["num_experts"])]
            new[f"ffn_{part}_exps.weight"] = np.stack(experts)
            new[f"ffn_{part}_shexp.weight"] = take(f"mlp.shared_expert.{part}_proj.weight")
        if block + "self_attn.q_proj.weight" in stored:
            for part, theirs in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
                new[f"{theirs}.weight"] = take(f"self_attn.{part}_proj.weight")
            for part in "qk":
                new[f"attn_{part}_norm.weight"] = take(f"self_attn.{part}_norm.weight") + 1
        else:
            qkv, z = heads_apart(take("linear_attn.in_proj_qkvz.weight"), config)
            new |= {
                "attn_qkv.weight": qkv,
                "attn_gate.weight": z,
                "ssm_ba.weight": take("linear_attn.in_proj_ba.weight"),
                "ssm_conv1d.weight": take("linear_attn.conv1d.weight")[:, 0],
                "ssm_dt.bias": take("linear_attn.dt_bias"),
                "ssm_a": -np.exp(take("linear_attn.A_log")),
                "ssm_norm.weight": take("linear_attn.norm.weight"),
                "ssm_out.weight": take("linear_attn.out_proj.weight"),
            }
        found |= {f"blk.{number}.{name}": tensor for name, tensor in new.items()}
    assert not stored
    return found


def heads_apart(rows: np.ndarray, config: dict) -> tuple[np.ndarray, np.ndarray]:
    key = config["linear_key_head_dim"]
    value = config["linear_value_head_dim"] * config["linear_num_value_heads"] // config["linear_num_key_heads"]
    parts: dict[str, list[np.ndarray]] = {"q": [], "k": [], "v": [], "z": []}
    start = 0
    for _ in range(config["linear_num_key_heads"]):
        for name, width in (("q", key), ("k", key), ("v", value), ("z", value)):
            parts[name].append(rows[start : start + width])
            start += width
    assert start == len(rows)
    return np.concatenate(parts["q"] + parts["k"] + parts["v"]), np.concatenate(parts["z"])


@few
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "num_nextn_predict_layers": st.just(0),
            "tie_word_embeddings": st.just(True),
            "linear_num_key_heads": st.sampled_from([1, 4]),
            "num_experts": st.sampled_from([2, 5]),
            "layer_types": st.just(("full_attention", "linear_attention", "linear_attention", "full_attention")),
        },
    ),
)
def test_every_weight_is_there_once(saved, tmp_path_factory, dtype, changes) -> None:
    folder = saved(dtype, **changes)
    file = tmp_path_factory.mktemp("out") / "net.gguf"
    hub.export_gguf(folder, file)
    keys, tensors = read(file)
    wanted = expected(folder)
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_allclose(tensors[name], tensor, rtol=1e-6, atol=0, err_msg=name)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    matrix = {torch.bfloat16: "BF16", torch.float16: "F16"}.get(dtype, "F32")
    assert {kinds["token_embd.weight"], kinds["blk.0.ffn_up_exps.weight"]} == {matrix}
    assert {kinds[f"blk.0.{name}"] for name in ("attn_norm.weight", "ffn_gate_inp.weight")} == {"F32"}
    mixers = gossamer.load(folder).config.mixers
    head = 1 - ("num_nextn_predict_layers" in changes)
    assert keys["qwen3next.block_count"] == 4 + head
    assert keys["qwen3next.attention.recurrent_layers"] == [m == "linear_attention" for m in mixers] + [False] * head
    assert keys.get("qwen3next.nextn_predict_layers", 0) == head
    assert keys["general.file_type"] == {"F32": 0, "F16": 1, "BF16": 32}[matrix]


def test_the_sizes_have_their_keys(saved, tmp_path) -> None:
    hub.export_gguf(saved(rope_theta=5e5, partial_rotary_factor=0.5), tmp_path / "net.gguf")
    keys, _ = read(tmp_path / "net.gguf")
    assert keys["general.architecture"] == "qwen3next" and keys["general.name"] == "net"
    assert keys["qwen3next.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    wanted = {
        "context_length": 32768,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "rope.dimension_count": 8,
        "rope.freq_base": 5e5,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 16,
        "expert_shared_feed_forward_length": 24,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 8,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 4,
        "ssm.inner_size": 32,
        "full_attention_interval": 4,
    }
    assert {name: keys[f"qwen3next.{name}"] for name in wanted} == wanted


def test_the_tokenizer(saved, tokenizer, tmp_path) -> None:
    hub.export_gguf(saved(), tmp_path / "net.gguf")
    keys, _ = read(tmp_path / "net.gguf")
    used = tokenizer.vocab_size
    assert used < VOCAB
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == VOCAB
    assert tokens[tokenizer.eot_id] == "<|endoftext|>" and types[tokenizer.eot_id] == gguf.TokenType.CONTROL
    assert set(types[1:used]) == {gguf.TokenType.NORMAL} and set(types[used:]) == {gguf.TokenType.UNUSED}
    assert [tokens[index] for index in tokenizer.encode("the cat")] == ["the", "Ġcat"]
    left, right = keys["tokenizer.ggml.merges"][0].split(" ")
    assert left + right in tokens
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "qwen35")
    assert keys["tokenizer.ggml.eos_token_id"] == keys["tokenizer.ggml.bos_token_id"] == tokenizer.eot_id
    assert keys["tokenizer.ggml.add_bos_token"] is True


def changed_tokenizer(folder: Path, split: str | None, **config) -> None:
    """Another split, or none, in a saved tokenizer, and other entries in its configuration."""
    values = json.loads((folder / "tokenizer.json").read_text())
    steps = values["pre_tokenizer"]["pretokenizers"]
    if split is None:
        del steps[0]
    else:
        steps[0]["pattern"] = {"Regex": split}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    names = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **config}))


def test_qwens_own_tokenizer(saved) -> None:
    folder = saved()
    changed_tokenizer(folder, QWEN2, bos_token=None, chat_template="{{ messages }}")
    vocabulary = read_vocabulary(folder, VOCAB)
    assert (vocabulary.pre, vocabulary.bos, vocabulary.add_bos) == ("qwen2", None, False)
    assert vocabulary.chat_templates == {"default": "{{ messages }}"}


def test_named_templates_ends_and_a_beginning_that_is_only_named(saved, tmp_path) -> None:
    """As gguf's own reader of a checkpoint takes them: names, `add_bos_token`, and a second end of an answer."""
    folder = saved()
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    changed_tokenizer(folder, QWEN2, add_bos_token=False, chat_template=named)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    hub.export_gguf(folder, tmp_path / "net.gguf")
    keys, _ = read(tmp_path / "net.gguf")
    assert keys["tokenizer.chat_template"] == "D" and keys["tokenizer.chat_template.tool_use"] == "T"
    theirs = gguf.SpecialVocab(folder)
    assert keys["tokenizer.ggml.add_bos_token"] is theirs.add_special_token["bos"] is False
    assert keys["tokenizer.ggml.bos_token_id"] == keys["tokenizer.ggml.eos_token_id"] == 0
    assert keys["tokenizer.ggml.eot_token_id"] == 7
    changed_tokenizer(folder, QWEN2, chat_template=named[1:])
    with pytest.raises(UserError, match="none of its chat templates tool_use is named default"):
        read_vocabulary(folder, VOCAB)


@pytest.mark.parametrize("split", [None, r"\s+"])
def test_a_split_that_has_no_name(saved, tmp_path, split) -> None:
    folder = saved()
    changed_tokenizer(folder, split)
    with pytest.raises(UserError, match=r"name of the way this tokenizer splits a text is not known here; convert"):
        hub.export_gguf(folder, tmp_path / "net.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_tokenizer_of_characters(build, tmp_path) -> None:
    gossamer.save(build(mlp_only_layers=()), tmp_path / "net", char_tokenizer(["abc"]))
    with pytest.raises(UserError, match=r"exported to GGUF; this one is char; export this model"):
        hub.export_gguf(tmp_path / "net", tmp_path / "net.gguf")


def test_more_tokens_than_the_network_has(build, tokenizer, tmp_path) -> None:
    gossamer.save(build(mlp_only_layers=()), tmp_path / "net", tokenizer)
    with pytest.raises(UserError, match=r"tokens, the network 64; use the one it was trained with"):
        hub.export_gguf(tmp_path / "net", tmp_path / "net.gguf")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"mlp_only_layers": (1,)}, "layers without experts"),
        ({"num_experts": 0}, "layers without experts"),
        ({"attention_bias": True}, "attention_bias = true"),
        ({"norm_topk_prob": False}, "norm_topk_prob = false"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps = 1e-05 \\(only 1e-06\\)"),
        ({"linear_value_head_dim": 16}, "linear_key_head_dim = 8 other than linear_value_head_dim = 16"),
    ],
)
def test_networks_that_llama_cpp_does_not_compute(saved, tmp_path, changes, what) -> None:
    with pytest.raises(
        UserError, match=f"^llama.cpp's qwen3next does not support {what}; export this model with --to hf$"
    ):
        hub.export_gguf(saved(**changes), tmp_path / "net.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_biases_of_the_routers(build, tokenizer, tmp_path) -> None:
    model = build(vocab_size=VOCAB, mlp_only_layers=())
    model.model.layers[2].mlp.gate.e_score_correction_bias = torch.ones(4)
    gossamer.save(model, tmp_path / "net", tokenizer)
    with pytest.raises(UserError, match="does not support biases of the routers"):
        hub.export_gguf(tmp_path / "net", tmp_path / "net.gguf")


def test_what_may_not_be_written(saved, tmp_path) -> None:
    folder = saved()
    with pytest.raises(UserError, match=r"net\.bin: name a file that ends in \.gguf"):
        hub.export_gguf(folder, tmp_path / "net.bin")
    (tmp_path / "net.gguf").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"net\.gguf: exists; name a new file"):
        hub.export_gguf(folder, tmp_path / "net.gguf")
    assert (tmp_path / "net.gguf").read_bytes() == b"mine"


def test_a_full_disk_leaves_nothing(saved, tmp_path, monkeypatch) -> None:
    folder = saved()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(UserError, match="the disk is full"):
        hub.export_gguf(folder, tmp_path / "out" / "net.gguf")
    assert not list((tmp_path / "out").iterdir())


def test_without_the_package(saved, tmp_path, monkeypatch) -> None:
    folder = saved()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'gossamer\[gguf\]'"):
        gguf_file.export_gguf(folder, tmp_path / "net.gguf")
