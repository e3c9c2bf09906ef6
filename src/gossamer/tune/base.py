"""What is tuned: its tokenizer and network, and the files that a tuned model has beside its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.hub.adapter import save_adapter
from gossamer.hub.checkpoint import Checkpoint, open_checkpoint
from gossamer.hub.find import find_model
from gossamer.hub.write import save_like
from gossamer.model.causal_lm import CausalLM
from gossamer.reading import read_object
from gossamer.run.checkpoint import ModelWriter
from gossamer.train.parallel import gathered_model
from gossamer.train.world import World

__all__ = ["Base", "copy_tuned_model", "grow_vocabulary", "open_base", "write_adapter"]

_GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, eq=False)
class Base:
    """A model that is tuned, before its weights are read.

    Attributes:
        folder: the folder of its model
        checkpoint: what its files hold
        tokenizer: its tokenizer
    """

    folder: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer


def open_base(path: str | Path, template: str) -> Base:
    """Open what is tuned.

    Args:
        path: a run's folder, a Hugging Face directory or a GGUF file
        template: stored, or the name of a template of our own for a base that has none

    Raises:
        UserError: it cannot be read, or it has a chat template already.
    """
    folder = find_model(path)
    base = Base(folder, open_checkpoint(path), Tokenizer.load(folder))
    if template != "stored" and base.tokenizer.chat_templates:
        raise UserError(f"--template {template}: {path} has a chat template of its own; leave the option out")
    return base


@torch.no_grad()
def grow_vocabulary(model: CausalLM, tokenizer: Tokenizer, num_new: int) -> None:
    """Give a network rows for new tokens in its embedding and head: the mean of the rows of all others.

    Args:
        model: the network
        tokenizer: the tokenizer with the new tokens, whose ids are its highest
        num_new: how many of them are new
    """
    if not num_new:
        return
    size, old = tokenizer.vocab_size, tokenizer.vocab_size - num_new
    is_tied = model.config.tie_word_embeddings
    embedding = _grown(model.model.embed_tokens.weight, old, size)
    model.model.embed_tokens.weight = nn.Parameter(embedding)
    model.lm_head.weight = nn.Parameter(embedding if is_tied else _grown(model.lm_head.weight, old, size))
    if is_tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    rows = len(embedding)
    model.lm_head.out_features = model.model.embed_tokens.num_embeddings = rows
    model.config = replace(model.config, vocab_size=rows)


def _grown(weight: Tensor, old: int, size: int) -> Tensor:
    mean = weight[:old].float().mean(0).to(weight)
    return torch.cat([weight[:old], mean.expand(size - old, -1), weight[size:]])


# The tuned model's files.


def copy_tuned_model(
    out: Path, base: Base, tokenizer: Tokenizer, end_ids: Sequence[int], world: World, model: CausalLM
) -> ModelWriter | None:
    """Copy a network, and return what writes it into the `model/` of a run as its base is written; see `ModelCopier`.

    Args:
        out: the run's folder
        base: what is tuned
        tokenizer: the tokenizer, with the chat template that is to be written
        end_ids: the tokens that end an answer
        world: the processes
        model: the network
    """
    whole = gathered_model(model, world, copy=True)
    if whole is None:
        return None
    companions = partial(_write_companions, base.folder, tokenizer, end_ids)
    return partial(save_like, whole, out / "model", base.checkpoint, companions)


def write_adapter(out: Path, base: Base, tokenizer: Tokenizer, end_ids: Sequence[int], model: CausalLM) -> None:
    """Write what was learned beside the weights of a base into the `adapter/` of a run; it is small. See `ModelCopier`.

    Args:
        out: the run's folder
        base: what is tuned
        tokenizer: the tokenizer, with the chat template that is to be written
        end_ids: the tokens that end an answer
        model: the network
    """
    folder = out / "adapter"
    save_adapter(model, folder, base.folder)
    _write_companions(base.folder, tokenizer, end_ids, folder)


def _write_companions(base: Path, tokenizer: Tokenizer, end_ids: Sequence[int], folder: Path) -> None:
    """Write the tokenizer and the generation settings of a tuned model into a folder."""
    tokenizer.save(folder)
    file = base / _GENERATION_CONFIG
    values: dict[str, Any] = read_object(file, "mend the file") if file.is_file() else {}
    values["eos_token_id"] = list(end_ids)
    (folder / _GENERATION_CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
