"""A beginning from the table of pairs: what is counted, what is learned, and that a run goes on from it."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data.token_files import Mixture, TokenFile
from gossamer.model.causal_lm import CausalLM
from gossamer.run import loop
from gossamer.run.metrics import read_metrics
from gossamer.train import bigrams
from gossamer.train.config import OptimizerConfig
from gossamer.train.optimizer import build_optimizers

VOCABULARY = 12
documents = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=5)


def numbered_tokens(texts):
    tokens = np.array([token for text in texts for token in text], dtype=np.uint16)
    return TokenFile(tokens, np.cumsum([0, *map(len, texts)]), len(tokens), "")


def counted(texts):
    return Counter(pair for text in texts for pair in pairwise(text))


def entropy(table):
    """The least loss that anything can have on a table (nats)."""
    return float(-(table.shares * (table.shares / table.weights[table.rows]).log()).sum())


@given(first=documents, second=documents, weight=st.sampled_from([1.0, 3.0]), rows=st.integers(1, VOCABULARY))
def test_the_pairs_inside_documents_are_counted(first, second, weight, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigrams, "MAX_ROWS", rows)
        train = Mixture(
            {"one": numbered_tokens(first), "other": numbered_tokens(second)}, {"one": 1.0, "other": weight}
        )
        expected = Counter()
        for texts, share in ((first, 1.0), (second, weight)):
            found = counted(texts)
            expected.update({pair: share * times / found.total() for pair, times in found.items()})
        if not expected:
            return
        table = bigrams.count_bigrams(train, VOCABULARY)
    by_token = Counter()
    for (context, _), share in expected.items():
        by_token[context] += share
    contexts = table.contexts.tolist()
    assert len(contexts) == min(rows, len(by_token))
    assert (
        min(by_token[token] for token in contexts)
        >= max((share for token, share in by_token.items() if token not in contexts), default=0.0) - 1e-9
    ), "the most frequent"
    whole = sum(by_token[token] for token in contexts)
    found = {
        (contexts[row], follower): share
        for row, follower, share in zip(
            table.rows.tolist(), table.followers.tolist(), table.shares.tolist(), strict=True
        )
    }
    assert found == pytest.approx(
        {pair: share / whole for pair, share in expected.items() if pair[0] in contexts}, rel=1e-5
    )
    assert table.weights.tolist() == pytest.approx([by_token[token] / whole for token in contexts], rel=1e-5)
    assert table.rows.tolist() == sorted(table.rows.tolist())


@pytest.mark.parametrize("block", [8 << 20, 1000, 1])
def test_its_gradients_are_those_of_the_cross_entropy(block, monkeypatch):
    monkeypatch.setattr(bigrams, "_BLOCK_BYTES", block)
    random = np.random.default_rng(0)
    table = bigrams.count_bigrams(Mixture({"text": numbered_tokens([random.integers(0, VOCABULARY, 300)])}), VOCABULARY)
    table = table.to(torch.zeros(0, dtype=torch.float64))
    states = torch.randn(len(table.contexts), 5, dtype=torch.float64, requires_grad=True)
    head = torch.randn(VOCABULARY, 5, dtype=torch.float64, requires_grad=True)
    loss = -(table.shares * (states @ head.T).log_softmax(1)[table.rows, table.followers]).sum()
    expected = torch.autograd.grad(loss, (states, head))
    found, *gradients = bigrams.loss_and_gradients(states.detach(), head.detach(), table)
    assert found == pytest.approx(loss.item())
    torch.testing.assert_close(tuple(gradients), expected, atol=1e-6, rtol=1e-5)  # the table's shares are float32


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_learn_it_and_nothing_else(tiny_config, tied):
    torch.manual_seed(0)
    config = replace(tiny_config, vocab_size=VOCABULARY, tie_word_embeddings=tied)
    model = CausalLM(config)
    text = np.cumsum(np.random.default_rng(0).choice([1, 1, 1, 5], 2000)) % VOCABULARY
    table = bigrams.count_bigrams(Mixture({"text": numbered_tokens([text])}), VOCABULARY)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizers = build_optimizers(model, OptimizerConfig(weight_decay=0.0))
    loss = bigrams.learn_bigrams(model, optimizers, table, 60, 3e-2)
    assert loss < (2.2 if tied else entropy(table) + 0.02), "of log 12 = 2.48 at the beginning"
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})


def test_a_run_begins_with_pairs_and_a_resumed_one_does_not_again(tiny_recipe, tmp_path):
    training = replace(tiny_recipe.training, bigram_steps=20, sampled_vocab_size=20, steps=6)
    recipe = replace(tiny_recipe, training=training)
    run = tmp_path / "run"
    loop.train(recipe, run)
    events = read_metrics(run)
    told = [event for event in events if event["event"] == "pairs"]
    first = next(event for event in events if event["event"] == "train")
    assert len(told) == 1 and told[0]["step"] == 0 and 0 < told[0]["seconds"] < first["elapsed"]
    assert first["loss"] < told[0]["loss"] + 0.5 < 3.5, "the network goes on from what the pairs taught, not from log V"
    loop.train(replace(recipe, training=replace(training, steps=8)), run, resume=True)
    assert [event["event"] for event in read_metrics(run)].count("pairs") == 1
