"""Memory for many sequences: keys and values in pages, states of linear attention in slots.

A page holds the keys and values of `page_size` tokens in every full-attention layer, the multi-token-prediction head's
included; a sequence lists its pages in order. A slot holds, for every linear-attention layer, one sequence's recurrent
state, the last inputs of its convolution, and what is needed to forget its newest tokens (ops/delta_step).

`StatePool` owns the memory, `BatchState` is the part of it that a forward pass of several sequences reads and writes;
who has which page and slot is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer import ops
from gossamer.model.config import FULL, LINEAR, ModelConfig
from gossamer.model.rotary import rotary_tables
from gossamer.ops.delta_step import DeltaMemory, DeltaWeights
from gossamer.ops.sequences import Sequences


@dataclass(frozen=True)
class Snapshot:
    """A sequence's states of linear attention after some number of tokens, copied out of its slot.

    Attributes:
        conv: for each linear layer [K − 1, channels]
        recurrent: for each linear layer [Hv, dk, dv]
    """

    conv: tuple[Tensor, ...]
    recurrent: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self.conv, *self.recurrent))


class StatePool:
    """Memory for the states of up to `slots` sequences.

    Args:
        config: of the network
        slots: sequences at the same time
        pages: of keys and values, of all sequences together
        page_size: tokens a page
        most_step: tokens of a sequence in one step at most, drafts included
        device: where the network is
        dtype: the network's; recurrent states are in float32 at least
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        pages: int,
        page_size: int,
        most_step: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.page_size, self.most_step = config, page_size, most_step
        wide = torch.promote_types(dtype, torch.float32)
        Hk, Hv = config.linear_num_key_heads, config.linear_num_value_heads
        dk, dv = config.linear_key_head_dim, config.linear_value_head_dim
        window = config.linear_conv_kernel_dim - 1 + most_step

        def zeros(*shape: int, dtype: torch.dtype = wide) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        kv = pages, page_size, config.num_key_value_heads, config.head_dim
        # The head's layer of full attention comes last.
        self.pages = {
            index: (zeros(*kv, dtype=dtype), zeros(*kv, dtype=dtype))
            for index, mixer in enumerate([*config.mixers, *[FULL] * config.num_nextn_predict_layers])
            if mixer == FULL
        }
        self.memory = {
            index: DeltaMemory(
                conv=zeros(slots, window, config.linear_conv_dim, dtype=dtype),
                recurrent=zeros(slots, Hv, dk, dv),
                keys=zeros(slots, most_step, Hk, dk),
                updates=zeros(slots, most_step, Hv, dv),
                gates=zeros(slots, most_step, Hv),
            )
            for index, mixer in enumerate(config.mixers)
            if mixer == LINEAR
        }

    def clear(self, slot: int) -> None:
        """Make a slot the state before the first token."""
        for memory in self.memory.values():
            memory.conv[slot].zero_()
            memory.recurrent[slot].zero_()

    def snapshot(self, slot: int) -> Snapshot:
        """Copy a slot's states; the tokens of its last step must have been replayed (`Decoder.settle`)."""
        before = self.config.linear_conv_kernel_dim - 1
        return Snapshot(
            tuple(memory.conv[slot, :before].clone() for memory in self.memory.values()),
            tuple(memory.recurrent[slot].clone() for memory in self.memory.values()),
        )

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Put a snapshot into a slot; the next step keeps 0 of the last one."""
        before = self.config.linear_conv_kernel_dim - 1
        for memory, conv, recurrent in zip(self.memory.values(), snapshot.conv, snapshot.recurrent, strict=True):
            memory.conv[slot, :before] = conv
            memory.recurrent[slot] = recurrent

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page's keys and values, in every layer."""
        for k, v in self.pages.values():
            k[target] = k[source]
            v[target] = v[source]

    @property
    def snapshot_bytes(self) -> int:
        """Of one snapshot."""
        before = self.config.linear_conv_kernel_dim - 1
        return sum(memory.conv[0, :before].nbytes + memory.recurrent[0].nbytes for memory in self.memory.values())


class BatchState:
    """What a forward pass of several sequences' next tokens reads and writes, a layer each in `layers`.

    Args:
        pool: the memory
        sequences: whose tokens come, and where their pasts lie
        steps: a few tokens each, which a later step may forget again; otherwise any number of tokens that stay
    """

    def __init__(self, pool: StatePool, sequences: Sequences, steps: bool) -> None:
        self.pool, self.sequences = pool, sequences
        self.layers: list[DeltaSlots | KeyValuePages] = [
            DeltaSlots(pool.memory[index], sequences, steps) if index in pool.memory else self._pages(index)
            for index in range(len(pool.config.mixers))
        ]

    def _pages(self, index: int) -> KeyValuePages:
        return KeyValuePages(*self.pool.pages[index], self.sequences)

    def layer(self, index: int) -> DeltaSlots | KeyValuePages:
        """A layer's part; the multi-token-prediction head's comes behind the trunk's."""
        return self._pages(index) if index == len(self.layers) else self.layers[index]

    def rotary(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tables for the tokens' places, [1, T, 1, rotary_dim / 2]."""
        config = self.pool.config
        positions = self.sequences.positions.to(device).unsqueeze(0)
        return rotary_tables(positions, config.rotary_dim, config.rope_theta)


class DeltaSlots:
    """A linear-attention layer's state for the sequences of a batch: what `LinearState` is for one text.

    Attributes:
        conv: [N, K − 1, channels] last inputs of the convolution
        recurrent: [N, Hv, dk, dv]
    """

    def __init__(self, memory: DeltaMemory, sequences: Sequences, steps: bool) -> None:
        self.memory, self.sequences, self.steps = memory, sequences, steps
        self._slots = sequences.steps[0].to(memory.conv.device)
        self._before = memory.conv.shape[1] - memory.keys.shape[1]

    @property
    def conv(self) -> Tensor:
        return self.memory.conv[self._slots, : self._before]

    @conv.setter
    def conv(self, value: Tensor) -> None:
        self.memory.conv[self._slots, : self._before] = value

    @property
    def recurrent(self) -> Tensor:
        return self.memory.recurrent[self._slots]

    @recurrent.setter
    def recurrent(self, value: Tensor) -> None:
        self.memory.recurrent[self._slots] = value

    def step(self, qkvz: Tensor, ba: Tensor, weights: DeltaWeights) -> Tensor:
        """See `ops.delta_step`."""
        return ops.delta_step(qkvz, ba, weights, self.memory, self.sequences)


class KeyValuePages:
    """A full-attention layer's keys and values of the sequences of a batch."""

    def __init__(self, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> None:
        self.k_pages, self.v_pages, self.sequences = k_pages, v_pages, sequences

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add the new tokens' k and v, [1, T, Hkv, D]; what q [1, T, H, D] sees of its sequence, [1, T, H, D]."""
        self.write(k, v)
        return ops.paged_attention(q[0], self.k_pages, self.v_pages, self.sequences).unsqueeze(0)

    def write(self, k: Tensor, v: Tensor) -> None:
        """Add the new tokens' k and v, [1, T, Hkv, D]."""
        places = self.sequences.places.to(k.device)
        self.k_pages.flatten(0, 1).index_copy_(0, places, k[0].to(self.k_pages.dtype))
        self.v_pages.flatten(0, 1).index_copy_(0, places, v[0].to(self.v_pages.dtype))
