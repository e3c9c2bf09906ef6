"""The routed experts: each token passes the SwiGLU networks it was sent to, and their outputs are summed by weight."""

from __future__ import annotations

from torch import Tensor

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_indices, shape
from gossamer.ops.grouped_mlp.grouped_mm import grouped_mm
from gossamer.ops.grouped_mlp.native import native, runs_natively
from gossamer.ops.grouped_mlp.reference import reference
from gossamer.ops.grouped_mlp.sorted import by_expert
from gossamer.ops.registry import Operation, autocast_input

__all__ = ["grouped_mlp", "runs_natively"]

GROUPED_MLP = Operation("grouped_mlp")
GROUPED_MLP.register("native", kernels.obstacle)(native)
GROUPED_MLP.register("grouped_mm", devices.grouped_mm_obstacle, devices.is_accelerator)(grouped_mm)
GROUPED_MLP.register("sorted")(by_expert)
GROUPED_MLP.register("reference")(reference)


def grouped_mlp(x: Tensor, expert_ids: Tensor, weights: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """y_n = Σ_j weights_nj · D_e (SiLU(G_e x_n) ⊙ U_e x_n), e = expert_ids_nj.

    Tokens are independent of each other, so packed documents need no boundary here.

    Args:
        x: [N, hidden]
        expert_ids: [N, k] integers, each in 0 … E − 1
        weights: [N, k]
        gate_up_proj: [E, 2·I, hidden], the rows of G before those of U
        down_proj: [E, hidden, I]

    Returns:
        y [N, hidden] in x's dtype (under autocast, in its).

    Raises:
        UserError: shapes, types or devices that do not fit, or an id of no expert.
    """
    check_floats("grouped_mlp", x=x, weights=weights, gate_up_proj=gate_up_proj, down_proj=down_proj)
    if gate_up_proj.ndim != 3 or gate_up_proj.shape[1] % 2 or not min(gate_up_proj.shape):
        raise UserError(f"grouped_mlp: gate_up_proj {shape(gate_up_proj)} must be [experts, 2 * width, hidden]")
    experts, twice, hidden = gate_up_proj.shape
    expert_ids = check_indices("grouped_mlp", "expert_ids", expert_ids, experts, x.device, of="experts")
    fit = x.ndim == expert_ids.ndim == 2 and x.shape[1] == hidden and len(expert_ids) == len(x)
    if not fit or expert_ids.shape != weights.shape or not expert_ids.shape[1]:
        raise UserError(
            f"grouped_mlp: x {shape(x)}, expert_ids {shape(expert_ids)} and weights {shape(weights)} do not fit "
            f"experts of width {hidden}"
        )
    if down_proj.shape != (experts, hidden, twice // 2):
        raise UserError(f"grouped_mlp: down_proj {shape(down_proj)} must be {[experts, hidden, twice // 2]}")
    y: Tensor = GROUPED_MLP(x.device, autocast_input(x), expert_ids, weights, gate_up_proj, down_proj)
    return y
