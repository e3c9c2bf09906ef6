"""llama.cpp reads what is written here: the same logits and the same tokens. Where llama-cpp-python is installed."""

import numpy as np
import pytest
import torch

import gossamer
from gossamer import hub
from gossamer.data.tokenizer import train_bpe

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


def test_the_same_tokens(both) -> None:
    _, theirs, tokenizer = both()
    for text in TEXTS:
        ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode(text), text
        assert theirs.tokenize(text.encode(), add_bos=True, special=False) == [tokenizer.eot_id, *ids]
        assert theirs.detokenize(ids).decode() == text
    assert theirs.token_eos() == tokenizer.eot_id
