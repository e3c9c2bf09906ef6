// A layer as model/decode/layers.py hands it over: its sizes and the addresses of its tensors, 8 bytes each.
//
// Sizes have the names of `LayerSpec` and config.json, tensors those of the checkpoint. The list stands here once; it
// declares the struct and the table of names that `gossamer_layer_fields` gives, which Python compares with its own
// before it hands over a layer.

#pragma once

#include "small_linear.h"

namespace gossamer {

// A part that the layer does not have has sizes of 0 and null addresses. Norms come as what is multiplied with, 1 + w
// but for linear attention's. `gate_proj`, `up_proj` and `down_proj` are the dense network or the shared expert.
#define GOSSAMER_LAYER(SIZE, WEIGHT, MATRIX, STATE)                                                                     \
    SIZE(hidden_size)                                                                                                   \
    SIZE(num_attention_heads) SIZE(num_key_value_heads) SIZE(head_dim) SIZE(rotary_dim) SIZE(attention_bias)            \
    SIZE(linear_conv_kernel_dim) SIZE(linear_num_key_heads) SIZE(linear_num_value_heads)                                \
    SIZE(linear_key_head_dim) SIZE(linear_value_head_dim)                                                               \
    SIZE(num_experts) SIZE(num_experts_per_tok) SIZE(norm_topk_prob)                                                    \
    SIZE(moe_intermediate_size) SIZE(shared_expert_intermediate_size) SIZE(intermediate_size)                           \
    SIZE(page_size) SIZE(max_step_tokens)                                                                               \
    WEIGHT(input_layernorm) WEIGHT(post_attention_layernorm)                                                            \
    MATRIX(in_proj_qkvz) MATRIX(in_proj_ba) MATRIX(out_proj)                                                            \
    WEIGHT(conv1d) WEIGHT(A_log) WEIGHT(dt_bias) WEIGHT(norm)                                                           \
    STATE(conv) STATE(recurrent) STATE(keys) STATE(updates) STATE(gates)                                                \
    MATRIX(q_proj) MATRIX(k_proj) MATRIX(v_proj) MATRIX(o_proj)                                                         \
    WEIGHT(q_proj_bias) WEIGHT(k_proj_bias) WEIGHT(v_proj_bias) WEIGHT(o_proj_bias)                                     \
    WEIGHT(q_norm) WEIGHT(k_norm)                                                                                       \
    STATE(k_pages) STATE(v_pages)                                                                                       \
    MATRIX(gate) WEIGHT(e_score_correction_bias)                                                                        \
    MATRIX(experts_gate_up_proj) MATRIX(experts_down_proj) MATRIX(shared_expert_gate)                                   \
    MATRIX(gate_proj) MATRIX(up_proj) MATRIX(down_proj)

struct Layer {
#define GOSSAMER_SIZE(name) int64_t name;
#define GOSSAMER_WEIGHT(name) const float *name;
#define GOSSAMER_MATRIX(name) Matrix name;
#define GOSSAMER_STATE(name) float *name;
    GOSSAMER_LAYER(GOSSAMER_SIZE, GOSSAMER_WEIGHT, GOSSAMER_MATRIX, GOSSAMER_STATE)
#undef GOSSAMER_SIZE
#undef GOSSAMER_WEIGHT
#undef GOSSAMER_MATRIX
#undef GOSSAMER_STATE

    int64_t query_dim() const { return num_attention_heads * head_dim; }
    int64_t key_value_dim() const { return num_key_value_heads * head_dim; }
    int64_t linear_value_dim() const { return linear_num_value_heads * linear_value_head_dim; }
    // [q | k | v | z] of all heads.
    int64_t qkvz_dim() const { return 2 * (linear_num_key_heads * linear_key_head_dim + linear_value_dim()); }
    // The width of what every token passes: the shared expert or the dense network.
    int64_t shared_dim() const { return num_experts ? shared_expert_intermediate_size : intermediate_size; }
};

}  // namespace gossamer
