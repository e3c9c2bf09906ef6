"""What is made of a race's measurements, and that contestants train and are measured alike."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from contestants import Dense, Gossamer, Peer, _windows
from time_to_loss import ACTIVE, NANO_GPT, OURS, crossed, dense_trunk, ends, ratios, report, rival

from gossamer.cost.network import count_network
from gossamer.train.recipe import Recipe, recipe_from


def points(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [
        {"seconds": seconds, "steps": 1, "tokens": 100 * seconds, "flops": seconds, "loss": loss, "set_up": 1.0}
        for seconds, loss in pairs
    ]


@pytest.fixture
def record() -> dict[str, Any]:
    results = {
        f"{OURS}, seed 0": points((5, 2.5), (10, 1.8)),
        f"{OURS}, seed 1": points((5, 2.5), (10, 2.0)),
        NANO_GPT: points((50, 2.2), (100, 1.95)),
        ACTIVE: points((50, 2.1), (100, 1.7)),
    }
    machine = {"device": "cpu", "torch": "2", "date": "2026-01-01", "gemm_gflops": 100.0, "copy_gbytes": 10.0}
    text = {"name": "a text", "sha256": 64 * "a", "bytes": 1234567}
    return {"race": "characters", "text": text, "machine": machine, "results": results}


def test_seeds_count_as_their_mean(record: dict[str, Any]) -> None:
    ours = ends(record)[OURS]
    assert ours["loss"] == pytest.approx(1.9)
    assert ours["spread"] == pytest.approx(math.sqrt(0.02))
    assert ours["seconds"] == 10


def test_a_ratio_is_claimed_only_where_the_loss_was_reached(record: dict[str, Any]) -> None:
    assert ratios(record) == {f"characters: time of {NANO_GPT}": 10}
    assert "not reached" in report(record)
    assert "a text (1,234,567 bytes, sha256 aaaaaaaaaaaaaaaa…)" in report(record)


def test_a_loss_is_crossed_between_two_measurements() -> None:
    track = points((10, 3.0), (20, 2.0), (30, 1.5))
    assert crossed(track, 2.5) == 15
    assert crossed(track, 3.5) == 10
    assert crossed(track, 1.4) is None


def test_every_token_but_the_first_is_predicted_once() -> None:
    text = torch.arange(24)
    windows = list(_windows(text, 7, 2))
    assert torch.cat([part[:, 1:].flatten() for part in windows]).tolist() == list(range(1, 24))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    words = random.Random(0).choices("ask not what your country can do for you".split(), k=3000)
    (tmp_path / "text.txt").write_text(" ".join(words))
    sizes = {"hidden_size": 32, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 4}
    sizes |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_nextn_predict_layers": 0}
    return recipe_from(
        {
            "model": {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
            | {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "num_experts_per_tok": 2}
            | sizes,
            "corpus": {"paths": [str(tmp_path / "text.txt")], "tokenizer": "char", "cache_dir": str(tmp_path)},
            "training": {"sequence_length": 32, "batch_size": 2, "seconds": 1.0},
        }
    )


def test_the_dense_trunk_has_neither_experts_nor_linear_attention(recipe: Recipe) -> None:
    model = dense_trunk(recipe).model
    assert model.mixers == ("full_attention",) * 4
    assert not any(model.is_sparse(layer) for layer in range(4))
    sparse = count_network(recipe.model, 32).active_parameters
    assert count_network(model, 32).active_parameters == pytest.approx(sparse, rel=0.3)


def test_all_contestants_learn_and_are_measured_on_the_same_text(recipe: Recipe) -> None:
    contestants = [
        Gossamer(recipe, 1.0),
        Peer(Dense("qwen3", 1e-2, rows=2, length=32), recipe, 0, 1.0),
        Peer(rival(NANO_GPT, recipe, 0.0), recipe, 0, 1.0),
    ]
    for one in contestants:
        before = one.validation_loss()
        one.advance(0.5)
        assert 0 < one.fraction < 1
        assert one.validation_loss() < before
