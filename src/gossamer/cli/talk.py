"""Verbs that let a trained model talk: on standard output, in the terminal, behind an API."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from gossamer.cli.shared import existing, typed_text
from gossamer.reading import text_of_name, user_path
from gossamer.typed import Range

_Tokens = Annotated[int, Range(1, 1 << 40)]
_Temperature = Annotated[float, Range(0, 100)]
_Probability = Annotated[float, Range(0, 1, above=True)]
_Seed = Annotated[int, Range(-(1 << 63), (1 << 63) - 1)]


def sample(
    run: str,
    prompt: str = "",
    max_tokens: _Tokens = 200,
    temperature: _Temperature | None = None,
    top_p: _Probability | None = None,
    seed: _Seed = 0,
    device: str = "auto",
) -> None:
    """Continue a prompt with a trained model; the text appears as it is made.

    Args:
        run: folder of a run, or a Hugging Face directory
        prompt: text to continue; empty begins a document
        max_tokens: of the continuation at most (tokens)
        temperature: 0 takes the likeliest token always, 1 follows the model's probabilities (default: the
            checkpoint's, else 0.8)
        top_p: smallest set of likeliest tokens to choose from, by their summed probability, above 0 and at most 1
            (default: the checkpoint's, else 0.95)
        seed: same seed, same text
        device: auto, cpu, cuda, cuda:1, npu …
    """
    folder = existing(run)
    from gossamer.device import prepare_process
    from gossamer.infer.sample import sample_run

    prepare_process()
    pieces = sample_run(
        folder,
        prompt=typed_text(prompt),
        tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        device=device,
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def chat(
    run: str,
    system: str | None = None,
    max_tokens: _Tokens | None = None,
    temperature: _Temperature | None = None,
    top_p: _Probability | None = None,
    seed: _Seed | None = None,
    device: str = "auto",
) -> int:
    """Talk with a trained model in the terminal; /help lists what can be done besides.

    Args:
        run: folder of a run, or a Hugging Face directory
        system: message that comes before the conversation
        max_tokens: of an answer at most (default: a quarter of the model's context)
        temperature: 0 takes the likeliest token always (default: the checkpoint's, else 0.8)
        top_p: smallest set of likeliest tokens to choose from, by their summed probability (default: the
            checkpoint's, else 0.95)
        seed: same seed, same answers (default: others each time)
        device: auto, cpu, cuda, cuda:1, npu …
    """
    folder = existing(run)
    from gossamer.device import prepare_process
    from gossamer.serve.terminal import chat as talk

    prepare_process()
    system = None if system is None else typed_text(system)
    return talk(folder, system, max_tokens, {"temperature": temperature, "top_p": top_p, "seed": seed}, device)


def serve(
    run: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: str | None = None,
    name: str | None = None,
    cors: tuple[str, ...] = (),
    max_batch: int = 16,
    cache_tokens: int | None = None,
    prefix_cache_bytes: int = 256 << 20,
    draft_length: int | None = None,
    weights: Literal["stored", "int8"] = "stored",
    max_queue: int = 128,
    max_connections: int = 1024,
    max_body: int = 4 << 20,
    max_tokens: int = 32768,
    queue_timeout: float = 120.0,
    request_timeout: float = 1800.0,
    drain: float = 30.0,
    log_prompts: bool = False,
    device: str = "auto",
) -> None:
    """Serve a trained model behind an OpenAI-compatible API, until SIGTERM or Ctrl-C.

    Args:
        run: folder of a run, or a Hugging Face directory
        host: address to listen on; any but this machine's own asks for --keys
        port: TCP port; 0 takes a free one
        keys: file of API keys, a line KEY or NAME KEY each; read again whenever it changes
        name: what the model is called in the API (default: the folder's name)
        cors: origins of web pages that may call the API, * for all
        max_batch: requests that decode at the same time
        cache_tokens: tokens whose keys and values are held (default: as many as max_batch requests of 4096 need)
        prefix_cache_bytes: memory for snapshots that spare a repeated prompt's computation (bytes); 0: none
        draft_length: tokens that the multi-token-prediction head proposes a step (default: as many as pay)
        weights: stored, or int8: rounded for decoding, a quarter of the bytes (gossamer eval --weights tells the loss)
        max_queue: requests that may wait; one more is answered with 429
        max_connections: open at a time, half of them to one address; one that waits gives way to a new one
        max_body: of a request at most (bytes)
        max_tokens: of an answer at most (tokens)
        queue_timeout: from a request's arrival to its first token at most (seconds)
        request_timeout: from a request's arrival to its end at most (seconds)
        drain: for running requests to end after SIGTERM (seconds)
        log_prompts: write prompts and answers to the request log
        device: auto, cpu, cuda, cuda:1, npu …
    """
    folder = existing(run)
    from gossamer.infer.options import EngineOptions
    from gossamer.serve.build import EngineConfig
    from gossamer.serve.options import ServeOptions

    engine = EngineOptions(
        max_batch=max_batch,
        cache_tokens=cache_tokens,
        prefix_cache_bytes=prefix_cache_bytes,
        draft_length="auto" if draft_length is None else draft_length,
        weights=weights,
    )
    options = ServeOptions(
        host=host,
        port=port,
        keys=None if keys is None else user_path(keys),
        name=text_of_name(name or folder.resolve().name),
        cors=cors,
        max_queue=max_queue,
        max_connections=max_connections,
        max_body=max_body,
        max_tokens=max_tokens,
        queue_timeout=queue_timeout,
        request_timeout=request_timeout,
        drain=drain,
        log_prompts=log_prompts,
    )
    from gossamer.serve.server import serve as run_service

    run_service(folder, options, EngineConfig(device, engine))
