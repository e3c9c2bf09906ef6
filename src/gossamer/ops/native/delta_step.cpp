// Implementation of delta_step.h, and the step of a linear-attention layer as an operation of its own.

#include "delta_step.h"

#include <algorithm>
#include <cmath>

namespace gossamer {

namespace {

// For `n` channels from `first` on, moves the old inputs to the front of the window, stores the new ones after them,
// and convolves. x is the head's part of the first token's projection, with tokens x_stride apart; convolved [T, n].
void convolve(const DeltaStepSizes &s, float *conv, int64_t first, int n, int accepted, int T, const float *x,
              int64_t x_stride, const float *weight, float *convolved) {
    const int64_t row = s.channels();
    conv += first;
    for (int i = 0; accepted && i < s.conv_window(); i++)
        std::memcpy(conv + i * row, conv + (accepted + i) * row, sizeof(float) * n);
    for (int t = 0; t < T; t++) std::memcpy(conv + (s.conv_window() + t) * row, x + t * x_stride, sizeof(float) * n);
    weight += first * s.conv_kernel_size;
    for (int t = 0; t < T; t++) {
        float *out = convolved + t * n;
        for (int i = 0; i < n; i++) out[i] = weight[i * s.conv_kernel_size] * conv[t * row + i];
        for (int k = 1; k < s.conv_kernel_size; k++)
            for (int i = 0; i < n; i++) out[i] += weight[i * s.conv_kernel_size + k] * conv[(t + k) * row + i];
#pragma omp simd
        for (int i = 0; i < n; i++) out[i] *= sigmoid(out[i]);
    }
}

// Scales each row to length `scale`.
void normalize_rows(float *x, int n, int width, float scale) {
    for (int i = 0; i < n; i++)
        scale_into(x + i * width, scale / std::sqrt(dot(x + i * width, x + i * width, width) + 1e-6f), x + i * width,
                   width);
}

// The operands of the pass over a value head's state. It replays `accepted` old tokens, with keys [accepted, dk] that
// are scaled by their decay until now and updates [accepted, dv]. U and O of the T new tokens are [T, dv] each.
struct Sweep {
    float decay;
    int dk, dv, accepted, T;
    const float *old_keys, *Q, *K;
    float *old_updates, *U, *O;
};

// Processes VECTORS vectors of columns from `column` on. Their results stay in registers while all rows are traversed
// for a new token; the first traversal also replays.
template <int VECTORS>
void sweep_columns(const Sweep &s, float *S, int column) {
    const auto at = [column](float *p, int v) -> Vector & {
        return *reinterpret_cast<Vector *>(p + column + v * LANES);
    };
    for (int j = 0; j < std::max(s.T, 1); j++) {
        Vector u[VECTORS] = {}, o[VECTORS] = {};
        for (int i = 0; i < s.dk; i++) {
            float *row = S + int64_t(i) * s.dv;
            const float k = j < s.T ? s.K[j * s.dk + i] : 0.0f, q = j < s.T ? s.Q[j * s.dk + i] : 0.0f;
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                Vector state = at(row, v);
                if (j == 0 && s.accepted) {
                    state *= s.decay;
                    for (int p = 0; p < s.accepted; p++)
                        state += s.old_keys[p * s.dk + i] * at(s.old_updates + p * s.dv, v);
                    at(row, v) = state;
                }
                u[v] += k * state;
                o[v] += q * state;
            }
        }
        for (int v = 0; v < VECTORS && j < s.T; v++) at(s.U + j * s.dv, v) = u[v], at(s.O + j * s.dv, v) = o[v];
    }
}

// Processes one column in the same way.
void sweep_column(const Sweep &s, float *S, int column) {
    for (int i = 0; s.accepted && i < s.dk; i++) {
        float &state = S[int64_t(i) * s.dv + column];
        state *= s.decay;
        for (int p = 0; p < s.accepted; p++) state += s.old_keys[p * s.dk + i] * s.old_updates[p * s.dv + column];
    }
    for (int j = 0; j < s.T; j++) {
        float u = 0.0f, o = 0.0f;
        for (int i = 0; i < s.dk; i++) {
            u += s.K[j * s.dk + i] * S[int64_t(i) * s.dv + column];
            o += s.Q[j * s.dk + i] * S[int64_t(i) * s.dv + column];
        }
        s.U[j * s.dv + column] = u, s.O[j * s.dv + column] = o;
    }
}

// Processes all columns of a state.
void sweep(const Sweep &s, float *S) {
    int column = 0;
    for (; column + 4 * LANES <= s.dv; column += 4 * LANES) sweep_columns<4>(s, S, column);
    for (; column + LANES <= s.dv; column += LANES) sweep_columns<1>(s, S, column);
    for (; column < s.dv; column++) sweep_column(s, S, column);
}

// ln(1 + e^x) as in PyTorch: x itself where e^x is so large that the 1 does not matter.
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

}  // namespace

void step_head(const DeltaStepSizes &s, const DeltaState &m, int64_t slot, int accepted, int T, int head,
               const float *qkvz, const float *ba, const float *conv_weight, const float *A_log, const float *dt_bias,
               const float *norm, float *y) {
    const int dk = s.key_dim, dv = s.value_dim, R = s.repeats, Hv = s.value_heads(), W = s.max_tokens;
    const int64_t x_stride = s.key_heads * s.projected(), ba_stride = 2 * Hv;
    Scratch scratch(size_t(T) * (2 * dk + R * dv + 2 * dv + 2 * T + 3) + size_t(accepted) * (2 * dk + dv) + 16);
    float *Q = scratch.allocate(T * dk), *K = scratch.allocate(T * dk), *V = scratch.allocate(T * R * dv);
    float *U = scratch.allocate(T * dv), *O = scratch.allocate(T * dv), *KK = scratch.allocate(T * T),
          *QK = scratch.allocate(T * T);
    float *old_keys = scratch.allocate(accepted * dk), *decayed = scratch.allocate(accepted * dk);
    float *old_updates = scratch.allocate(accepted * dv), *c = scratch.allocate(T);

    float *conv = m.conv + slot * (s.conv_window() + W) * s.channels();
    const float *x = qkvz + head * s.projected();
    convolve(s, conv, head * dk, dk, accepted, T, x, x_stride, conv_weight, Q);
    convolve(s, conv, (s.key_heads + head) * dk, dk, accepted, T, x + dk, x_stride, conv_weight, K);
    convolve(s, conv, 2 * int64_t(s.key_heads) * dk + head * R * dv, R * dv, accepted, T, x + 2 * dk, x_stride,
             conv_weight, V);
    normalize_rows(Q, T, dk, 1.0f / std::sqrt(float(dk)));
    normalize_rows(K, T, dk, 1.0f);
    for (int j = 0; j < T; j++)
        for (int i = 0; i <= j; i++) {
            KK[j * T + i] = dot(K + i * dk, K + j * dk, dk);
            QK[j * T + i] = dot(K + i * dk, Q + j * dk, dk);
        }
    float *keys = m.keys + (slot * W * s.key_heads + head) * dk;
    for (int p = 0; p < accepted; p++)
        std::memcpy(old_keys + p * dk, keys + int64_t(p) * s.key_heads * dk, sizeof(float) * dk);
    for (int t = 0; t < T; t++) std::memcpy(keys + int64_t(t) * s.key_heads * dk, K + t * dk, sizeof(float) * dk);

    for (int r = 0; r < R; r++) {
        const int hv = head * R + r;
        float *S = m.recurrent + (slot * Hv + hv) * dk * dv;
        float *updates = m.updates + (slot * W * Hv + hv) * dv, *gates = m.gates + slot * W * Hv + hv;
        float sum = 0.0f;
        for (int p = accepted - 1; p >= 0; p--) {  // from the last one: a token's update decays by the gates after it
            scale_into(decayed + p * dk, std::exp(sum), old_keys + p * dk, dk);
            std::memcpy(old_updates + p * dv, updates + int64_t(p) * Hv * dv, sizeof(float) * dv);
            sum += gates[p * Hv];
        }
        sweep({std::exp(sum), dk, dv, accepted, T, decayed, Q, K, old_updates, U, O}, S);
        float total = 0.0f;
        for (int j = 0; j < T; j++) {
            const float *gate_in = ba + j * ba_stride + head * 2 * R;
            const float beta = sigmoid(gate_in[r]);
            const float g = -std::exp(A_log[hv]) * softplus(gate_in[R + r] + dt_bias[hv]);
            gates[j * Hv] = g;
            c[j] = total += g;
            float *delta = U + j * dv, *o = O + j * dv;  // δ_j replaces U_j, and o_j replaces O_j
            const float *v = V + (j * R + r) * dv;
            const float before = std::exp(c[j]);
#pragma omp simd
            for (int d = 0; d < dv; d++) delta[d] = v[d] - before * delta[d];
            for (int i = 0; i < j; i++) add_scaled(delta, -std::exp(c[j] - c[i]) * KK[j * T + i], U + i * dv, dv);
            scale_into(delta, beta, delta, dv);
            std::memcpy(updates + int64_t(j) * Hv * dv, delta, sizeof(float) * dv);
            scale_into(o, before, o, dv);
            for (int i = 0; i <= j; i++) add_scaled(o, std::exp(c[j] - c[i]) * QK[j * T + i], U + i * dv, dv);
            const float n = 1.0f / std::sqrt(dot(o, o, dv) / dv + s.eps);
            const float *z = x + j * x_stride + 2 * dk + (R + r) * dv;
            float *out = y + (int64_t(j) * Hv + hv) * dv;
#pragma omp simd
            for (int d = 0; d < dv; d++) out[d] = o[d] * n * norm[d] * z[d] * sigmoid(z[d]);
        }
    }
}

void step_head_final(const DeltaStepSizes &s, const DeltaState &m, int64_t slot, int T, int head, const float *qkvz,
                     const float *ba, const float *conv_weight, const float *A_log, const float *dt_bias,
                     const float *norm, float *y) {
    const int64_t row = s.channels(), Hv = s.value_heads(), dk = s.key_dim, dv = s.value_dim, values = s.repeats * dv;
    const int64_t window = (s.conv_window() + T) * row;
    thread_local std::vector<float> workspace;  // the step itself uses the thread's Scratch
    workspace.resize(window + T * (s.key_heads * dk + Hv * dv + Hv));
    float *conv = workspace.data(), *keys = conv + window, *updates = keys + T * s.key_heads * dk;
    float *gates = updates + T * Hv * dv;
    float *stored_conv = m.conv + slot * (s.conv_window() + s.max_tokens) * row;
    const int64_t parts[3][2] = {
        {head * dk, dk}, {(s.key_heads + head) * dk, dk}, {2 * s.key_heads * dk + head * values, values}};
    const auto copy = [&](float *to, const float *from) {
        for (const auto &[first, count] : parts)
            for (int i = 0; i < s.conv_window(); i++)
                std::memcpy(to + i * row + first, from + i * row + first, sizeof(float) * count);
    };
    DeltaStepSizes wide = s;
    wide.max_tokens = T;
    const DeltaState temporary{conv, m.recurrent + slot * Hv * dk * dv, keys, updates, gates};
    copy(conv, stored_conv);
    step_head(wide, temporary, 0, 0, T, head, qkvz, ba, conv_weight, A_log, dt_bias, norm, y);
    step_head(wide, temporary, 0, T, 0, head, qkvz, ba, conv_weight, A_log, dt_bias, norm, y);  // replays them
    copy(stored_conv, conv);
}

}  // namespace gossamer

using namespace gossamer;

extern "C" {

// qkvz [T, Hk, dk | dk | r·dv | r·dv], ba [T, Hk, r | r], y [T, Hv·dv]; the state's tensors are those of DeltaState
// in ops/delta_step.py, with `max_tokens` tokens per slot; step_metadata [4, sequences]: slots, accepted, past,
// lengths.
void gossamer_delta_step(const float *qkvz, const float *ba, const float *conv_weight, const float *A_log,
                         const float *dt_bias, const float *norm, float *conv, float *recurrent, float *keys,
                         float *updates, float *gates, const int64_t *step_metadata, float *y, int64_t sequences,
                         int64_t key_heads, int64_t repeats, int64_t key_dim, int64_t value_dim,
                         int64_t conv_kernel_size, int64_t max_tokens, float eps) {
    const DeltaStepSizes s{int(key_heads), int(repeats), int(key_dim), int(value_dim), int(conv_kernel_size),
                           int(max_tokens), eps};
    const DeltaState state{conv, recurrent, keys, updates, gates};
    const int64_t *slots = step_metadata, *accepted = step_metadata + sequences,
                   *lengths = step_metadata + 3 * sequences;
    std::vector<int64_t> starts(1, 0);
    for (int64_t n = 0; n < sequences; n++) starts.push_back(starts.back() + lengths[n]);
    const int64_t work = (sequences + starts.back()) * s.value_heads() * key_dim * value_dim;
    parallel_for(sequences * key_heads, !is_small(work / 4), [&](int64_t task) {
        const int64_t n = task / key_heads, at = starts[n];
        step_head(s, state, slots[n], int(accepted[n]), int(lengths[n]), int(task % key_heads),
                  qkvz + at * key_heads * s.projected(), ba + at * 2 * s.value_heads(), conv_weight, A_log, dt_bias,
                  norm, y + at * s.value_heads() * value_dim);
    });
}

}  // extern "C"
