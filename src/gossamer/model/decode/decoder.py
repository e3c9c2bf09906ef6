"""The decoder: a network's weights as decoding reads them, beside the memory for the states of many sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gossamer import ops
from gossamer.device import use_huge_pages
from gossamer.model.causal_lm import CausalLM
from gossamer.model.decode.drafts import DraftHead, DraftSampling, draft_tokens
from gossamer.model.decode.layers import DecoderLayers, LayerTensors, LowRankFactors, decode_layers
from gossamer.model.decode.pool import KVCache, StatePool
from gossamer.model.experts import Experts, SparseMLP
from gossamer.model.linear import Linear, LowRank
from gossamer.model.mtp import MultiTokenPrediction
from gossamer.model.norm import RMSNorm
from gossamer.model.rotary import rotary_tables
from gossamer.model.trunk import Block
from gossamer.ops.delta_step import DeltaWeights
from gossamer.ops.matrix import Int8Matrix, Matrix
from gossamer.ops.sequences import Sequences


class Decoder:
    """Forward passes of the next tokens of several sequences, packed.

    Args:
        model: in evaluation mode; its weights must not change or move while this lives
        pool: memory for the sequences' states
        int8: parameters of the model that are to be read as int8 (see `quantize_to_int8`)
    """

    def __init__(self, model: CausalLM, pool: StatePool, int8: Mapping[Tensor, Int8Matrix] | None = None) -> None:
        self.model, self.pool, self._int8 = model, pool, int8 or {}
        self._lm_head = self._matrix(model.lm_head.weight)
        self._step_weights: dict[int, DeltaWeights] = {}
        self._trunk = self._layers(model.model.layers, range(len(model.model.layers)), model.model.norm)
        self._head = self._draft_head(model.mtp) if model.mtp is not None else None
        use_huge_pages([*model.parameters(), *(x for matrix in self._int8.values() for x in matrix)])

    @torch.inference_mode()
    def forward(self, tokens: Tensor, sequences: Sequences, speculative: bool) -> Tensor:
        """Compute the final hidden states of tokens, and take the tokens into the sequences' states.

        Args:
            tokens: [T] ids
            sequences: the sequences to which the tokens belong
            speculative: whether the next step may forget some of them again (`Sequences.accepted`); there are then only
                a few tokens of each sequence. Otherwise there may be any number.

        Returns:
            Hidden states after the final norm, [T, hidden].
        """
        return decode_layers(self.model.model.embed(tokens), self._trunk, sequences, speculative)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output head: [T, hidden] → [T, V]."""
        return ops.small_linear(hidden, self._lm_head)

    @torch.inference_mode()
    def propose(
        self, next_token_ids: Tensor, hidden: Tensor, sequences: Sequences, sampling: DraftSampling
    ) -> list[list[int]]:
        """Draft tokens of each sequence by the multi-token-prediction head; see `draft_tokens`."""
        assert self._head is not None
        return draft_tokens(next_token_ids, hidden, self._head, sequences, sampling)

    @torch.inference_mode()
    def fill_draft_cache(self, next_token_ids: Tensor, hidden: Tensor, sequences: Sequences) -> None:
        """Add the keys and values of the multi-token-prediction head at these positions, and compute nothing else.

        Args:
            next_token_ids: [T] ids, the token after each position
            hidden: [T, hidden] after the trunk's final norm
            sequences: the sequences to which the positions belong
        """
        assert self._head is not None
        layers, config = self._head.layers, self.model.config
        [block], [index] = layers.blocks, layers.indices
        kv_cache = cast(KVCache, self.pool.state(index, sequences, speculative=False))
        rotary = rotary_tables(sequences.positions.to(hidden.device).unsqueeze(0), config.rotary_dim, config.rope_theta)
        x = block.input_layernorm(self._head.join(next_token_ids, hidden)).unsqueeze(0)
        block.self_attn.fill(x, rotary, kv_cache)

    @torch.inference_mode()
    def replay(self, slots: tuple[int, ...], accepted: tuple[int, ...]) -> None:
        """Take the accepted tokens of the slots' last steps into their states; the next step then accepts 0.

        Args:
            slots: where the states lie
            accepted: how many of the first tokens of each slot's last step are accepted
        """
        none, config = (0,) * len(slots), self.model.config
        sequences = Sequences(slots, accepted, none, none, ((),) * len(slots), self.pool.page_size)
        for index, state in self.pool.delta_states.items():
            qkvz = state.conv.new_empty(0, 2 * (config.linear_key_dim + config.linear_value_dim))
            ba = state.conv.new_empty(0, 2 * config.linear_num_value_heads)
            ops.delta_step(qkvz, ba, self._step_weights[index], state, sequences)

    def _draft_head(self, mtp: MultiTokenPrediction) -> DraftHead:
        trunk = self.model.model
        return DraftHead(
            mtp=mtp,
            layers=self._layers(mtp.layers, [len(trunk.layers)], mtp.norm),
            embed_tokens=trunk.embed_tokens.weight.detach(),
            pre_fc_norm_embedding=mtp.pre_fc_norm_embedding.factor(),
            pre_fc_norm_hidden=mtp.pre_fc_norm_hidden.factor(),
            fc=self._matrix(mtp.fc.weight),
            lm_head=self._lm_head,
        )

    def _layers(self, modules: nn.ModuleList, indices: Sequence[int], norm: RMSNorm) -> DecoderLayers:
        blocks = [cast(Block, module) for module in modules]
        tensors = tuple(self._tensors(block, index) for block, index in zip(blocks, indices, strict=True))
        theta = self.model.config.rope_theta
        low_rank = tuple(_low_rank(block) for block in blocks)
        return DecoderLayers(blocks, norm, indices, self.pool, tensors, norm.factor(), theta, low_rank)

    def _tensors(self, block: Block, index: int) -> LayerTensors:
        """Collect a block's weights and its part of the memory."""
        matrix = self._matrix
        found: dict[str, Matrix | None] = {
            "input_layernorm": block.input_layernorm.factor(),
            "post_attention_layernorm": block.post_attention_layernorm.factor(),
        }
        if block.spec.is_linear:
            linear = block.linear_attn
            for name in ("in_proj_qkvz", "in_proj_ba", "out_proj"):
                found[name] = matrix(getattr(linear, name).weight)
            step_weights = self._step_weights[index] = linear.step_weights(self.pool.dtype)
            conv1d, A_log, dt_bias, norm, _ = step_weights
            found |= {"conv1d": conv1d, "A_log": A_log, "dt_bias": dt_bias, "norm": norm}
        else:
            attention = block.self_attn
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                projection = getattr(attention, name)
                found |= {name: matrix(projection.weight), f"{name}_bias": self._widened(projection.bias)}
            found |= {"q_norm": attention.q_norm.factor(), "k_norm": attention.k_norm.factor()}
        network = block.mlp
        if isinstance(network, SparseMLP):
            found |= {
                "gate": matrix(network.gate.weight),
                "e_score_correction_bias": self._widened(network.gate.e_score_correction_bias),
                "experts_gate_up_proj": matrix(network.experts.gate_up_proj),
                "experts_down_proj": matrix(network.experts.down_proj),
                "shared_expert_gate": matrix(network.shared_expert_gate.weight),
            }
            network = network.shared_expert
        for name in ("gate_proj", "up_proj", "down_proj"):
            found[name] = matrix(getattr(network, name).weight)
        return LayerTensors(**found, **self.pool.tensors(index))  # type: ignore[arg-type]

    def _matrix(self, weight: Tensor) -> Matrix:
        """Return a weight as it is to be read: of int8 if it was rounded."""
        return self._int8.get(weight) or weight.detach()

    def _widened(self, weight: Tensor | None) -> Tensor | None:
        """Return a weight that is no matrix in a type that is at least as wide as that of hidden states."""
        return None if weight is None else weight.detach().to(torch.promote_types(weight.dtype, self.pool.dtype))


def _low_rank(block: Block) -> dict[str, LowRankFactors]:
    """Collect what an adapter adds to a block's matrices, by the names that `LayerTensors` has."""
    found: dict[str, LowRankFactors] = {}
    for name, module in block.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, Linear):
            found |= _named(leaf, module.low_rank)
        elif isinstance(module, Experts):
            found |= _named("experts_gate_up_proj", module.gate_up_low_rank)
            found |= _named("experts_down_proj", module.down_low_rank)
    return found


@torch.no_grad()
def _named(name: str, low_rank: LowRank | None) -> dict[str, LowRankFactors]:
    if low_rank is None:
        return {}
    A, B = low_rank.factors()
    return {name: (A.detach().contiguous(), B.contiguous())}
