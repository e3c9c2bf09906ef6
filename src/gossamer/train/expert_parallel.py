"""Routed experts spread over processes: tokens are sent to the ranks of their experts, and the outputs come back.

In a group of P processes each owns E / P consecutive experts of a layer. The tokens' assignments are sorted by expert,
so what goes to one process is one block of rows, and one all-to-all carries all of them; a second one brings the
outputs home. Only the numbers of rows are exchanged first. The experts' weights get gradients from all tokens of the
group: nothing is left to be summed within it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from gossamer import ops
from gossamer.model.experts import Experts
from gossamer.ops.checks import once_differentiable
from gossamer.ops.grouped_mlp.sorted import sum_by_token
from gossamer.train.world import to_local


class SpreadExperts(Experts):
    """`Experts` whose weights are DTensors, sharded along the experts over a one-dimensional mesh; the names stay."""

    def __init__(self, whole: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)  # not that of Experts, which would allocate all weights again
        self.group = mesh.get_group()
        for name, weight in whole.named_parameters():
            # Every process has the same initial weights, so none needs to send any.
            shards = distribute_tensor(weight.detach(), mesh, [Shard(0)], src_data_rank=None)
            self.register_parameter(name, nn.Parameter(shards, requires_grad=weight.requires_grad))

    def forward(self, x: Tensor, expert_indices: Tensor, weights: Tensor) -> Tensor:
        """Return the experts' outputs [N, hidden] for x [N, hidden]; N may differ between processes.

        Args:
            x: [N, hidden]
            expert_indices: [N, k] among all experts
            weights: [N, k]
        """
        processes, top_k = self.group.size(), expert_indices.shape[1]
        order = expert_indices.flatten().argsort(stable=True)  # row of the sorted buffer → assignment n·k + j
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)

        # Rows for each expert of each process; what comes back is, from each process, the rows for ours.
        counts = torch.bincount(expert_indices.flatten(), minlength=len(self.gate_up_proj)).view(processes, -1)
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        send, receive = torch.stack([counts.sum(1), arriving.sum(1)]).tolist()  # the one read-back from the device

        rows = _AllToAll.apply(_RowsByExpert.apply(x, order, rank, top_k), send, receive, self.group)
        row_weights = _AllToAll.apply(weights.flatten()[order], send, receive, self.group)
        here = torch.arange(arriving.shape[1], device=x.device).repeat(processes)
        ids = here.repeat_interleave(arriving.flatten(), output_size=sum(receive))
        out = ops.grouped_mlp(
            rows, ids.unsqueeze(1), row_weights.unsqueeze(1), to_local(self.gate_up_proj), to_local(self.down_proj)
        )
        y: Tensor = _SumByToken.apply(_AllToAll.apply(out, receive, send, self.group), order, rank, top_k)
        return y


class _AllToAll(torch.autograd.Function):
    """An all-to-all of rows: [Σ send, …], in blocks of `send` rows, becomes [Σ receive, …]; backward it is reversed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.back = receive, send, group
        return _all_to_all(rows, send, receive, group)

    @staticmethod
    @once_differentiable("grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(grads[0], *ctx.back), None, None, None


class _RowsByExpert(torch.autograd.Function):
    """Copies each token's row once for each of its experts, sorted: [N, hidden] → [N·k, hidden]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, rank: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(rank)
        ctx.top_k = top_k
        return _rows_by_expert(x, order, top_k)

    @staticmethod
    @once_differentiable("grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return sum_by_token(grads[0], ctx.saved_tensors[0], ctx.top_k), None, None, None


class _SumByToken(torch.autograd.Function):
    """Adds up each token's rows: [N·k, hidden], sorted → [N, hidden]. It is the transpose of `_RowsByExpert`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, rank: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.top_k = top_k
        return sum_by_token(rows, rank, top_k)

    @staticmethod
    @once_differentiable("grouped_mlp")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _rows_by_expert(grads[0], ctx.saved_tensors[0], ctx.top_k), None, None, None


def _rows_by_expert(x: Tensor, order: Tensor, top_k: int) -> Tensor:
    return x.index_select(0, order // top_k)


def _all_to_all(rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    arrived = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows.contiguous(), receive, send, group=group)
    return arrived
