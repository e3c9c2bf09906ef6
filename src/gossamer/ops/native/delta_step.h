// A linear-attention layer's next few tokens of several sequences: convolution, gates, delta rule and gated norm in one
// sweep over each head's state (ops/delta_step tells what is kept between steps).
//
// With S the state after the replay, c_j the cumulative gate and U_j = Sᵀ k_j, O_j = Sᵀ q_j from the one pass over it:
//   δ_j = β_j (v_j − e^{c_j} U_j − Σ_{i<j} e^{c_j − c_i} ⟨k_i, k_j⟩ δ_i)
//   o_j = e^{c_j} O_j + Σ_{i≤j} e^{c_j − c_i} ⟨k_i, q_j⟩ δ_i

#pragma once

#include "kernels.h"

namespace gossamer {

struct Step {
    int key_heads, repeats, key_dim, value_dim, taps, most;
    float eps;
    int value_heads() const { return key_heads * repeats; }
    int before() const { return taps - 1; }
    int64_t channels() const { return 2 * int64_t(key_heads) * key_dim + int64_t(value_heads()) * value_dim; }
    int64_t projected() const { return 2 * key_dim + 2 * int64_t(repeats) * value_dim; }  // of a key head
};

struct Memory {
    float *conv, *recurrent, *keys, *updates, *gates;
};

// All tokens of one key head of one sequence. qkvz, ba and y point at the sequence's first token; `slot` numbers memory.
void step_head(const Step &s, const Memory &m, int64_t slot, int kept, int T, int head, const float *qkvz,
               const float *ba, const float *conv_weight, const float *A_log, const float *dt_bias, const float *norm,
               float *y);

// The same for any number of tokens that stay: the state moves on to behind them, and nothing is left to be forgotten.
void step_head_for_good(const Step &s, const Memory &m, int64_t slot, int T, int head, const float *qkvz,
                               const float *ba, const float *conv_weight, const float *A_log, const float *dt_bias,
                               const float *norm, float *y);

}  // namespace gossamer
