"""Continue a prompt token by token with the state cache, streaming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gossamer import device as devices
from gossamer import hub
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.sampler import Sampling, choose
from gossamer.model.causal_lm import CausalLM


@torch.inference_mode()
def generate(
    model: CausalLM, prompt: Sequence[int], tokens: int, sampling: Sampling, seed: int, stop: int | None = None
) -> Iterator[int]:
    """Yield up to `tokens` ids that continue `prompt`, ending before `stop`.

    Args:
        prompt: at least one id
        seed: of this text alone; the program's own random state is not touched

    Raises:
        UserError: the text would outgrow the model's max_position_embeddings.
    """
    longest = model.config.max_position_embeddings
    if len(prompt) + tokens > longest:
        raise UserError(f"prompt and continuation of {len(prompt)} + {tokens} tokens exceed the model's {longest}")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    state = model.new_state()
    ids = torch.tensor([list(prompt)], device=device)
    for _ in range(tokens):
        logits = model(ids, state=state, last_only=True).logits
        assert logits is not None
        token = choose(logits[0, -1], sampling, generator)
        if token == stop:
            return
        yield token
        ids = torch.tensor([[token]], device=device)


def sample_text(
    model: CausalLM, tokenizer: Tokenizer, prompt: str, tokens: int, sampling: Sampling, seed: int
) -> Iterator[str]:
    """Yield the continuation's text in pieces of whole characters; it ends where the model ends the document."""
    # Documents begin with the delimiter in training, so a prompt is the beginning of a document.
    ids = [tokenizer.eot_id, *tokenizer.encode(prompt)]
    stream = tokenizer.stream()
    training = model.training
    model.eval()
    try:
        for token in generate(model, ids, tokens, sampling, seed, stop=tokenizer.eot_id):
            if piece := stream.push(token):
                yield piece
        if rest := stream.finish():
            yield rest
    finally:
        model.train(training)


def sample_run(
    run: Path,
    prompt: str = "",
    tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    device: str = "auto",
) -> Iterator[str]:
    """Yield `prompt`, then its continuation by the model of a run or a Hugging Face directory."""
    where = devices.resolve(device)
    devices.keep_freed_memory()
    directory = hub.find_model(run)
    model, tokenizer = hub.load(directory, device=where), Tokenizer.load(directory)
    yield prompt
    yield from sample_text(model, tokenizer, prompt, tokens, Sampling(temperature, top_p), seed)
