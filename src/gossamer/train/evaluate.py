"""How well a model predicts text it has not seen: loss, perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer import device as devices
from gossamer import hub
from gossamer.data.config import CorpusConfig
from gossamer.data.dataset import prepare, prepare_one
from gossamer.data.packing import Batch, validation_batches
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.ops.linear_cross_entropy import IGNORED


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    loss: mean negative log-likelihood of a token, in nats
    perplexity: e^loss
    bits_per_byte: of UTF-8 text, which compares models with different tokenizers
    tokens: how many were predicted
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int


@torch.no_grad()
def evaluate(model: CausalLM, batches: Iterable[Batch], token_bytes: np.ndarray) -> Evaluation:
    """Measure the model on batches; `token_bytes` holds the bytes that each token of the vocabulary stands for.

    Raises:
        UserError: the batches hold no token to predict.
    """
    device = next(model.parameters()).device
    total, tokens, size = 0.0, 0, 0
    training = model.training
    model.eval()
    for batch in batches:
        labels = batch.labels.to(device)
        out = model(batch.input_ids.to(device), labels=labels, cu_seqlens=batch.cu_seqlens, mtp=None)
        assert out.loss is not None and out.predicted is not None
        predicted = int(out.predicted)
        total, tokens = total + float(out.loss) * predicted, tokens + predicted
        targets = batch.labels.flatten().clone()
        targets[batch.cu_seqlens[:-1].long()] = IGNORED  # a document's first token is not predicted
        size += int(token_bytes[targets[targets != IGNORED].numpy()].sum())
    model.train(training)
    if not tokens or not size:
        raise UserError("nothing to evaluate: the text holds no token to predict")
    loss = total / tokens
    return Evaluation(loss, math.exp(min(loss, 700.0)), total / math.log(2) / size, tokens)


def evaluate_run(run: Path, paths: Sequence[str] = (), errors: str = "strict", device: str = "auto") -> dict[str, Any]:
    """Measure a run, or any Hugging Face directory of the family, on text; see `Evaluation`.

    Args:
        run: a run's folder or a Hugging Face directory
        paths: files and folders; none: the run's own held-out text, which a bare model directory does not have
        errors: strict or replace, for text that is not UTF-8
        device: auto, cpu, cuda …
    """
    where = devices.resolve(device)
    devices.keep_freed_memory()
    directory = hub.find_model(run)
    model, tokenizer = hub.load(directory, device=where), Tokenizer.load(directory)
    length, rows = 512, 8
    if paths:
        corpus = CorpusConfig(errors=errors)
        shard = prepare_one(tuple(paths), corpus, tokenizer)
    else:
        from gossamer.train.recipe import load_recipe, recipe_from

        if not (run / "config.yaml").is_file():
            raise UserError(f"{run} is a model without held-out text of its own; name text with --data PATH")
        recipe = recipe_from(load_recipe(run / "config.yaml"))
        length, rows = recipe.training.sequence_length, recipe.training.batch_size
        shard = prepare(recipe.corpus, tokenizer).validation
    result = evaluate(model, validation_batches(shard, rows, length, None), tokenizer.token_bytes())
    return asdict(result) | {"documents": shard.num_documents, "bytes": shard.num_bytes}
