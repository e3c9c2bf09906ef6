"""Tuning on text is training on it: the same file gives the same loss and the same gradients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from answers import assert_close, learner_of, step_of
from engine_double import write_tokenizer
from gossamer.data.chat.records import read_records
from gossamer.data.chat.rows import rows_of
from gossamer.data.chat.samples import build_examples
from gossamer.data.config import CorpusConfig
from gossamer.data.dataset import prepare_for_evaluation
from gossamer.data.packing import validation_batches
from gossamer.data.tokenizer import Tokenizer
from gossamer.model.causal_lm import CausalLM
from parallel_runs import Case


def test_learning_from_text_is_what_train_does(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path / "tokenizer", form=None))
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "a second text", "三", "4 " * 9)))

    corpus = CorpusConfig(cache_dir=str(tmp_path / "cache"), workers=1)
    tokens = prepare_for_evaluation((str(file),), corpus, tokenizer, False)
    trained = list(validation_batches(tokens, 1, tokens.num_tokens))
    examples = build_examples(read_records([str(file)]), tokenizer, context=100).examples
    tuned = rows_of(examples, range(len(examples)), 20)
    assert len(trained) == 1 and len(tuned) > 1

    torch.manual_seed(0)
    model = CausalLM(replace(Case().model().config, vocab_size=tokenizer.vocab_size))
    values, gradients = step_of(learner_of(model), tuned)
    expected, expected_gradients = step_of(learner_of(model), trained)
    names = ("loss", "mtp_loss")
    assert_close({name: values[name] for name in names}, {name: expected[name] for name in names}, 1e-5)
    assert_close(gradients, expected_gradients, 1e-5)
