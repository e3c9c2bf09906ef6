"""What verbs share: their form, options that several of them take, the run that they are given, and their answer."""

from __future__ import annotations

import json as jsonlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from gossamer.errors import UserError, did_you_mean_path
from gossamer.hub.find import is_gguf
from gossamer.reading import user_path
from gossamer.streams import ReaderGone
from gossamer.typed import Help

Verb = Callable[..., int | None]
"""A function whose parameters are a command's options; it returns an exit status, or None for 0."""

RunFolder = Annotated[str, Help("folder of a run, a Hugging Face directory, or a GGUF file")]
Device = Annotated[str, Help("device to use: auto, cpu, cuda, cuda:1, npu …")]
Json = Annotated[bool, Help("print one JSON object")]


class TuningFlags:
    """Metadata of a verb's `overrides`: it takes the values of a tuning, too.

    Args:
        short: names of values that have a flag without the section, by that flag, beside those of the tuning itself
    """

    def __init__(self, short: Mapping[str, str]) -> None:
        self.short = short


AUTO = "auto"
"""The default of every `--device`: an accelerator where there is one, else the CPU."""


def existing_folder(run: str, what: str) -> Path:
    """Return the folder of a run.

    Args:
        run: its path, as it was typed
        what: what such a folder is, for the message

    Raises:
        UserError: there is no such folder.
    """
    folder = user_path(run)
    if not folder.is_dir():
        siblings = [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        hint = did_you_mean_path(run, siblings) or f" ({what})"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", run):
            hint += f"; a model of the Hub comes with: hf download {run} --local-dir DIR"
        raise UserError(f"no run {run!r}{hint}")
    return folder


def existing_model(run: str) -> Path:
    """Return the folder of a run or of a checkpoint, or a GGUF file.

    Raises:
        UserError: there is neither.
    """
    path = user_path(run)
    return path if is_gguf(path) else existing_folder(run, "a run's folder, a Hugging Face directory or a GGUF file")


def typed_text(text: str) -> str:
    """Return an argument that is no path as text; terminals write it in UTF-8, whatever the locale says of names."""
    try:
        return os.fsencode(text).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text


def print_path(path: str | Path) -> None:
    """Print where a verb has put its result, which is there whether or not the line can be written."""
    with suppress(UserError, ReaderGone):
        print(path, flush=True)


def print_answer(values: dict[str, Any], json: bool) -> None:
    """Print a verb's answer, as one JSON object or with a line for each value."""
    if json:
        line = jsonlib.dumps(values, ensure_ascii=False, default=str)
        try:
            line.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            line = jsonlib.dumps(values, default=str)  # escapes that every reader of JSON understands
        print(line)
        return
    lines: dict[str, Any] = {}
    for name, value in values.items():
        lines |= {f"{name} {key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    width = max(len(name) for name in lines)
    for name, value in lines.items():
        print(f"{name:<{width}}  {', '.join(map(_short, value)) if isinstance(value, tuple) else _short(value)}")


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
