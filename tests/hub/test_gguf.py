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

import gossamer
from gossamer import ModelConfig, UserError, hub
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


def expected(model: gossamer.CausalLM) -> dict[str, np.ndarray]:
    """What llama.cpp wants of a network, head by head and expert by expert."""
    config = model.config
    own = {name: tensor.detach().float().numpy() for name, tensor in model.named_parameters()}
    dense = config.num_experts == 0
    tiled = dense or config.model_type == "qwen3_5_moe_text"
    found = {
        "token_embd.weight": own.pop("model.embed_tokens.weight"),
        "output_norm.weight": own.pop("model.norm.weight") + 1,
    }
    if "lm_head.weight" in own:
        found["output.weight"] = own.pop("lm_head.weight")
    blocks = [f"model.layers.{layer}." for layer in range(config.num_hidden_layers)]
    if "mtp.fc.weight" in own:
        end = f"blk.{len(blocks)}.nextn"
        found[f"{end}.eh_proj.weight"] = own.pop("mtp.fc.weight")
        found[f"{end}.enorm.weight"] = own.pop("mtp.pre_fc_norm_embedding.weight") + 1
        found[f"{end}.hnorm.weight"] = own.pop("mtp.pre_fc_norm_hidden.weight") + 1
        found[f"{end}.shared_head_norm.weight"] = own.pop("mtp.norm.weight") + 1
        blocks.append("mtp.layers.0.")
    for number, block in enumerate(blocks):

        def take(name: str, block: str = block) -> np.ndarray:
            return own.pop(block + name)

        new = {
            "attn_norm.weight": take("input_layernorm.weight") + 1,
            "post_attention_norm.weight": take("post_attention_layernorm.weight") + 1,
        }
        if dense:
            new |= {f"ffn_{part}.weight": take(f"mlp.{part}_proj.weight") for part in ("gate", "up", "down")}
        else:
            new["ffn_gate_inp.weight"] = take("mlp.gate.weight")
            new["ffn_gate_inp_shexp.weight"] = take("mlp.shared_expert_gate.weight")
            gate_up, width = take("mlp.experts.gate_up_proj"), config.moe_intermediate_size
            new["ffn_gate_exps.weight"] = np.stack([expert[:width] for expert in gate_up])
            new["ffn_up_exps.weight"] = np.stack([expert[width:] for expert in gate_up])
            new["ffn_down_exps.weight"] = take("mlp.experts.down_proj")
            for part in ("gate", "up", "down"):
                new[f"ffn_{part}_shexp.weight"] = take(f"mlp.shared_expert.{part}_proj.weight")
        if block + "self_attn.q_proj.weight" in own:
            for part, theirs in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
                new[f"{theirs}.weight"] = take(f"self_attn.{part}_proj.weight")
            for part in "qk":
                new[f"attn_{part}_norm.weight"] = take(f"self_attn.{part}_norm.weight") + 1
        else:
            new |= linear_attention(take, config, tiled)
        found |= {f"blk.{number}.{name}": tensor for name, tensor in new.items()}
    assert not own
    return found


def linear_attention(take, config: ModelConfig, tiled: bool) -> dict[str, np.ndarray]:
    """The tensors of linear attention, from the rows of each key head: q, k, its value heads, their z; b, and a."""
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    key_heads, repeats = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    qkvz, ba = (iter(take(f"linear_attn.in_proj_{part}.weight")) for part in ("qkvz", "ba"))
    values = [(head, one) for head in range(key_heads) for one in range(repeats)]
    q, k, v, z, b, a = ({} for _ in range(6))
    for head in range(key_heads):
        q[head], k[head] = ([next(qkvz) for _ in range(key)] for _ in "qk")
        for part in (v, z):
            part.update({(head, one): [next(qkvz) for _ in range(value)] for one in range(repeats)})
        for part in (b, a):
            part.update({(head, one): [next(ba)] for one in range(repeats)})
    order = sorted(values, key=lambda place: place[::-1]) if tiled else values

    def heads(part: dict) -> np.ndarray:
        return np.array([row for place in order for row in part[place]])

    def by_head(rows: np.ndarray) -> dict:
        return dict(zip(values, np.split(rows, len(values)), strict=True))

    q_and_k, kernel = (
        [row for part in (q, k) for rows in part.values() for row in rows],
        take("linear_attn.conv1d.weight"),
    )
    kernel, width = kernel[:, 0], 2 * key * key_heads
    gates = {"ssm_beta.weight": heads(b), "ssm_alpha.weight": heads(a)}
    grouped = np.array(
        [row for head in range(key_heads) for part in (b, a) for one in range(repeats) for row in part[head, one]]
    )
    return (gates if tiled else {"ssm_ba.weight": grouped}) | {
        "attn_qkv.weight": np.concatenate([q_and_k, heads(v)]),
        "attn_gate.weight": heads(z),
        "ssm_conv1d.weight": np.concatenate([kernel[:width], heads(by_head(kernel[width:]))]),
        "ssm_dt.bias": heads(by_head(take("linear_attn.dt_bias"))),
        "ssm_a": heads(by_head(-np.exp(take("linear_attn.A_log")))),
        "ssm_norm.weight": take("linear_attn.norm.weight"),
        "ssm_out.weight": heads(by_head(take("linear_attn.out_proj.weight").T)).T,
    }


# What llama.cpp calls a network of this kind.
KINDS = {
    "qwen3next": {},
    "qwen35": {"model_type": "qwen3_5_text", "num_experts": 0},
    "qwen35moe": {"model_type": "qwen3_5_moe_text"},
}


@few
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    kind=st.sampled_from([*KINDS, "dense"]),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "num_nextn_predict_layers": st.just(0),
            "tie_word_embeddings": st.just(True),
            "linear_num_key_heads": st.sampled_from([1, 4]),
            "linear_num_value_heads": st.sampled_from([8, 12]),
            "layer_types": st.just(("full_attention", "linear_attention", "linear_attention", "full_attention")),
        },
    ),
)
def test_every_weight_is_there_once(saved, tmp_path_factory, dtype, kind, changes) -> None:
    folder = saved(dtype, **KINDS.get(kind, {"num_experts": 0}), **changes)
    file = tmp_path_factory.mktemp("out") / "net.gguf"
    hub.export_gguf(folder, file)
    keys, tensors = read(file)
    model = gossamer.load(folder)
    wanted = expected(model)
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_allclose(tensors[name], tensor, rtol=1e-6, atol=0, err_msg=name)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    matrix = {torch.bfloat16: "BF16", torch.float16: "F16"}.get(dtype, "F32")
    assert {kinds["token_embd.weight"], kinds[f"blk.0.ffn_up{'_exps' * (model.config.num_experts > 0)}.weight"]} == {
        matrix
    }
    router = ("ffn_gate_inp.weight",) if model.config.num_experts else ()
    assert {kinds[f"blk.0.{name}"] for name in ("attn_norm.weight", *router)} == {"F32"}
    name = keys["general.architecture"]
    assert name == ("qwen35" if kind == "dense" else kind)
    head = 1 - ("num_nextn_predict_layers" in changes)
    assert keys[f"{name}.block_count"] == 4 + head
    linear = [mixer == "linear_attention" for mixer in model.config.mixers]
    assert keys[f"{name}.attention.recurrent_layers"] == linear + [False] * head
    assert keys.get(f"{name}.nextn_predict_layers", 0) == head
    assert keys["general.file_type"] == {"F32": 0, "F16": 1, "BF16": 32}[matrix]


@pytest.mark.parametrize("kind", KINDS)
def test_the_sizes_have_their_keys(saved, tmp_path, kind) -> None:
    hub.export_gguf(saved(rope_theta=5e5, partial_rotary_factor=0.5, **KINDS[kind]), tmp_path / "net.gguf")
    keys, _ = read(tmp_path / "net.gguf")
    assert keys["general.architecture"] == kind and keys["general.name"] == "net"
    assert keys[f"{kind}.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    wanted = {
        "context_length": 32768,
        "embedding_length": 32,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "rope.dimension_count": 8,
        "rope.freq_base": 5e5,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 8,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 4,
        "ssm.inner_size": 32,
        "full_attention_interval": 4,
    }
    if kind != "qwen35":
        wanted |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16}
        wanted |= {"expert_shared_feed_forward_length": 24}
    if kind != "qwen35moe":
        wanted |= {"feed_forward_length": 48}
    if kind != "qwen3next":
        wanted |= {"rope.dimension_sections": [2, 1, 1, 0]}
    assert {name: keys[f"{kind}.{name}"] for name in wanted} == wanted
    optional = ("expert_count", "feed_forward_length", "rope.dimension_sections")
    assert {name for name in optional if f"{kind}.{name}" in keys} == set(optional) & wanted.keys()


def test_sections_of_the_rotation_as_released() -> None:
    """Of the 64 rotating dimensions that all released models have; every pair is one of three, of whatever number."""
    assert gguf_file._rope_sections(64) == [11, 11, 10, 0]
    for pairs in range(1, 40):
        counts = [len(range(turn, pairs, 3)) for turn in range(3)]
        assert gguf_file._rope_sections(2 * pairs) == [*counts, 0]


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
    with pytest.raises(UserError, match=r"name of the way this tokenizer splits a text is not known here; known are "):
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
        ({"mlp_only_layers": (1,)}, "layers without experts beside layers with experts"),
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


def test_the_refusal_names_the_architecture(saved, tmp_path) -> None:
    with pytest.raises(UserError, match=r"^llama.cpp's qwen35 does not support rms_norm_eps"):
        hub.export_gguf(saved(rms_norm_eps=1e-5, num_experts=0), tmp_path / "net.gguf")


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
