"""Memory for many sequences: keys and values in pages, states of linear attention in slots.

A page holds the keys and values of `page_size` tokens in every full-attention layer, that of the
multi-token-prediction head included; a sequence lists its pages in order. A slot holds, for every linear-attention
layer, one sequence's recurrent state, the last inputs of its convolution, and what is needed to forget its newest
tokens (ops/delta_step).

`StatePool` owns the memory; `RecurrentState` and `KVCache` are the parts of it that a layer reads and writes for the
sequences of one forward pass. Which sequence has which page and slot is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer import ops
from gossamer.model.config import ModelConfig
from gossamer.model.layer_spec import layer_specs
from gossamer.ops.delta_step import DeltaState, DeltaWeights
from gossamer.ops.sequences import Sequences


@dataclass(frozen=True)
class StateSnapshot:
    """A sequence's states of linear attention after some number of tokens, copied out of its slot.

    Attributes:
        conv: for each linear-attention layer [K − 1, channels]
        recurrent: for each linear-attention layer [Hv, dk, dv]
    """

    conv: tuple[Tensor, ...]
    recurrent: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Memory that the copies take, in bytes."""
        return sum(x.nbytes for x in (*self.conv, *self.recurrent))


class StatePool:
    """Memory for the states of up to `num_slots` sequences.

    Args:
        config: the network's configuration
        num_slots: the largest number of sequences at the same time
        num_pages: the number of pages of keys and values, for all sequences together
        page_size: tokens in a page
        max_step_tokens: the largest number of tokens that a step may have of one sequence, drafts included
        device: where the network is
        dtype: that of hidden states; recurrent states are in float32 at least

    Attributes:
        dtype: that of hidden states, keys and values
        delta_states: the states of linear-attention layers, by the layer's index
        kv_pages: keys and values, [num_pages, page_size, Hkv, D] each, of full-attention layers by the layer's index;
            that of the multi-token-prediction head comes behind the trunk's
    """

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        num_pages: int,
        page_size: int,
        max_step_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.page_size, self.max_step_tokens, self.dtype = config, page_size, max_step_tokens, dtype
        self._conv_window = config.linear_conv_kernel_dim - 1  # inputs that the convolution reads before a token's own
        wide = torch.promote_types(dtype, torch.float32)

        def zeros(*shape: int, dtype: torch.dtype = wide) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.delta_states: dict[int, DeltaState] = {}
        self.kv_pages: dict[int, tuple[Tensor, Tensor]] = {}
        for index, spec in enumerate(layer_specs(config)):
            if spec.is_linear:
                heads = spec.linear_num_value_heads
                self.delta_states[index] = DeltaState(
                    conv=zeros(num_slots, self._conv_window + max_step_tokens, spec.linear_conv_dim, dtype=dtype),
                    recurrent=zeros(num_slots, heads, spec.linear_key_head_dim, spec.linear_value_head_dim),
                    keys=zeros(num_slots, max_step_tokens, spec.linear_num_key_heads, spec.linear_key_head_dim),
                    updates=zeros(num_slots, max_step_tokens, heads, spec.linear_value_head_dim),
                    gates=zeros(num_slots, max_step_tokens, heads),
                )
            else:
                shape = num_pages, page_size, spec.num_key_value_heads, spec.head_dim
                self.kv_pages[index] = zeros(*shape, dtype=dtype), zeros(*shape, dtype=dtype)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Return a layer's part of the memory by the names of its tensors."""
        if index in self.delta_states:
            return self.delta_states[index]._asdict()
        return dict(zip(("k_pages", "v_pages"), self.kv_pages[index], strict=True))

    def state(self, index: int, sequences: Sequences, speculative: bool) -> RecurrentState | KVCache:
        """Return a layer's part of the memory, for the sequences of a forward pass."""
        if index in self.delta_states:
            return RecurrentState(self.delta_states[index], sequences, speculative)
        return KVCache(*self.kv_pages[index], sequences)

    def clear(self, slot: int) -> None:
        """Make a slot the state before the first token."""
        for state in self.delta_states.values():
            state.conv[slot].zero_()
            state.recurrent[slot].zero_()

    def snapshot(self, slot: int) -> StateSnapshot:
        """Copy a slot's states; the tokens of its last step must have been replayed (`Decoder.replay`)."""
        return StateSnapshot(
            tuple(state.conv[slot, : self._conv_window].clone() for state in self.delta_states.values()),
            tuple(state.recurrent[slot].clone() for state in self.delta_states.values()),
        )

    def restore(self, slot: int, snapshot: StateSnapshot) -> None:
        """Put a snapshot into a slot; the next step accepts 0 tokens of a last one."""
        for state, conv, recurrent in zip(self.delta_states.values(), snapshot.conv, snapshot.recurrent, strict=True):
            state.conv[slot, : self._conv_window] = conv
            state.recurrent[slot] = recurrent

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page's keys and values, in every layer."""
        for k, v in self.kv_pages.values():
            k[target] = k[source]
            v[target] = v[source]


class RecurrentState:
    """A linear-attention layer's state, for the sequences of a forward pass.

    Args:
        state: the layer's state in all slots
        sequences: the sequences of the tokens, and the slots of their states
        speculative: whether the next step may forget the tokens again; there are then only a few of each sequence

    Attributes:
        conv: [N, K − 1, channels], the last inputs of the convolution
        recurrent: [N, Hv, dk, dv]
    """

    def __init__(self, state: DeltaState, sequences: Sequences, speculative: bool) -> None:
        self.state, self.sequences, self.speculative = state, sequences, speculative
        self._slots = sequences.step_metadata[0].to(state.conv.device)
        self._conv_window = state.conv.shape[1] - state.keys.shape[1]

    @property
    def conv(self) -> Tensor:
        """The newest inputs of the convolution, in the layout of the pool."""
        return self.state.conv[self._slots, : self._conv_window]

    @conv.setter
    def conv(self, value: Tensor) -> None:
        self.state.conv[self._slots, : self._conv_window] = value

    @property
    def recurrent(self) -> Tensor:
        """The recurrent states of the sequences."""
        return self.state.recurrent[self._slots]

    @recurrent.setter
    def recurrent(self, value: Tensor) -> None:
        self.state.recurrent[self._slots] = value

    def step(self, qkvz: Tensor, ba: Tensor, weights: DeltaWeights) -> Tensor:
        """Go on by a few tokens that may be forgotten again; see `ops.delta_step`."""
        return ops.delta_step(qkvz, ba, weights, self.state, self.sequences)


class KVCache:
    """A full-attention layer's keys and values in pages, for the sequences of a forward pass.

    Args:
        k_pages: [pages, page_size, Hkv, D]
        v_pages: [pages, page_size, Hkv, D]
        sequences: the sequences of the tokens, and the pages of their keys and values
    """

    def __init__(self, k_pages: Tensor, v_pages: Tensor, sequences: Sequences) -> None:
        self.k_pages, self.v_pages, self.sequences = k_pages, v_pages, sequences

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add the new tokens' keys and values, then let each query attend to its sequence up to its own position.

        Args:
            q: [1, T, H, D], of all sequences, packed
            k: [1, T, Hkv, D]
            v: [1, T, Hkv, D]

        Returns:
            [1, T, H, D]
        """
        self.write(k, v)
        return ops.paged_attention(q[0], self.k_pages, self.v_pages, self.sequences).unsqueeze(0)

    def write(self, k: Tensor, v: Tensor) -> None:
        """Add the new tokens' keys and values, [1, T, Hkv, D] each."""
        indices = self.sequences.new_kv_indices.to(k.device)
        self.k_pages.flatten(0, 1).index_copy_(0, indices, k[0].to(self.k_pages.dtype))
        self.v_pages.flatten(0, 1).index_copy_(0, indices, v[0].to(self.v_pages.dtype))
