"""Verbs that make a trained model write: `sample` on standard output, `chat` in the terminal, `serve` behind an API."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import Annotated

from gossamer.cli.shared import AUTO, Device, RunFolder, existing_model, typed_text
from gossamer.infer.options import EngineOptions, SamplingOptions
from gossamer.reading import text_of_name
from gossamer.serve.options import ServeOptions
from gossamer.typed import Range, Unit

_Tokens = Annotated[int, Range(1, 1 << 40), Unit("tokens")]
_Seed = Annotated[int, Range(-(1 << 63), (1 << 63) - 1)]


def sample(
    run: RunFolder,
    sampling: SamplingOptions,
    prompt: str = "",
    max_tokens: _Tokens = 200,
    seed: _Seed = 0,
    device: Device = AUTO,
) -> None:
    """Continue a prompt with a trained model.

    The text appears as it is written.

    Args:
        sampling: how tokens are chosen
        prompt: text to continue; without one, the model begins a document
        max_tokens: maximum length of the continuation
        seed: the same seed gives the same text
    """
    folder = existing_model(run)
    from gossamer.device import prepare_process
    from gossamer.infer.generation import sample_run

    prepare_process()
    chosen = asdict(sampling) | {"seed": seed}
    for text in sample_run(folder, typed_text(prompt), max_tokens, chosen, device):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def chat(
    run: RunFolder,
    sampling: SamplingOptions,
    system: str | None = None,
    max_tokens: _Tokens | None = None,
    seed: _Seed | None = None,
    device: Device = AUTO,
) -> int:
    """Talk with a trained model in the terminal.

    /help lists what can be typed there beside messages.

    Args:
        sampling: how tokens are chosen
        system: message that comes before the conversation
        max_tokens: maximum length of an answer (default: a quarter of the model's context)
        seed: the same seed gives the same answers (default: different ones each time)
    """
    folder = existing_model(run)
    from gossamer.device import prepare_process
    from gossamer.serve.terminal import chat as chat_in_terminal

    prepare_process()
    chosen = asdict(sampling) | {"seed": seed}
    return chat_in_terminal(folder, None if system is None else typed_text(system), max_tokens, chosen, device)


def serve(
    run: RunFolder, service: ServeOptions, engine: EngineOptions, name: str | None = None, device: Device = AUTO
) -> None:
    """Serve a trained model behind an OpenAI-compatible API.

    It runs until SIGTERM or Ctrl-C; the chat page is at the same address.

    Args:
        service: where it listens and what it allows
        engine: how it generates
        name: what the model is called in the API (default: the folder's name)
    """
    folder = existing_model(run)
    from gossamer.serve.engine_worker import EngineConfig
    from gossamer.serve.server import serve as run_service

    named = replace(service, name=text_of_name(name or folder.resolve().name))
    run_service(folder, named, EngineConfig(device, engine))
