"""llama.cpp reads what is written here: the same logits and the same tokens. Where llama-cpp-python is installed."""

import ctypes

import numpy as np
import pytest
import torch

import gossamer
from gossamer import hub
from gossamer.data.tokenizer import Tokenizer, train_bpe
from gossamer.hub import gguf_folder
from gossamer.hub.gguf_header import read_gguf_header

pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp")

TEXTS = [
    "def forward(self, x):\n    return x  # it's 1234.5 × 6\r\n\r\n\tdone",
    "नमस्ते, 北京 2026! ’tis ÉTÉ   \n \n  don'T 'RE",
    "<|endoftext|>",
    "",
]


@pytest.fixture
def both(build, tmp_path):
    """A network here and in llama.cpp, with their tokenizer; keywords change the configuration."""

    def both(dtype: torch.dtype = torch.float32, **changes):
        tokenizer = train_bpe(TEXTS[:2] * 2, 300)
        model = build(dtype, **{"vocab_size": 320, "mlp_only_layers": ()} | changes).eval()
        gossamer.save(model, tmp_path / "net", tokenizer)
        hub.export_gguf(tmp_path / "net", tmp_path / "net.gguf")
        theirs = llama_cpp.Llama(
            str(tmp_path / "net.gguf"),
            n_ctx=64,
            n_threads=1,
            n_threads_batch=1,
            type_k=llama_cpp.GGML_TYPE_F32,  # keys and values; float16 is its default
            type_v=llama_cpp.GGML_TYPE_F32,
            logits_all=True,
            verbose=False,
        )
        return model, theirs, tokenizer

    return both


DENSE = {"model_type": "qwen3_5_text", "num_experts": 0}
SPARSE = {"model_type": "qwen3_5_moe_text"}


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_nextn_predict_layers": 0},
        {"tie_word_embeddings": True},
        {"linear_num_key_heads": 1},
        {"layer_types": ("full_attention", "linear_attention", "linear_attention", "full_attention")},
        {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
        DENSE,
        DENSE | {"num_nextn_predict_layers": 0, "tie_word_embeddings": True},
        DENSE | {"linear_num_key_heads": 4, "rope_theta": 500.0},
        DENSE | {"linear_num_value_heads": 6, "rope_theta": 500.0, "head_dim": 32, "partial_rotary_factor": 0.75},
        {"num_experts": 0, "linear_num_value_heads": 16},
        DENSE | {"head_dim": 256, "linear_key_head_dim": 128, "linear_value_head_dim": 128},  # as all that are released
        SPARSE,
        SPARSE | {"linear_num_value_heads": 16, "partial_rotary_factor": 1.0},
        SPARSE | {"linear_num_key_heads": 1, "tie_word_embeddings": True},
        SPARSE | {"layer_types": ("full_attention", "linear_attention", "linear_attention", "full_attention")},
    ],
)
def test_the_same_logits(both, changes) -> None:
    model, theirs, _ = both(**changes)
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    wanted = model(ids).logits[0].numpy()
    theirs.eval(ids[0, :30].tolist())
    for token in ids[0, 30:].tolist():
        theirs.eval([token])
    np.testing.assert_allclose(theirs.scores[:40], wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


def decode(context, tokens: list[int], hidden: np.ndarray | None = None) -> None:
    """Tokens in one batch, each with a hidden state that the multi-token-prediction head takes."""
    count = len(tokens)
    batch = llama_cpp.llama_batch(n_tokens=count)  # positions follow one another
    batch.token = (llama_cpp.llama_token * count)(*tokens)
    batch.logits = (ctypes.c_int8 * count)(*[1] * count)
    if hidden is not None:
        batch.embd = hidden.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert llama_cpp.llama_decode(context, batch) == 0


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, DENSE, SPARSE])
def test_the_same_drafts(both, tmp_path, changes) -> None:
    """The logits of the multi-token-prediction head, in a context of llama.cpp for it beside that of the trunk."""
    next_n = pytest.importorskip("llama_cpp.llama_cpp_ext")
    model, theirs, _ = both(**changes, rope_theta=500.0)
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(1))
    out = model(ids, labels=ids)
    wanted = model.lm_head(out.drafts[0])[0, :-1].numpy()
    params = llama_cpp.llama_model_default_params()
    params.load_mtp = True
    network = llama_cpp.llama_model_load_from_file(str(tmp_path / "net.gguf").encode(), params)
    contexts = []
    for kind in (llama_cpp.LLAMA_CONTEXT_TYPE_DEFAULT, llama_cpp.LLAMA_CONTEXT_TYPE_MTP):
        params = theirs.context_params
        params.ctx_type = kind
        contexts.append(llama_cpp.llama_init_from_model(network, params))
    trunk, head = contexts
    next_n.llama_set_embeddings_nextn(trunk, True, False)
    decode(trunk, ids[0].tolist())
    hidden = np.ctypeslib.as_array(next_n.llama_get_embeddings_nextn(trunk), (40, model.config.hidden_size))
    np.testing.assert_allclose(hidden, out.hidden[0].numpy(), atol=1e-4, rtol=0)
    decode(head, ids[0, 1:].tolist(), hidden[:-1])
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(head), (39, 320))
    np.testing.assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)
    for context in contexts:
        llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(network)


def test_the_same_tokens(both) -> None:
    _, theirs, tokenizer = both()
    for text in TEXTS:
        ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode(text), text
        assert theirs.tokenize(text.encode(), add_bos=True, special=False) == [tokenizer.eot_id, *ids]
        assert theirs.detokenize(ids).decode() == text
    assert theirs.token_eos() == tokenizer.eot_id


@torch.no_grad()
def test_what_it_quantizes_is_read(both, tmp_path, monkeypatch) -> None:
    """Q8_0 as llama.cpp writes it, with matrices that it leaves as they are since their rows are no whole blocks."""
    monkeypatch.setattr(gguf_folder, "cache_folder", lambda: tmp_path / "cache")
    model, _, tokenizer = both(**DENSE, linear_num_value_heads=8)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, 1
    files = [str(tmp_path / name).encode() for name in ("net.gguf", "q8_0.gguf")]
    assert llama_cpp.llama_model_quantize(*files, ctypes.byref(params)) == 0
    kinds = [one.kind for one in read_gguf_header(tmp_path / "q8_0.gguf").tensors.values()]
    assert kinds.count("Q8_0") > 10 and len(set(kinds)) > 1
    back = dict(gossamer.load(tmp_path / "q8_0.gguf", dtype=torch.float32).named_parameters())
    errors = {name: (back[name] - one).norm() / (one.norm() + 1e-6) for name, one in model.named_parameters()}
    assert 1e-3 < max(errors.values()) < 1e-2, errors  # half a step of 1/127 of the largest of 32 values
    assert Tokenizer.load(hub.find_model(tmp_path / "q8_0.gguf")).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
