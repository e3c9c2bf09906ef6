"""Fixtures: a network and a corpus small enough to train in a second, and a recipe of both."""

from dataclasses import replace

import pytest

from gossamer.data.config import CorpusConfig
from gossamer.model.config import ModelConfig
from gossamer.train.config import TrainingConfig
from gossamer.train.recipe import Recipe


@pytest.fixture
def tiny_config():
    return ModelConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        full_attention_interval=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )


@pytest.fixture
def corpus_file(tmp_path):
    path = tmp_path / "text.txt"
    lines = [f"line {number}: the square of {number} is {number * number}.\n" for number in range(400)]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def tiny_recipe(tiny_config, corpus_file, tmp_path):
    training = TrainingConfig(
        sequence_length=64, batch_size=2, steps=12, eval_every=4, eval_tokens=256, final_eval_tokens=256,
        sample_tokens=8, checkpoint_every=5, log_every=1, device="cpu",
    )  # fmt: skip
    corpus = CorpusConfig(paths=(str(corpus_file),), tokenizer="char", cache_dir=str(tmp_path / "cache"))
    return Recipe(model=replace(tiny_config), corpus=corpus, training=training)
