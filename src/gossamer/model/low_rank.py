"""Training of low rank (LoRA, arXiv 2106.09685): W' = W + (α / r) B A beside frozen weights W, with A and B trained.

What can be a target is a projection of linear attention, of attention, of a dense or shared feed-forward network, or
the stacked experts of a layer. Routers, convolutions, norms, gates, embeddings, the output head and the
multi-token-prediction head stay as they are. Experts have the rank max(1, r // experts per token), so that what a token
passes has about the rank r.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.errors import UserError, did_you_mean
from gossamer.model.causal_lm import CausalLM
from gossamer.model.experts import Experts
from gossamer.model.linear import Linear, LowRank, has_low_rank

__all__ = [
    "EXPERTS_DOWN",
    "EXPERTS_GATE_UP",
    "TARGETS",
    "LowRankConfig",
    "Target",
    "add_low_rank",
    "beside",
    "has_low_rank",
    "load_low_rank_state",
    "low_rank_state",
    "merge_low_rank",
    "targets_of",
]

EXPERTS_GATE_UP, EXPERTS_DOWN = "experts.gate_up_proj", "experts.down_proj"
TARGETS = (
    *("in_proj_qkvz", "in_proj_ba", "out_proj"),
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
    *(EXPERTS_GATE_UP, EXPERTS_DOWN),
)
_ALIASES = {"experts": (EXPERTS_GATE_UP, EXPERTS_DOWN)}
_GATES = "in_proj_ba"  # two rows for each head of linear attention, often fewer than the rank


@dataclass(frozen=True)
class LowRankConfig:
    """What is trained beside which weights.

    Attributes:
        rank: r of every matrix but those of experts
        alpha: α, which divided by a matrix' rank is the scale of B A
        targets: names out of `TARGETS`, or `experts` for both of theirs; none: all that the network has
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()


@dataclass(eq=False)
class Target:
    """A weight of a network that may have a matrix of low rank beside it.

    Attributes:
        kind: its name out of `TARGETS`
        parameter: its name in the network, such as `model.layers.0.linear_attn.out_proj.weight`
        owner: the module that it is a parameter of
    """

    kind: str
    parameter: str
    owner: Linear | Experts

    @property
    def weight(self) -> nn.Parameter:
        """The frozen weight, [rows, width] or [E, rows, width]."""
        weight: nn.Parameter = getattr(self.owner, self.parameter.rpartition(".")[2])
        return weight

    @property
    def low_rank(self) -> LowRank | None:
        """What is added to the weight."""
        found: LowRank | None = getattr(self.owner, self._attribute)
        return found

    @low_rank.setter
    def low_rank(self, value: LowRank | None) -> None:
        setattr(self.owner, self._attribute, value)

    @property
    def _attribute(self) -> str:
        return {EXPERTS_GATE_UP: "gate_up_low_rank", EXPERTS_DOWN: "down_low_rank"}.get(self.kind, "low_rank")


def targets_of(model: CausalLM) -> Iterator[Target]:
    """List the weights of a network's trunk that may have a matrix of low rank beside them."""
    for name, module in model.model.layers.named_modules(prefix="model.layers"):
        leaf = name.rpartition(".")[2]
        if isinstance(module, Experts):
            yield Target(EXPERTS_GATE_UP, f"{name}.gate_up_proj", module)
            yield Target(EXPERTS_DOWN, f"{name}.down_proj", module)
        elif isinstance(module, Linear) and leaf in TARGETS:
            yield Target(leaf, f"{name}.weight", module)


def add_low_rank(model: CausalLM, config: LowRankConfig) -> list[nn.Parameter]:
    """Put A and B beside the weights of the targets, and freeze all that the network had.

    Args:
        model: without such matrices; the new ones lie where its weights lie
        config: ranks, scale and targets

    Returns:
        What is trained, in the order of the network.

    Raises:
        UserError: a target is unknown or the network has no such weight, or the rank is larger than a matrix.
    """
    assert not has_low_rank(model), "what is there is merged or removed first"
    targets = _chosen(model, config)
    ranks = [_rank(target, model, config) for target in targets]
    model.requires_grad_(False)
    for target, rank in zip(targets, ranks, strict=True):
        target.low_rank = LowRank(target.weight, rank, config.alpha / rank)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _chosen(model: CausalLM, config: LowRankConfig) -> list[Target]:
    """Return the targets that a configuration names, in the order of the network."""
    found = list(targets_of(model))
    kinds = {target.kind for target in found}
    names = [part for name in config.targets for part in _ALIASES.get(name, (name,))]
    for name in names:
        if name not in TARGETS:
            raise UserError(f"targets: unknown {name!r}{did_you_mean(name, TARGETS)}; known: {', '.join(TARGETS)}")
        if name not in kinds:
            have = ", ".join(known for known in TARGETS if known in kinds)
            raise UserError(f"targets: the network has no {name}; it has {have}")
    return [target for target in found if not names or target.kind in names]


def _rank(target: Target, model: CausalLM, config: LowRankConfig) -> int:
    """Return the rank of what is added to a target, or refuse one that is larger than the matrix (UserError)."""
    rows, width = target.weight.shape[-2:]
    rank = config.rank
    if isinstance(target.owner, Experts):
        rank = max(1, rank // model.config.num_experts_per_tok)
    elif target.kind == _GATES:
        rank = min(rank, rows)
    if not 1 <= rank <= min(rows, width):
        raise UserError(
            f"rank = {config.rank}: must be from 1 to {min(rows, width)}, the smaller side of "
            f"{target.parameter} [{rows}, {width}]; name a smaller rank or leave {target.kind} out of the targets"
        )
    return rank


def beside(model: CausalLM) -> CausalLM:
    """Return a network that shares all weights of another one, and has nothing of low rank beside them yet."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, shared)
    for target in targets_of(other):
        target.low_rank = None
    return other


def low_rank_state(model: CausalLM) -> dict[str, Tensor]:
    """Return all A and B of a network by their names in it, as they are and not copied."""
    return {name: part.detach() for name, part in model.named_parameters() if _is_factor(name)}


def load_low_rank_state(model: CausalLM, state: dict[str, Tensor]) -> None:
    """Set the A and B that `low_rank_state` has returned, in a network with the same ones.

    Raises:
        UserError: the network has others.
    """
    parameters = {name: part for name, part in model.named_parameters() if _is_factor(name)}
    if {name: part.shape for name, part in parameters.items()} != {name: part.shape for name, part in state.items()}:
        raise UserError("the stored matrices of low rank are those of another network, rank or list of targets")
    with torch.no_grad():
        for name, part in parameters.items():
            part.copy_(state[name])


def _is_factor(name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf in ("A", "B") and owner.endswith("low_rank")


@torch.no_grad()
def merge_low_rank(model: CausalLM) -> float:
    """Add s · B A to the weights, in float32 and cast once, and remove the matrices.

    Returns:
        The largest difference between a sum and what the weight's type holds of it.
    """
    error = 0.0
    for target in targets_of(model):
        if (low_rank := target.low_rank) is None:
            continue
        A, B = (factor if factor.ndim == 3 else factor.unsqueeze(0) for factor in low_rank.factors())
        weight = target.weight.data if target.weight.ndim == 3 else target.weight.data.unsqueeze(0)
        for one, down, up in zip(weight, A, B, strict=True):  # one expert at a time
            wide = torch.promote_types(one.dtype, up.dtype)
            exact = torch.addmm(one.to(wide), up.to(wide), down.to(wide))
            one.copy_(exact)
            error = max(error, float((one.to(wide) - exact).abs().max()))
        target.low_rank = None
    return error
