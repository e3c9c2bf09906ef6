"""A hypothesis strategy for configurations of small networks of every kind."""

from __future__ import annotations

from hypothesis import strategies as st

from gossamer.model.config import FULL, LINEAR, ModelConfig


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    layers = draw(st.integers(1, 6))
    experts = draw(st.sampled_from([0, 1, 4, 9]))
    kv_heads, key_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    types = st.lists(st.sampled_from([LINEAR, FULL]), min_size=layers, max_size=layers)
    return ModelConfig(
        vocab_size=draw(st.integers(1, 50)),
        hidden_size=draw(st.integers(1, 20)),
        intermediate_size=draw(st.integers(1, 20)),
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * draw(st.integers(1, 3)),
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([4, 8, 12])),
        tie_word_embeddings=draw(st.booleans()),
        rope_theta=draw(st.sampled_from([1e3, 1e7])),
        partial_rotary_factor=draw(st.sampled_from([1.0, 0.5])),
        attention_bias=draw(st.booleans()),
        full_attention_interval=draw(st.integers(1, 5)),
        layer_types=draw(st.none() | types),
        linear_conv_kernel_dim=draw(st.integers(1, 5)),
        linear_key_head_dim=draw(st.integers(1, 9)),
        linear_value_head_dim=draw(st.integers(1, 9)),
        linear_num_key_heads=key_heads,
        linear_num_value_heads=key_heads * draw(st.integers(1, 4)),
        num_experts=experts,
        num_experts_per_tok=draw(st.integers(1, max(1, experts))),
        moe_intermediate_size=draw(st.integers(1, 9)),
        shared_expert_intermediate_size=draw(st.integers(1, 9)),
        norm_topk_prob=draw(st.booleans()),
        decoder_sparse_step=draw(st.integers(1, 3)),
        mlp_only_layers=draw(st.lists(st.integers(0, layers - 1), max_size=3, unique=True)),
        num_nextn_predict_layers=draw(st.integers(0, 1)),
    )
