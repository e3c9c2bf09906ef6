"""The continuation of one prompt, streamed: the engine with a single request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gossamer import device as devices
from gossamer import hub
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.hub.find import is_of_a_run
from gossamer.infer.defaults import generation_config, sampling_for_readers
from gossamer.infer.engine import Engine, EngineOptions
from gossamer.infer.request import Request, SamplingParams
from gossamer.model.causal_lm import CausalLM


def sample_text(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: SamplingParams,
    begin: Sequence[int] | None = None,
) -> Iterator[str]:
    """Yield the continuation's text, whole characters at a time; it ends where the model ends the document.

    Args:
        model: what continues the prompt
        tokenizer: the tokenizer of the model
        prompt: the beginning of a document
        sampling: how tokens are chosen
        begin: ids before the prompt; None: the delimiter that documents begin with in training

    Raises:
        UserError: the text would outgrow the model's max_position_embeddings, or the model breaks off.
    """
    ids = (*((tokenizer.eot_id,) if begin is None else begin), *tokenizer.encode(prompt)) or (tokenizer.eot_id,)
    size = EngineOptions.page_size
    options = EngineOptions(
        max_batch=1, cache_tokens=-(-(len(ids) + sampling.max_tokens) // size) * size, prefix_cache_bytes=0
    )
    training = model.training
    model.eval()
    try:
        engine = Engine(model, tokenizer, options)
        engine.submit(Request("sample", ids, sampling))
        while engine.has_work:
            for delta in engine.step():
                if delta.error is not None:
                    raise UserError(f"the text breaks off: {delta.error}")
                if delta.text:
                    yield delta.text
    finally:
        model.train(training)


def generate(model: CausalLM, tokenizer: Tokenizer, prompt: str = "", max_tokens: int = 200, **sampling: Any) -> str:
    """Generate the continuation of a prompt, whole; see `Engine` for many at once and for streams.

    Args:
        model: the model, as `gossamer.load` returns it
        tokenizer: the tokenizer of the model
        prompt: the beginning of a document
        max_tokens: the largest number of tokens of the continuation
        sampling: keywords of `SamplingParams`; where temperature and top_p are not given, they are 0.8 and 0.95, as for
            `gossamer sample` with a checkpoint that recommends nothing

    Raises:
        UserError: there is no such keyword, or the text would outgrow the model's context.
    """
    params = SamplingParams(max_tokens, **sampling_for_readers({}, sampling))
    return "".join(sample_text(model, tokenizer, prompt, params))


def sample_run(run: Path, prompt: str, max_tokens: int, sampling: Mapping[str, Any], device: str) -> Iterator[str]:
    """Yield `prompt`, then its continuation by the model of a run or of a Hugging Face directory.

    Args:
        run: folder of a run or of a checkpoint
        prompt: the beginning of a document
        max_tokens: the largest number of tokens of the continuation
        sampling: keywords of `SamplingParams`; what is None follows `defaults`
        device: auto, cpu, cuda, cuda:1, npu …
    """
    directory = hub.find_model(run)
    recommended, ends = generation_config(directory)
    params = SamplingParams(max_tokens, stop_token_ids=ends, **sampling_for_readers(recommended, sampling))
    where = devices.resolve(device)
    devices.keep_freed_memory()
    tokenizer = Tokenizer.load(directory)
    tokenizer.encode(prompt)  # what is no text is refused before it is printed
    model = hub.load(directory, device=where)
    tokenizer.check_embedding(model.config.vocab_size, directory)
    yield prompt
    # A run has learned that documents begin with the delimiter; other checkpoints begin as they do in transformers.
    begin = None if is_of_a_run(run) else tokenizer.prefix_ids
    yield from sample_text(model, tokenizer, prompt, params, begin)
