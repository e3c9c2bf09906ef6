"""A GGUF file is read to the network and the tokenizer that it was written from."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gossamer
from gossamer import UserError, hub
from gossamer.data.tokenizer import Tokenizer, train_bpe
from gossamer.hub import gguf_folder
from gossamer.hub.checkpoint import open_checkpoint
from gossamer.hub.gguf_header import read_gguf_header
from gossamer.hub.gguf_read import read_gguf_rows
from gossamer.infer.defaults import generation_config

gguf = pytest.importorskip("gguf")

few = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VOCAB = 300
TEXT = "the cat sat on the mat, the cat sat there — it's 1234 × ÉTÉ\n"
KINDS = {
    "qwen3next": {},
    "qwen35": {"model_type": "qwen3_5_text", "num_experts": 0},
    "qwen35moe": {"model_type": "qwen3_5_moe_text"},
}
# What a GGUF file does not say, because it is about training or about parts that the network does not have.
UNSAID = "initializer_range router_aux_loss_coef intermediate_size num_experts_per_tok moe_intermediate_size".split()
UNSAID += ["shared_expert_intermediate_size"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT], 280)


@pytest.fixture
def written(build, tokenizer, tmp_path, monkeypatch):
    """A network and its GGUF file; keywords change the configuration."""
    monkeypatch.setattr(gguf_folder, "cache_folder", lambda: tmp_path / "cache")

    def written(dtype: torch.dtype = torch.float32, **changes):
        model = build(dtype, **{"vocab_size": VOCAB, "mlp_only_layers": ()} | changes).eval()
        gossamer.save(model, tmp_path / "net", tokenizer)
        (tmp_path / "net.gguf").unlink(missing_ok=True)
        hub.export_gguf(tmp_path / "net", tmp_path / "net.gguf")
        return model, tmp_path / "net.gguf"

    return written


def rewritten(file: Path, keys: dict | None = None, types: dict[str, str] | None = None) -> Path:
    """A copy with other values of keys, None to leave one out, and other types of tensors."""
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    kinds = {name: field.types[0] for name, field in reader.fields.items()}
    values |= keys or {}
    writer = gguf.GGUFWriter(file.with_name("other.gguf"), values.pop("general.architecture"))
    for name, value in values.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            new = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
            writer.add_key_value(name, value, kinds.get(name, new))
    for tensor in reader.tensors:
        kind = (types or {}).get(tensor.name, tensor.tensor_type.name)
        data = gguf.quants.quantize(tensor.data, gguf.GGMLQuantizationType[kind]) if types else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.with_name("other.gguf")


@few
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    kind=st.sampled_from([*KINDS]),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "num_nextn_predict_layers": st.just(0),
            "tie_word_embeddings": st.just(True),
            "linear_num_key_heads": st.sampled_from([1, 4]),
            "linear_num_value_heads": st.sampled_from([8, 12]),
            "rope_theta": st.sampled_from([1e7, 12345.5]),
            "partial_rotary_factor": st.sampled_from([0.5, 0.75, 1.0]),
            "layer_types": st.just(("full_attention", "linear_attention", "linear_attention", "full_attention")),
        },
    ),
)
@torch.no_grad()
def test_the_network_comes_back(written, tmp_path, dtype, kind, changes) -> None:
    """Bit for bit, but for norms and A_log, which the file has as 1 + w and −exp(A_log); these are the same again."""
    model, file = written(dtype, **KINDS[kind], **changes)
    back = gossamer.load(file)
    said, known = back.config.to_dict(), model.config.to_dict()
    assert {key: said[key] for key in said if key not in UNSAID} == {
        key: known[key] for key in said if key not in UNSAID
    }
    own, theirs = dict(model.named_parameters()), dict(back.named_parameters())
    assert own.keys() == theirs.keys()
    for name, parameter in own.items():
        assert theirs[name].dtype == parameter.dtype
        if name.endswith(".A_log"):
            assert torch.equal(theirs[name].exp(), parameter.exp())
        elif "norm" in name and "linear_attn" not in name:
            assert torch.equal(theirs[name].float() + 1, parameter.float() + 1)
        else:
            assert torch.equal(theirs[name], parameter), name
    if dtype == torch.float32:
        ids = torch.randint(0, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
        assert torch.equal(back(ids).logits, model(ids).logits)
    (tmp_path / "again").mkdir(exist_ok=True)
    again = tmp_path / "again" / "net.gguf"
    again.unlink(missing_ok=True)
    hub.export_gguf(file, again)
    assert again.read_bytes() == file.read_bytes()


def test_the_tokenizer_comes_back(written, tokenizer) -> None:
    _, file = written()
    folder = hub.find_model(file)
    back = Tokenizer.load(folder)
    for text in (TEXT, "", "<|endoftext|>", "ÉTÉ नमस्ते 北京"):
        assert back.encode(text) == tokenizer.encode(text)
        assert back.encode(text, special=True) == tokenizer.encode(text, special=True)
        assert back.decode(back.encode(text)) == text
    assert (back.vocab_size, back.eot_id, back.prefix_ids) == (tokenizer.vocab_size, tokenizer.eot_id, (0,))
    assert generation_config(folder) == ({}, (0,))
    assert hub.find_model(folder) == folder == hub.find_model(file)


def test_the_tokenizer_of_another(written) -> None:
    """As Qwen's files are: no token before a text, two ends of an answer, tokens that are special or only added."""
    _, file = written()
    header = read_gguf_header(file)
    tokens, types = (list(header.keys[f"tokenizer.ggml.{name}"]) for name in ("tokens", "token_type"))
    for index, (token, kind) in enumerate([("<|im_end|>", 3), ("<think>", 4)], start=290):
        tokens[index], types[index] = token, kind
    keys = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.pre": "qwen2"}
    keys |= {"tokenizer.ggml.eos_token_id": 290, "tokenizer.ggml.add_bos_token": False}
    other = rewritten(file, keys | {"tokenizer.chat_template": "{{ messages }}"})
    folder = hub.find_model(other)
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.eot, tokenizer.prefix_ids, tokenizer.chat_template) == ("<|im_end|>", (), "{{ messages }}")
    assert generation_config(folder)[1] == (290, 0)
    assert tokenizer.encode("<think>") == [291] and 290 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.encode("<|im_end|>", special=True) == [290]
    assert tokenizer.special_tokens == {"<|endoftext|>": 0, "<|im_end|>": 290}
    begins = rewritten(file, keys | {"tokenizer.ggml.add_bos_token": True})
    assert Tokenizer.load(hub.find_model(begins)).prefix_ids == (0,)


@torch.no_grad()
def test_q8_0_is_dequantized(written) -> None:
    """To what the package `gguf` makes of it; the types of a file may be mixed."""
    _, file = written(num_experts=0)
    wide = {
        name for name, one in read_gguf_header(file).tensors.items() if len(one.shape) > 1 and one.shape[-1] % 32 == 0
    }
    kinds = {name: "Q8_0" if name in wide else "F32" for name in read_gguf_header(file).tensors}
    other = rewritten(file, types=kinds)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(other).tensors}
    assert {one.kind for one in read_gguf_header(other).tensors.values()} == {"Q8_0", "F32"}
    back = gossamer.load(other)
    assert {parameter.dtype for parameter in back.parameters()} == {torch.float32}
    np.testing.assert_array_equal(back.lm_head.weight.numpy(), tensors["output.weight"])
    np.testing.assert_array_equal(back.model.layers[3].self_attn.k_proj.weight.numpy(), tensors["blk.3.attn_k.weight"])
    rows = back.model.layers[0].linear_attn.in_proj_qkvz.weight.numpy()
    np.testing.assert_array_equal(rows[:8], tensors["blk.0.attn_qkv.weight"][:8])
    assert gossamer.load(other, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


def test_as_a_directory(written, tmp_path) -> None:
    """`export` writes the released layout of the model type, with the tokenizer."""
    model, file = written(**KINDS["qwen35moe"])
    hub.export(file, tmp_path / "out")
    back = gossamer.load(tmp_path / "out")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(back(ids).logits, model(ids).logits)
    gossamer.save(model, tmp_path / "direct")
    names = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "direct")]
    assert names[0]["architectures"] == names[1]["architectures"] == ["Qwen3_5MoeForCausalLM"]
    assert (tmp_path / "out" / "tokenizer.json").is_file() and not (tmp_path / "out" / "gguf.json").exists()


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"general.architecture": "llama"}, "the architecture llama is another one; gossamer reads qwen3next, qwen35"),
        ({"split.count": 3}, "one of 3 parts; join them"),
        ({"qwen35.ssm.state_size": None}, "lacks the key qwen35.ssm.state_size; convert"),
        ({"qwen35.attention.key_length": 0}, "qwen35.attention.key_length = 0: must be from 1"),
        ({"qwen35.ssm.inner_size": 64}, "key heads and value heads of linear attention differ in width"),
        ({"qwen35.rope.scaling.type": "yarn"}, "rope.scaling.type is yarn; gossamer computes none"),
        ({"qwen35.block_count": 1}, "num_hidden_layers"),
        ({"qwen35.embedding_length": 64}, "token_embd.weight has shape"),
        ({"qwen35.attention.recurrent_layers": [True] * 5}, "missing that config.json asks for: blk.3"),
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is llama; gossamer reads byte-level BPE"),
        ({"tokenizer.ggml.pre": "gpt-2"}, "splits a text as gpt-2 does; gossamer knows qwen2, qwen35"),
        ({"tokenizer.ggml.merges": ["x nothing"]}, "not a tokenizer that can be read"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "tokenizer.ggml.eos_token_id = 5000, and there are 300 tokens"),
        ({"tokenizer.ggml.eos_token_id": None}, "names no end-of-text token"),
    ],
)
def test_files_of_others(written, keys, what) -> None:
    _, file = written(**KINDS["qwen35"])
    with pytest.raises(UserError, match=what):
        gossamer.load(rewritten(file, keys))


def test_types_that_are_not_read(written) -> None:
    _, file = written(**KINDS["qwen35"])
    name, content, other = b"blk.1.ffn_up.weight", file.read_bytes(), file.with_name("other.gguf")
    place = content.index(name) + len(name) + 4 + 2 * 8
    assert content[place : place + 4] == struct.pack("<I", 0)
    for number, kind in ((12, "Q4_K"), (39, "MXFP4"), (99, "type 99")):
        other.write_bytes(content[:place] + struct.pack("<I", number) + content[place + 4 :])
        with pytest.raises(UserError, match=rf"blk.1.ffn_up.weight is stored as {kind}; gossamer reads F32, F16, BF16"):
            gossamer.load(other)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files(written, data) -> None:
    """Whatever is cut off or changed in a header, a line says so, or the file is read."""
    _, file = written(**KINDS["qwen35"])
    content = bytearray(file.read_bytes())
    end = min(one.offset for one in read_gguf_header(file).tensors.values())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for place in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
    other = file.with_name("damaged.gguf")
    other.write_bytes(content)
    try:
        gossamer.load(other)
    except UserError as error:
        assert "\n" not in str(error) and "damaged.gguf" in str(error)


def test_a_file_that_is_replaced_while_it_is_read(written) -> None:
    _, file = written()
    checkpoint = open_checkpoint(file)
    rows = read_gguf_rows(file, checkpoint.stored)
    next(rows)
    file.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"net\.gguf: was replaced while it was being read; load it again"):
        list(rows)
