"""llama.cpp as a subject of `decode.py`, on the same weights as `gossamer export --to gguf` writes them.

It needs `pip install llama-cpp-python gguf`, which builds llama.cpp for this machine. Its C interface is called, with
nothing of Python between two tokens but the choice of the likeliest one. Keys and values are held in float32, as the
engine's are.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measure import Call
from peers import random_tokens

from gossamer.model.config import ModelConfig

CHECKED = 64  # tokens whose logits are compared before anything is timed
CLOSE = 1e-3  # largest difference of logits, over the largest logit


def write_gguf(config: ModelConfig, folder: Path) -> Path:
    """Write the random weights that `decode.py` gives the engine, with a tokenizer of a few tokens, as a GGUF file."""
    from gossamer import hub
    from gossamer.data.tokenizer import train_bpe

    hub.save(_network(config), folder / "model", train_bpe([__doc__ or ""], 300))
    file = folder / "model.gguf"
    hub.export_gguf(folder / "model", file)
    return file


def llama_requests(file: str, length: int, count: int) -> Call:
    """Return a call that continues a prompt of random tokens greedily."""
    llama = LlamaCpp(file, length + count)
    prompt = random_tokens(llama.vocab_size, 1, length)[0].tolist()

    def call() -> None:
        llama.forget()
        tokens = prompt
        for _ in range(count):
            tokens = [int(llama.logits(tokens).argmax())]

    return call


@torch.no_grad()
def agreement(config: ModelConfig, file: Path) -> float:
    """Return the largest difference of llama.cpp's logits from the network's own, over the largest logit.

    The prompt comes at once and token by token, so that both ways of llama.cpp are compared.

    Raises:
        RuntimeError: they are not the same model.
    """
    ids = random_tokens(config.vocab_size, 1, CHECKED)
    ours = _network(config)(ids).logits[0].numpy()
    llama, tokens, half = LlamaCpp(str(file), CHECKED), ids[0].tolist(), CHECKED // 2
    steps = [tokens[:half], *([token] for token in tokens[half:])]
    theirs = [llama.logits(step).copy() for step in steps]
    difference = float(np.abs(np.stack(theirs) - ours[half - 1 :]).max() / np.abs(ours).max())
    if difference > CLOSE:
        raise RuntimeError(
            f"llama.cpp does not compute the same model: logits differ by {difference:.1e} of the largest"
        )
    return difference


def version() -> str:
    """Return the version of llama.cpp's bindings."""
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"


def _network(config: ModelConfig) -> Any:
    from gossamer import device as devices
    from gossamer.model.causal_lm import CausalLM

    devices.seed_everything(0)
    return CausalLM(config).eval().requires_grad_(False)


class LlamaCpp:
    """A model in llama.cpp, and one sequence.

    Args:
        file: the GGUF file
        context: the largest number of tokens of the sequence
    """

    def __init__(self, file: str, context: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        llama_cpp.llama_log_set(_silent(llama_cpp), None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        assert model is not None, f"llama.cpp does not load {file}"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = context
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self._context = llama_cpp.llama_init_from_model(model, params)
        assert self._context is not None, "llama.cpp makes no context"
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def forget(self) -> None:
        """Begin a new sequence."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Append tokens and return the logits after the last of them, [vocab_size], valid until the next call."""
        array = (self._library.llama_token * len(tokens))(*tokens)
        status = self._library.llama_decode(self._context, self._library.llama_batch_get_one(array, len(tokens)))
        assert status == 0, f"llama_decode: {status}"
        return np.ctypeslib.as_array(self._library.llama_get_logits_ith(self._context, -1), (self.vocab_size,))


_callbacks: list[Any] = []


def _silent(llama_cpp: Any) -> Any:
    """A logger that says nothing and must be held as long as the process lives."""
    _callbacks.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    return _callbacks[-1]
