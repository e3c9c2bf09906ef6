"""One network over many processes: FSDP2 for all weights, and experts spread over groups of processes.

All processes hold an equal part of everything. Each computes its own rows of a batch; a block's weights are gathered
when it runs and its gradients are summed, not averaged, over the processes: a trainer divides its losses by the counts
of the whole batch. With expert parallelism P, each group of P neighbors holds the experts of a layer together
(`expert_parallel`), and only what a process owns of them is gathered over the groups.

What departs from the usual:

- Gradients are sums. FSDP2's own way to say that multiplies on the way, which only NCCL can; plain sums run anywhere.
- Embedding, head and the last norms are one group with the whole network: the loss uses the head's weight itself,
  without a call to the head, so the weight must be there from the start of the forward to the end of the backward pass.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.experts import SparseMLP
from gossamer.model.linear import has_low_rank
from gossamer.model.trunk import Block
from gossamer.train.expert_parallel import SpreadExperts
from gossamer.train.world import World


def parallelize(
    model: CausalLM,
    world: World,
    expert_parallel: int = 1,
    recompute: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> None:
    """Spread a network over all processes, in place; optimizers are built afterwards.

    Args:
        model: on this process's device, with the same weights on every process
        world: the processes
        expert_parallel: processes that a layer's experts are spread over
        recompute: keep only the input of each block, and compute the block again in the backward pass
        compute_dtype: dtype that weights are gathered in, while gradients stay in float32; None: the weights' own

    Raises:
        UserError: expert_parallel does not divide both the processes and the experts, or the network has matrices of
            low rank.
    """
    _check_expert_parallel(expert_parallel, world.size, model.config.num_experts)
    model.model.recompute = recompute
    if world.size == 1:
        return
    if has_low_rank(model):
        raise UserError(f"LoRA trains in one process, and here are {world.size}; start one, or train all weights")
    # Inputs are not cast: the rotary tables stay in float32, and activations have the embedding's type.
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=None if compute_dtype is None else torch.float32,
        cast_forward_inputs=False,
    )
    if expert_parallel > 1:
        # Gathering what is cut twice along its experts takes two steps; PyTorch would say so on every process.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        grid = world.expert_mesh(expert_parallel)
        for module in model.modules():
            if isinstance(module, SparseMLP):
                module.experts = SpreadExperts(module.experts, grid["expert"])
                fully_shard(module.experts, mesh=grid["data"], mp_policy=policy)
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=world.mesh, mp_policy=policy)
    fully_shard(model, mesh=world.mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.register_forward_hook(_reshard_without_backward)


def grad_norm(parameters: Iterable[Tensor], world: World) -> Tensor:
    """Return the norm of the gradient over all parameters of all processes, a scalar.

    Gradients that are not DTensors are taken to be the same on every process.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    spread = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    plain = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    # FSDP leaves every process a part of its own of every DTensor: the parts' squares add up.
    square = nn.utils.get_total_norm(plain).square().to(world.device)
    if spread:
        square = square + world.all_reduce(nn.utils.get_total_norm(spread).square())
    return square.sqrt()


def gathered_model(model: CausalLM, world: World, copy: bool = False) -> CausalLM | None:
    """Return the whole network on the main process, None on the others. Every process must call this.

    Of several processes the network is put together on the main one's CPU. A single process gets the network itself,
    or with `copy` another one with copies of its weights, which training does not change.
    """
    if world.size == 1 and not copy:
        return model
    if world.size == 1:
        state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    else:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=options)
    if not world.is_main:
        return None
    with torch.device("meta"):  # no memory, and no number of the random generator is used
        whole = CausalLM(model.config, random_weights=False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in state.items():
        assert isinstance(tensor, Tensor)
        owner, _, leaf = name.rpartition(".")
        setattr(whole.get_submodule(owner), leaf, nn.Parameter(tensor) if name in parameters else tensor)
    if model.config.tie_word_embeddings:
        whole.lm_head.weight = whole.model.embed_tokens.weight
    return whole.train(model.training)


def _reshard_without_backward(model: nn.Module, inputs: Any, output: Any) -> None:
    """Free the gathered weights of the root group after a forward pass that no backward pass follows."""
    if not torch.is_grad_enabled() and isinstance(model, FSDPModule):
        model.reshard()


def _check_expert_parallel(expert_parallel: int, size: int, experts: int) -> None:
    """Refuse a number of processes that experts cannot be spread over equally."""
    if expert_parallel == 1:
        return
    if experts == 0:
        raise UserError(f"training.expert_parallel = {expert_parallel}: the network has no experts; leave it at 1")
    if expert_parallel < 1 or size % expert_parallel or experts % expert_parallel:
        shared = math.gcd(size, experts)
        fitting = ", ".join(str(number) for number in range(1, shared + 1) if shared % number == 0)
        raise UserError(
            f"training.expert_parallel = {expert_parallel}: must divide the number of processes, {size}, and of "
            f"experts, {experts}; what fits: {fitting}"
        )
