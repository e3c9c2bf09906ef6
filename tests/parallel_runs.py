"""Short training runs on one process or several, to be compared; as a script, what torchrun starts.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/parallel_runs.py cases.json results.json

The global batches depend on the seed alone, and every process takes its rows of them. Float64 where nothing else is
asked for: then many processes differ from one by rounding errors far below what a mistake would do.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from answers import pairs, tunings
from gossamer import ops
from gossamer.data.chat.rows import ExampleBatches
from gossamer.data.token_files import Mixture, TokenFile
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM, targets_ahead
from gossamer.model.config import ModelConfig
from gossamer.model.experts import Experts, load_balancing_loss
from gossamer.model.layer_spec import layer_specs
from gossamer.model.mtp import MTPTraining
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.ops.packing import document_lengths
from gossamer.run.checkpoint import TrainerState, load_checkpoint, save_checkpoint, snapshot
from gossamer.run.stop import Progress
from gossamer.train.bigrams import BigramTable, count_bigrams, learn_bigrams
from gossamer.train.config import OptimizerConfig
from gossamer.train.expert_parallel import SpreadExperts
from gossamer.train.optimizer import build_optimizers, step_clipped
from gossamer.train.parallel import gathered_model, grad_norm, parallelize
from gossamer.train.world import World, to_local
from gossamer.tune.reference import reference_logprobs

ROWS, LENGTH, VOCABULARY = 4, 24, 48
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A run of a tiny network.

    Attributes:
        optimizer: adamw or muon
        bigram_steps: steps on a table of pairs before the first
        first, last: its steps; a first one beyond 1 goes on from `resume`
        save: folder that the state is saved into after the last step
    """

    optimizer: str = "adamw"
    bigram_steps: int = 0
    first: int = 1
    last: int = 4
    expert_parallel: int = 1
    recompute: bool = False
    experts: int = 8
    tied: bool = False
    mtp_steps: int = 2
    dtype: str = "float64"
    compute_dtype: str = ""
    resume: str = ""
    save: str = ""

    def model(self) -> CausalLM:
        torch.manual_seed(3)
        config = ModelConfig(
            vocab_size=VOCABULARY, hidden_size=24, intermediate_size=32, num_hidden_layers=3,
            layer_types=("linear_attention", "full_attention", "linear_attention"), mlp_only_layers=(2,),
            num_attention_heads=2, num_key_value_heads=1, head_dim=12, partial_rotary_factor=0.5,
            linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
            num_experts=self.experts, num_experts_per_tok=2, moe_intermediate_size=12,
            shared_expert_intermediate_size=12, tie_word_embeddings=self.tied, initializer_range=0.1,
        )  # fmt: skip
        model = CausalLM(config).to(getattr(torch, self.dtype))
        if not self.mtp_steps:
            model.mtp.requires_grad_(False)
        return model


def run(case: Case, world: World) -> dict[str, Any]:
    """Take the case's steps; every process gives the same numbers, of all of them together."""
    model = case.model()
    compute_dtype = getattr(torch, case.compute_dtype) if case.compute_dtype else None
    parallelize(model, world, case.expert_parallel, case.recompute, compute_dtype)
    optimizers = build_optimizers(model, OptimizerConfig(case.optimizer, learning_rate=1e-2))
    if case.resume:
        load_checkpoint(Path(case.resume), model, optimizers, world)
    if case.bigram_steps:
        learn_bigrams(model, optimizers, _pairs(), case.bigram_steps, 1e-2)
    result: dict[str, Any] = {"losses": [], "norms": [], "loads": [], "held_out": []}
    for step in range(case.first, case.last + 1):
        loss, load = _forward_backward(model, case, step, world)
        result["losses"].append(loss.item())
        result["loads"].append([] if load is None else load.tolist())
        norm = grad_norm(model.parameters(), world)
        result["norms"].append(norm.item())
        for optimizer in optimizers:
            step_clipped(optimizer, norm, 1.0)
            optimizer.zero_grad(set_to_none=True)
        result["held_out"].append(_held_out(model, world))
    if world.size > 1:
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    if case.save:
        state = TrainerState(Progress(case.last, 0, 0.0, 0.5), {"place": 7})
        result["saved"] = str(save_checkpoint(Path(case.save), snapshot(model, optimizers), state, world))
    whole = gathered_model(model, world)
    assert (whole is not None) == world.is_main
    if whole is not None:
        assert whole.state_dict().keys() == case.model().state_dict().keys()
        result["gathered"] = _held_out(whole, World())
    return result


def _pairs() -> BigramTable:
    """Arithmetic progressions, as in the batches."""
    tokens = (np.arange(400) * np.arange(400) // 100 % VOCABULARY).astype(np.uint16)
    return count_bigrams(Mixture({"text": TokenFile(tokens, np.array([0, 150, 400]), 400, "")}), VOCABULARY)


def _batch(seed: int, world: World) -> tuple[dict[str, torch.Tensor], list[float]]:
    """This process's rows of a packed batch, arithmetic progressions in documents of random lengths, and divisors."""
    random = torch.Generator().manual_seed(seed)
    starts = torch.rand(ROWS * LENGTH, generator=random) < 0.15
    starts[::LENGTH] = True
    begin = starts.nonzero().flatten()
    cu_seqlens = torch.cat([begin, torch.tensor([ROWS * LENGTH])])
    pace = torch.randint(1, 4, (len(begin),), generator=random).repeat_interleave(cu_seqlens.diff())
    ids = (pace * torch.arange(ROWS * LENGTH) % VOCABULARY).view(ROWS, LENGTH)
    labels = ids.clone()
    labels[-1, LENGTH // 2 :] = IGNORED  # padding: the processes have unequal numbers of targets
    divisors = [
        float((targets_ahead(labels, document_lengths(ROWS, LENGTH, cu_seqlens), places) != IGNORED).sum())
        for places in (1, 2, 3)
    ]
    share = ROWS // world.size
    first = world.rank * share * LENGTH
    mine = slice(world.rank * share, (world.rank + 1) * share)
    inside = cu_seqlens[(cu_seqlens >= first) & (cu_seqlens <= first + share * LENGTH)] - first
    return {"input_ids": ids[mine], "labels": labels[mine], "cu_seqlens": inside.int()}, divisors


def _forward_backward(model: CausalLM, case: Case, seed: int, world: World) -> tuple[torch.Tensor, Any]:
    batch, divisors = _batch(seed, world)
    mtp = MTPTraining(case.mtp_steps) if case.mtp_steps else None
    out = model(**batch, mtp=mtp, divisors=divisors)
    loss = out.loss
    if out.mtp_loss is not None:
        loss = loss + 0.3 * out.mtp_loss
    load = None
    if out.routing is not None:
        tokens = out.routing.tokens.unsqueeze(1)  # padding is in one process's rows alone
        share = tokens / world.all_reduce(tokens.clone())
        load = world.all_reduce(out.routing.load * share)
        balance = load_balancing_loss(load, out.routing.probability * share) + 0.1 * (out.routing.z * share[:, 0]).sum()
        loss = loss + 0.01 * balance
    loss.backward()
    return world.all_reduce(loss.detach()), load


@torch.no_grad()
def _held_out(model: CausalLM, world: World) -> float:
    batch, divisors = _batch(0, world)
    return world.all_reduce(model(**batch, mtp=None, divisors=divisors).loss).item()


def lopsided_experts(world: World) -> dict[str, Any]:
    """Experts spread over all processes against the same experts in one place: the sums of absolute differences.

    Process r has 5 r tokens, none for r = 0, and all of them choose experts that the last process holds.
    """
    config = Case().model().config
    torch.manual_seed(1)
    whole = Experts(layer_specs(config)[0]).double()
    for weight in whole.parameters():
        torch.nn.init.normal_(weight)
    spread = SpreadExperts(whole, world.mesh)
    counts = [5 * rank for rank in range(world.size)]
    x, weights = torch.randn(sum(counts), config.hidden_size).double(), torch.rand(sum(counts), 2).double()
    ids = torch.randint(config.num_experts - config.num_experts // world.size, config.num_experts, (sum(counts), 2))
    towards = torch.randn_like(x)

    x_all, weights_all = x.clone().requires_grad_(), weights.clone().requires_grad_()
    y_all = ops.grouped_mlp(x_all, ids, weights_all, whole.gate_up_proj, whole.down_proj)
    (y_all * towards).sum().backward()
    mine = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
    x_mine, weights_mine = x[mine].clone().requires_grad_(), weights[mine].clone().requires_grad_()
    y_mine = spread(x_mine, ids[mine], weights_mine)
    (y_mine * towards[mine]).sum().backward()

    pairs = {
        "y": (y_mine, y_all[mine]),
        "x": (x_mine.grad, x_all.grad[mine]),
        "weights": (weights_mine.grad, weights_all.grad[mine]),
        "gate_up_proj": (spread.gate_up_proj.grad.full_tensor(), whole.gate_up_proj.grad),
        "down_proj": (spread.down_proj.grad.full_tensor(), whole.down_proj.grad),
    }
    return {name: (got - wanted).abs().sum().item() for name, (got, wanted) in pairs.items()}


def conversation(world: World) -> dict[str, Any]:
    """What the processes hear of each other."""

    def fail() -> None:
        raise UserError("no such corpus")

    try:
        world.call_on_main(fail)
        heard = ""
    except UserError as error:
        heard = str(error)
    return {
        "sum": world.all_reduce(torch.tensor([1.0, world.rank])).tolist(),
        "max": world.max_over_ranks(10 + world.rank),
        "on_main": world.call_on_main(lambda: {"rank": world.rank}),
        "error": heard,
        "gather": world.all_gather(str(world.rank)),
        "local": to_local(torch.ones(3)).shape[0],
        "sharing": world.ranks_per_device,
    }


def preferences(world: World) -> dict[str, Any]:
    """The reference of pairs, and what two steps of each kind of tuning measure; processes share rows unequally."""
    with TemporaryDirectory() as cache:
        sums = reference_logprobs(Case().model(), pairs(), 10, Path(cache), "fp32", world)
    found: dict[str, Any] = {"reference": [{str(place): float(value) for place, value in enumerate(sums.flatten())}]}
    for name, learner, examples in tunings(Case().model, world):
        batches = ExampleBatches(examples, 3, 20, seed=0, rank=world.rank, world_size=world.size)
        steps = [learner.step(next(batches), 1e-2).values for _ in range(2)]
        # A micro-batch is balanced against the loads so far, which depend on what lies in it.
        found[name] = [{key: float(value) for key, value in step.items() if key != "aux_loss"} for step in steps]
    return found


def launch(processes: int, cases: list[Case], folder: Path) -> list[dict[str, Any]]:
    """Run the cases one after the other on several processes under torchrun; results by case, then of other checks."""
    order, results = folder / "cases.json", folder / "results.json"
    order.write_text(json.dumps([asdict(case) for case in cases]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(order), str(results)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    gathered: list[dict[str, Any]] = json.loads(results.read_text())
    return gathered


def main() -> None:
    order, results = sys.argv[1:]
    names = {field.name for field in fields(Case)}
    cases = [Case(**values) for values in json.loads(Path(order).read_text()) if values.keys() == names]
    world = World.join(CPU)
    found = [*(run(case, world) for case in cases), preferences(world), lopsided_experts(world), conversation(world)]
    everywhere = world.all_gather([{**result, "gathered": None} for result in found[: len(cases)]])
    assert all(other == everywhere[0] for other in everywhere), "the processes disagree"
    worst = world.all_gather(found[-2])
    found[-2] = {name: max(differences[name] for differences in worst) for name in worst[0]}
    if world.is_main:
        Path(results).write_text(json.dumps(found))
    world.close()


if __name__ == "__main__":
    main()
