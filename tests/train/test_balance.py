"""Balancing experts over the batches of a step."""

from dataclasses import replace

import pytest
import torch

from gossamer.data.packing import Batch
from gossamer.model.causal_lm import CausalLM
from gossamer.model.experts import Routing, load_balancing_loss
from gossamer.train.balance import LoadBalance, describe_load
from gossamer.train.config import TrainingConfig
from gossamer.train.recipe import Recipe
from gossamer.train.step import Learner
from gossamer.train.world import World


def routing(load, probability):
    return Routing(torch.tensor([load]), torch.tensor([probability], requires_grad=True), torch.zeros(1), torch.ones(1))


def test_the_loss_meets_the_loads_of_all_micro_batches_so_far(tiny_config):
    balance = LoadBalance(CausalLM(tiny_config), TrainingConfig())
    first = routing([2.0, 0.0], [0.9, 0.1])
    second = routing([0.0, 2.0], [0.2, 0.8])
    assert balance.loss(first).item() == pytest.approx(2 * 2 * 0.9)
    # Both micro-batches together are balanced, so the second one is not pushed anywhere.
    found = balance.loss(second)
    assert found.item() == pytest.approx(2 * (1 * 0.2 + 1 * 0.8))
    (gradient,) = torch.autograd.grad(found, second.probability)
    assert gradient[0, 0] == gradient[0, 1]
    assert torch.equal(balance.finish_step(), torch.tensor([[1.0, 1.0]]))


def test_loads_are_averaged_over_processes(tiny_config):
    class Two(World):
        def all_reduce(self, tensor):
            return tensor.add_(torch.tensor([[0.0, 2.0, 1.0]]))  # what the other process has

    balance = LoadBalance(CausalLM(tiny_config), TrainingConfig(), Two(size=2))
    mine = routing([2.0, 0.0], [0.7, 0.3])
    expected = load_balancing_loss(torch.tensor([[1.0, 1.0]]), mine.probability)
    assert balance.loss(mine).item() == pytest.approx(expected.item())


def test_a_bias_spreads_tokens_without_a_loss(tiny_config):
    torch.manual_seed(0)
    config = replace(tiny_config, num_nextn_predict_layers=0, num_hidden_layers=1, num_experts_per_tok=1)
    model = CausalLM(config)
    model.model.layers[0].mlp.gate.weight.data[0] += 0.3  # one expert is everybody's favorite
    balance = LoadBalance(model, TrainingConfig(balance="bias", balance_rate=0.005))
    ids = torch.randint(64, (4, 64))

    def load():
        with torch.no_grad():
            balance.loss(model(ids).routing)
        return balance.finish_step()

    before = load()
    for _ in range(150):
        after = load()
    assert after.max() < 0.7 * before.max()
    assert model.model.layers[0].mlp.gate.e_score_correction_bias.abs().max() > 0


def test_the_choice_alone_follows_the_bias(tiny_config):
    model = CausalLM(tiny_config)
    router = model.model.layers[0].mlp.gate
    x = torch.randn(10, 32)
    ids, weights, _ = router(x)
    router.e_score_correction_bias = torch.zeros(4)
    same_ids, same_weights, _ = router(x)
    assert torch.equal(ids, same_ids) and torch.allclose(weights, same_weights)
    router.e_score_correction_bias = torch.tensor([0.0, 0.0, 5.0, 0.0])
    ids, weights, _ = router(x)
    assert (ids == 2).any(-1).all()
    assert torch.allclose(weights.sum(-1), torch.ones(10))


def test_the_description_of_a_load():
    told = describe_load(torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0]]))
    assert told["max_over_mean"] == [1.0, 4.0]
    assert told["dead"] == [0, 3]
    assert told["entropy"] == pytest.approx([1.0, 0.0], abs=1e-6)


def batch(rows, padded_rows=0, padding=0):
    """Rows of tokens, each a document; then padding at their ends, and rows of nothing else."""
    count, length = rows.shape
    ids = torch.zeros(count + padded_rows, length + padding, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    ids[:count, :length] = labels[:count, :length] = rows
    starts = [row * (length + padding) + place for row in range(count) for place in {0, length if padding else 0}]
    starts = sorted(starts) + [row * (length + padding) for row in range(count, len(ids))]
    return Batch(ids, labels, torch.tensor([*starts, ids.numel()], dtype=torch.int32))


@pytest.mark.parametrize("method", ["loss", "bias"])
def test_padding_and_rows_that_fill_up_a_batch_weigh_nothing(tiny_config, method):
    """Neither in the losses nor in the loads, nor do they move a bias or a weight."""
    rows = torch.randint(1, 64, (4, 12), generator=torch.Generator().manual_seed(0))
    found = []
    # Two micro-batches of unlike sizes: each weighs by its tokens, however many places it has.
    for batches in (
        [batch(rows[:3]), batch(rows[3:])],
        [batch(rows[:3], padding=20), batch(rows[3:], padded_rows=5)],
        [batch(rows[:3]), batch(rows[3:]), batch(rows[:0], padded_rows=2)],
    ):
        torch.manual_seed(0)
        training = TrainingConfig(balance=method, mtp_steps=2, router_z_loss_weight=0.1, precision="fp32", device="cpu")
        learner = Learner(CausalLM(tiny_config), Recipe(model=tiny_config, training=training))
        measured = learner.step(batches, 1e-2)
        biases = [router.e_score_correction_bias for router in learner.balance.routers]
        weights = [parameter.detach() for parameter in learner.model.parameters()]
        found.append((measured.values, measured.load, biases if method == "bias" else [], weights))
    for padded in found[1:]:
        torch.testing.assert_close(padded, found[0], rtol=2e-4, atol=2e-4)
