"""Small random networks, a tokenizer for them, and what their plain full forward pass says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import torch

from gossamer.data.tokenizer import Tokenizer, char_tokenizer
from gossamer.infer.engine import Engine, EngineOptions
from gossamer.infer.request import Delta, Request, SamplingParams
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig

VOCAB = 50
CONFIG = ModelConfig(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12,
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    initializer_range=0.2, max_position_embeddings=512,
)  # fmt: skip


@cache
def network(seed: int = 0, heads: int = 1, dtype: torch.dtype = torch.float32) -> CausalLM:
    """With random weights that do not change; `heads`: of multi-token prediction, 0 or 1."""
    torch.manual_seed(seed)
    config = replace(CONFIG, num_nextn_predict_layers=heads)
    return CausalLM(config).to(dtype).eval().requires_grad_(False)


@cache
def tokenizer() -> Tokenizer:
    """A token for each of `VOCAB` − 1 characters."""
    return char_tokenizer(["".join(chr(ord("A") + index) for index in range(VOCAB - 1))])


def tokens(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random ids, none of them the end of text."""
    return tuple(torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@torch.inference_mode()
def greedy(model: CausalLM, prompt: Iterable[int], count: int) -> tuple[int, ...]:
    """The likeliest continuation, each token from a full forward pass over all before it."""
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    return tuple(ids[-count:])


def request(
    id: str, prompt: Iterable[int], count: int, boundaries: tuple[int, ...] = (), **sampling: object
) -> Request:
    """A greedy request unless told otherwise, which the end of text does not end."""
    values = {"temperature": 0.0, "ignore_eos": True} | sampling
    return Request(id, tuple(prompt), SamplingParams(count, **values), boundaries)  # type: ignore[arg-type]


def engine(model: CausalLM | None = None, **options: object) -> Engine:
    """With small pages unless told otherwise."""
    values = {"page_size": 8, "snapshot_interval": 16, "max_batch": 4, "cache_tokens": 1024} | options
    return Engine(model or network(), tokenizer(), EngineOptions(**values))  # type: ignore[arg-type]


def run(engine: Engine, requests: Iterable[Request]) -> dict[str, list[Delta]]:
    """Submit them all and step until nothing is left; each one's deltas."""
    answers: dict[str, list[Delta]] = {}
    for one in requests:
        engine.submit(one)
        answers[one.id] = []
    while engine.has_work:
        for delta in engine.step():
            answers[delta.id].append(delta)
    return answers


def ids(deltas: Iterable[Delta]) -> tuple[int, ...]:
    """All tokens of an answer."""
    return tuple(token for delta in deltas for token in delta.token_ids)
