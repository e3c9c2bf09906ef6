"""A network that decodes many sequences: its weights as decoding wants them, beside the memory for their states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer import ops
from gossamer.device import use_huge_pages
from gossamer.model.block import Block
from gossamer.model.causal_lm import CausalLM
from gossamer.model.deltanet import GatedDeltaNet
from gossamer.model.experts import SparseMLP
from gossamer.model.mtp import MultiTokenPrediction
from gossamer.model.norm import RMSNorm
from gossamer.model.pool import BatchState, KeyValuePages, StatePool
from gossamer.ops.decode_layers import Int8, Layers, LayerSizes, LayerTensors, Matrix
from gossamer.ops.draft_tokens import Draws, Head
from gossamer.ops.sequences import Sequences


class Decoder:
    """Forward passes of several sequences' next tokens, packed.

    Args:
        model: in evaluation mode; its weights are not to change or move while this lives
        pool: the sequences' memory
        int8: parameters of the model that are to be read as int8 (`round_to_int8`)
    """

    def __init__(self, model: CausalLM, pool: StatePool, int8: Mapping[Tensor, Int8] | None = None) -> None:
        self.model, self.pool, self._int8 = model, pool, int8 or {}
        self._lm_head = self._matrix(model.lm_head.weight)
        trunk = range(len(model.model.layers))
        self._trunk = self._layers(list(model.model.layers), list(trunk), model.model.norm)
        self._head = self._draft_head(model.mtp) if model.mtp is not None else None
        use_huge_pages([*model.parameters(), *(x for matrix in self._int8.values() for x in matrix)])

    @torch.inference_mode()
    def take(self, ids: Tensor, sequences: Sequences, steps: bool) -> Tensor:
        """Take tokens in.

        Args:
            ids: [T]
            sequences: whose tokens these are
            steps: a few tokens each, which the next step may forget again (`Sequences.kept`); otherwise any number of
                tokens that stay

        Returns:
            Hidden states after the final norm, [T, hidden].
        """
        return ops.decode_layers(self.model.model.embed_tokens(ids), self._trunk, sequences, stay=not steps)

    @torch.inference_mode()
    def draft(self, following: Tensor, hidden: Tensor, sequences: Sequences) -> Tensor:
        """The multi-token-prediction head: what `logits` reads the token after `following` from.

        Args:
            following: [T] ids, the token after each place
            hidden: [T, hidden] after the trunk's final norm, or what this gave for the place before
            sequences: whose places these are; the head's keys and values there are written

        Returns:
            [T, hidden], after the head's norm.
        """
        mtp = self.model.mtp
        assert mtp is not None and self._head is not None
        joined = mtp.join(self.model.model.embed_tokens(following), hidden)
        return ops.decode_layers(joined, self._head.layers, sequences)

    @torch.inference_mode()
    def propose(self, following: Tensor, hidden: Tensor, sequences: Sequences, draws: Draws) -> list[list[int]]:
        """Draft tokens of each sequence by the multi-token-prediction head, see `ops.draft_tokens`."""
        assert self._head is not None
        return ops.draft_tokens(following, hidden, self._head, sequences, draws)

    @torch.inference_mode()
    def remember(self, following: Tensor, hidden: Tensor, sequences: Sequences) -> None:
        """Like `draft`, for places where only the head's keys and values are needed."""
        mtp = self.model.mtp
        assert mtp is not None
        state, block = BatchState(self.pool, sequences, steps=False), mtp.layers[0]
        pages = state.layer(len(self.model.model.layers))
        assert isinstance(block, Block) and isinstance(pages, KeyValuePages)
        x = block.input_layernorm(mtp.join(self.model.model.embed_tokens(following), hidden)).unsqueeze(0)
        block.self_attn.remember(x, state.rotary(x.device), pages)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[T, hidden] → [T, V]."""
        return ops.few_rows(hidden, self._lm_head)

    @torch.inference_mode()
    def settle(self, slots: tuple[int, ...], kept: tuple[int, ...]) -> None:
        """Take the first `kept` tokens of the slots' last steps in for good; the next step keeps 0."""
        none, config = (0,) * len(slots), self.model.config
        sequences = Sequences(slots, kept, none, none, ((),) * len(slots), self.pool.page_size)
        for index, memory in self.pool.memory.items():
            mixer = self.model.model.layers[index].linear_attn
            assert isinstance(mixer, GatedDeltaNet)
            qkvz = memory.conv.new_empty(0, 2 * (config.linear_key_dim + config.linear_value_dim))
            ba = memory.conv.new_empty(0, 2 * config.linear_num_value_heads)
            ops.delta_step(qkvz, ba, mixer.step_weights, memory, sequences)

    def _draft_head(self, mtp: MultiTokenPrediction) -> Head:
        model = self.model
        return Head(
            embedding=model.model.embed_tokens.weight.detach(),
            embedding_norm=1.0 + mtp.pre_fc_norm_embedding.weight.detach(),
            hidden_norm=1.0 + mtp.pre_fc_norm_hidden.weight.detach(),
            joint=self._matrix(mtp.fc.weight),
            layers=self._layers(list(mtp.layers), [len(model.model.layers)], mtp.norm),
            logits=self._lm_head,
            plain=self.draft,
        )

    def _layers(self, blocks: list[nn.Module], indices: list[int], norm: RMSNorm) -> Layers:
        config, pool = self.model.config, self.pool

        def plain(x: Tensor, sequences: Sequences, stay: bool) -> Tensor:
            state, x = BatchState(pool, sequences, steps=not stay), x.unsqueeze(0)
            rotary = state.rotary(x.device)
            for block, index in zip(blocks, indices, strict=True):
                x, _ = block(x, rotary, sequences.cu_seqlens, state.layer(index))
            normed: Tensor = norm(x)[0]
            return normed

        sizes = LayerSizes(
            layers=len(blocks),
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_half=config.rotary_dim // 2,
            key_heads=config.linear_num_key_heads,
            value_heads=config.linear_num_value_heads,
            key_dim=config.linear_key_head_dim,
            value_dim=config.linear_value_head_dim,
            taps=config.linear_conv_kernel_dim,
            most=pool.most_step,
            experts=config.num_experts,
            chosen=config.num_experts_per_tok if config.num_experts else 0,
            width=config.moe_intermediate_size,
            renormalise=int(config.norm_topk_prob),
            page_size=pool.page_size,
        )
        tensors = tuple(self._tensors(block, index) for block, index in zip(blocks, indices, strict=True))
        exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
        frequencies, final_norm = 1.0 / config.rope_theta**exponents, 1.0 + norm.weight.detach()
        return Layers(tensors, sizes, frequencies, config.rms_norm_eps, final_norm, plain)

    @torch.no_grad()
    def _tensors(self, block: nn.Module, index: int) -> LayerTensors:
        """A block's weights and its part of the memory."""
        assert isinstance(block, Block)
        pool, matrix = self.pool, self._matrix
        found: dict[str, Matrix | None] = {
            "input_norm": 1.0 + block.input_layernorm.weight,
            "post_norm": 1.0 + block.post_attention_layernorm.weight,
        }
        if block.is_linear:
            mixer = block.linear_attn
            found |= {"qkvz": matrix(mixer.in_proj_qkvz.weight), "ba": matrix(mixer.in_proj_ba.weight)}
            found |= {"linear_out": matrix(mixer.out_proj.weight)}
            conv_weight, A_log, dt_bias, norm, _ = mixer.step_weights
            found |= {"conv_weight": conv_weight, "A_log": A_log, "dt_bias": dt_bias, "gated_norm": norm}
            found |= pool.memory[index]._asdict()
        else:
            attention = block.self_attn
            for name in "qkvo":
                projection = getattr(attention, f"{name}_proj")
                found |= {name: matrix(projection.weight), f"{name}_bias": projection.bias}
            found |= {"q_norm": 1.0 + attention.q_norm.weight, "k_norm": 1.0 + attention.k_norm.weight}
            found |= dict(zip(("k_pages", "v_pages"), pool.pages[index], strict=True))
        network = block.mlp
        if isinstance(network, SparseMLP):
            found |= {"router": matrix(network.gate.weight), "router_bias": network.gate.e_score_correction_bias}
            found |= {"gate_up": matrix(network.experts.gate_up_proj), "down": matrix(network.experts.down_proj)}
            found |= {"shared_gate": matrix(network.shared_expert_gate.weight)}
            network = network.shared_expert
        found |= {"gate": matrix(network.gate_proj.weight), "up": matrix(network.up_proj.weight)}
        found |= {"shared_down": matrix(network.down_proj.weight)}
        return LayerTensors(**found)  # type: ignore[arg-type]

    def _matrix(self, weight: Tensor) -> Matrix:
        return self._int8.get(weight) or weight.detach()
