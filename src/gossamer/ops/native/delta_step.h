// The next few tokens of several sequences in a linear-attention layer: convolution, gates, delta rule and gated norm
// in one sweep over each head's state. ops/delta_step.py says what is stored between steps.
//
// S is the state after the replay, c_j the cumulative gate, and U_j = Sᵀ k_j and O_j = Sᵀ q_j come from one pass over
// S:
//   δ_j = β_j (v_j − e^{c_j} U_j − Σ_{i<j} e^{c_j − c_i} ⟨k_i, k_j⟩ δ_i)
//   o_j = e^{c_j} O_j + Σ_{i≤j} e^{c_j − c_i} ⟨k_i, q_j⟩ δ_i

#pragma once

#include "kernels.h"

namespace gossamer {

// Sizes of a layer and of a step, which has at most max_tokens of a sequence.
struct DeltaStepSizes {
    int key_heads, repeats, key_dim, value_dim, conv_kernel_size, max_tokens;
    float eps;
    int value_heads() const { return key_heads * repeats; }
    int conv_window() const { return conv_kernel_size - 1; }
    int64_t channels() const { return 2 * int64_t(key_heads) * key_dim + int64_t(value_heads()) * value_dim; }
    int64_t projected() const { return 2 * key_dim + 2 * int64_t(repeats) * value_dim; }  // of one key head
};

// The tensors of DeltaState in ops/delta_step.py.
struct DeltaState {
    float *conv, *recurrent, *keys, *updates, *gates;
};

// Computes all T tokens of one sequence for one key head, after it has replayed the accepted tokens of the last step.
// qkvz, ba and y point to the sequence's first token, and `slot` is its slot in the state.
void step_head(const DeltaStepSizes &s, const DeltaState &m, int64_t slot, int accepted, int T, int head,
               const float *qkvz, const float *ba, const float *conv_weight, const float *A_log, const float *dt_bias,
               const float *norm, float *y);

// Does the same for any number of tokens that are final: the state afterwards includes them, and none can be rejected.
void step_head_final(const DeltaStepSizes &s, const DeltaState &m, int64_t slot, int T, int head, const float *qkvz,
                     const float *ba, const float *conv_weight, const float *A_log, const float *dt_bias,
                     const float *norm, float *y);

}  // namespace gossamer
