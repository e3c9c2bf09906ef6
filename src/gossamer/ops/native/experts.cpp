// The routed experts, forward and backward: experts in parallel, each with single-threaded products on its own tokens.
//
// A thread gathers an expert's tokens a block at a time, so that everything between the first product and the last one
// stays in its cache, and writes the weights' gradients directly to the stacked tensors. Assignments n·top_k + j are
// sorted by expert; `order` lists them, `rank` is its inverse, and expert e has offsets[e] … offsets[e + 1].

#include <algorithm>

#include "kernels.h"
#include "numbers.h"

using namespace gossamer;

namespace {

constexpr int BLOCK = 256;  // tokens that an expert processes at a time

void gather(float *rows, const float *x, const int64_t *order, int top_k, int n, int hidden) {
    for (int i = 0; i < n; i++)
        std::memcpy(rows + int64_t(i) * hidden, x + order[i] / top_k * hidden, sizeof(float) * hidden);
}

// y_n = Σ_j rows[rank[n·top_k + j]], in the order of j.
void sum_by_token(float *y, const float *rows, const int64_t *rank, int64_t tokens, int top_k, int hidden) {
    parallel_for(tokens, !is_small(tokens * top_k * hidden), [&](int64_t token) {
        float *out = y + token * hidden;
        std::memcpy(out, rows + rank[token * top_k] * hidden, sizeof(float) * hidden);
        for (int j = 1; j < top_k; j++) add_scaled(out, 1.0f, rows + rank[token * top_k + j] * hidden, hidden);
    });
}

// out [n, rows] = x [n, width] Wᵀ for the `rows` rows of W from `first` on.
void multiply(const float *x, int n, const void *w, int64_t type, int64_t first, int64_t rows, int64_t width,
              float *out) {
    if (type == BFLOAT16)
        gemm(n, int(rows), int(width), x, width, static_cast<const BFloat16 *>(w) + first * width, width, out, rows);
    else
        gemm(PLAIN, TRANSPOSED, n, int(rows), int(width), x, width, static_cast<const float *>(w) + first * width, width,
             out, rows);
}

// For a row's gates and ups [2·width] and the gradient da of SiLU(gate) ⊙ up = a: weight · a, the gradient of gates and
// ups for weight · a, and as the result ⟨da, a⟩, the gradient of the weight, since ⟨dy, D a⟩ = ⟨Dᵀ dy, a⟩.
float activation_gradient(int64_t width, float weight, const float *gate, const float *da, float *activated,
                          float *dgate) {
    const float *up = gate + width;
    float *dup = dgate + width, inner_product = 0.0f;
#pragma omp simd reduction(+ : inner_product)
    for (int64_t d = 0; d < width; d++) {
        const float s = sigmoid(gate[d]), silu = gate[d] * s, a = silu * up[d];
        inner_product += da[d] * a;
        activated[d] = weight * a;
        dup[d] = weight * da[d] * silu;
        dgate[d] = weight * da[d] * up[d] * (s + silu * (1.0f - s));
    }
    return inner_product;
}

// What is added to the frozen weights of the experts: B_e A_e for each of them, with A [experts, rank, width] and
// B [experts, rows, rank]. With a rank of 0 it is nothing.
struct LowRank {
    const float *A, *B;
    int rank;
    int64_t rows, width;
    const float *a(int64_t e) const { return A + e * rank * width; }
    const float *b(int64_t e) const { return B + e * rows * rank; }

    // out [n, rows] += x (B_e A_e)ᵀ; thin [n, rank] is work space.
    void add(int64_t e, int n, const float *x, float *thin, float *out) const {
        if (!rank) return;
        gemm(PLAIN, TRANSPOSED, n, rank, int(width), x, width, a(e), width, thin, rank);
        gemm(PLAIN, TRANSPOSED, n, int(rows), rank, thin, rank, b(e), rank, out, rows, 1.0f, 1.0f);
    }

    // For the gradient dout [n, rows] of such products with x [n, width]: dx += dout B_e A_e, and the gradients of A_e
    // and B_e, to which later blocks add (beta = 1). The product with A_e is taken from `thin`, which comes second.
    void add_input_gradient(int64_t e, int n, const float *dout, float *thin, float *dx) const {
        if (!rank) return;
        gemm(PLAIN, PLAIN, n, rank, int(rows), dout, rows, b(e), rank, thin, rank);
        gemm(PLAIN, PLAIN, n, int(width), rank, thin, rank, a(e), width, dx, width, 1.0f, 1.0f);
    }
    void factor_gradients(int64_t e, int n, const float *dout, const float *x, float *thin, float *dA, float *dB,
                          float beta) const {
        if (!rank) return;
        gemm(TRANSPOSED, PLAIN, rank, int(width), n, thin, rank, x, width, dA + e * rank * width, width, 1.0f, beta);
        gemm(PLAIN, TRANSPOSED, n, rank, int(width), x, width, a(e), width, thin, rank);
        gemm(TRANSPOSED, PLAIN, int(rows), rank, n, dout, rows, thin, rank, dB + e * rows * rank, rank, 1.0f, beta);
    }
    void clear(int64_t e, float *dA, float *dB) const {
        std::fill_n(dA + e * rank * width, rank * width, 0.0f);
        std::fill_n(dB + e * rows * rank, rows * rank, 0.0f);
    }
};

// One expert's matrix in float32: as it stands, or widened into `wide`.
const float *widened(const void *w, int64_t type, int64_t first, int64_t count, float *wide) {
    if (type != BFLOAT16) return static_cast<const float *>(w) + first;
    const BFloat16 *from = static_cast<const BFloat16 *>(w) + first;
    for (int64_t i = 0; i < count; i++) wide[i] = float(from[i]);
    return wide;
}

}  // namespace

extern "C" {

// Sorts `assignments` expert indices by counting: order and rank [assignments], offsets [experts + 1].
void gossamer_sort_by_expert(const int64_t *indices, int64_t assignments, int64_t experts, int64_t *order,
                             int64_t *rank, int64_t *offsets) {
    std::memset(offsets, 0, sizeof(int64_t) * (experts + 1));
    for (int64_t i = 0; i < assignments; i++) offsets[indices[i] + 1]++;
    for (int e = 0; e < experts; e++) offsets[e + 1] += offsets[e];
    std::vector<int64_t> next(offsets, offsets + experts);
    for (int64_t i = 0; i < assignments; i++) order[rank[i] = next[indices[i]]++] = i;
}

// x, y [tokens, hidden]; weights [tokens · top_k]; gate_up [experts, 2·width, hidden] and down [experts, hidden, width]
// of float32, or both of bfloat16.
// inner [tokens · top_k, 2·width] is saved for the backward pass; outputs [tokens · top_k, hidden] is work space.
void gossamer_experts(const float *x, const int64_t *order, const int64_t *rank, const int64_t *offsets,
                      const float *weights, const void *gate_up, const void *down, int64_t type, float *inner,
                      float *outputs, float *y, int64_t tokens, int64_t top_k, int64_t experts, int64_t hidden,
                      int64_t width) {
#pragma omp parallel if (!is_small(tokens * top_k * hidden * width / 64))
    {
        const FlushSubnormals flush;
        Scratch scratch(int64_t(BLOCK) * (hidden + width));
        float *rows = scratch.allocate(int64_t(BLOCK) * hidden), *activated = scratch.allocate(int64_t(BLOCK) * width);
#pragma omp for schedule(dynamic, 1)
        for (int e = 0; e < experts; e++) {
            for (int64_t first = offsets[e]; first < offsets[e + 1]; first += BLOCK) {
                const int n = static_cast<int>(std::min<int64_t>(BLOCK, offsets[e + 1] - first));
                gather(rows, x, order + first, top_k, n, hidden);
                float *both = inner + first * 2 * width;
                multiply(rows, n, gate_up, type, int64_t(e) * 2 * width, 2 * width, hidden, both);
                for (int i = 0; i < n; i++) {
                    const float *gate = both + int64_t(i) * 2 * width, *up = gate + width;
                    const float weight = weights[order[first + i]];
                    float *out = activated + int64_t(i) * width;
#pragma omp simd
                    for (int d = 0; d < width; d++) out[d] = weight * gate[d] * sigmoid(gate[d]) * up[d];
                }
                multiply(activated, n, down, type, e * hidden, hidden, width, outputs + first * hidden);
            }
        }
    }
    sum_by_token(y, outputs, rank, tokens, top_k, hidden);
}

// Gradients of x, weights [tokens · top_k], gate_up and down; drows [tokens · top_k, hidden] is work space.
void gossamer_experts_backward(const float *dy, const float *x, const int64_t *order, const int64_t *rank,
                               const int64_t *offsets, const float *weights, const float *gate_up, const float *down,
                               const float *inner, float *drows, float *dx, float *dweights, float *dgate_up,
                               float *ddown, int64_t tokens, int64_t top_k, int64_t experts, int64_t hidden,
                               int64_t width) {
    const int64_t up_size = int64_t(2) * width * hidden, down_size = int64_t(hidden) * width;
#pragma omp parallel if (!is_small(tokens * top_k * hidden * width / 64))
    {
        const FlushSubnormals flush;
        Scratch scratch(int64_t(BLOCK) * (2 * hidden + 4 * width));
        float *rows = scratch.allocate(int64_t(BLOCK) * hidden), *grads = scratch.allocate(int64_t(BLOCK) * hidden);
        float *activated = scratch.allocate(int64_t(BLOCK) * width),
              *dactivated = scratch.allocate(int64_t(BLOCK) * width);
        float *dboth = scratch.allocate(int64_t(BLOCK) * 2 * width);
#pragma omp for schedule(dynamic, 1)
        for (int e = 0; e < experts; e++) {
            float *dgate_up_e = dgate_up + e * up_size, *ddown_e = ddown + e * down_size;
            if (offsets[e] == offsets[e + 1]) {
                std::memset(dgate_up_e, 0, sizeof(float) * up_size);
                std::memset(ddown_e, 0, sizeof(float) * down_size);
            }
            for (int64_t first = offsets[e]; first < offsets[e + 1]; first += BLOCK) {
                const int n = static_cast<int>(std::min<int64_t>(BLOCK, offsets[e + 1] - first));
                const float beta = first == offsets[e] ? 0.0f : 1.0f;  // later blocks add to the gradient
                gather(rows, x, order + first, top_k, n, hidden);
                gather(grads, dy, order + first, top_k, n, hidden);
                gemm(PLAIN, PLAIN, n, width, hidden, grads, hidden, down + e * down_size, width, dactivated, width);
                for (int i = 0; i < n; i++) {
                    const float *gate = inner + (first + i) * 2 * width, *da = dactivated + int64_t(i) * width;
                    dweights[order[first + i]] =
                        activation_gradient(width, weights[order[first + i]], gate, da, activated + int64_t(i) * width,
                                            dboth + int64_t(i) * 2 * width);
                }
                gemm(TRANSPOSED, PLAIN, hidden, width, n, grads, hidden, activated, width, ddown_e, width, 1.0f, beta);
                gemm(TRANSPOSED, PLAIN, 2 * width, hidden, n, dboth, 2 * width, rows, hidden, dgate_up_e, hidden, 1.0f,
                     beta);
                gemm(PLAIN, PLAIN, n, hidden, 2 * width, dboth, 2 * width, gate_up + e * up_size, hidden,
                     drows + first * hidden, hidden);
            }
        }
    }
    sum_by_token(dx, drows, rank, tokens, top_k, hidden);
}

// As gossamer_experts, with B A added to the weights of each expert: gate_up_A [experts, gate_up_rank, hidden],
// gate_up_B [experts, 2·width, gate_up_rank], down_A [experts, down_rank, width], down_B [experts, hidden, down_rank].
void gossamer_frozen_experts(const float *x, const int64_t *order, const int64_t *rank, const int64_t *offsets,
                             const float *weights, const void *gate_up, const void *down, int64_t type,
                             const float *gate_up_A, const float *gate_up_B, int64_t gate_up_rank, const float *down_A,
                             const float *down_B, int64_t down_rank, float *inner, float *outputs, float *y,
                             int64_t tokens, int64_t top_k, int64_t experts, int64_t hidden, int64_t width) {
    const LowRank first_added{gate_up_A, gate_up_B, int(gate_up_rank), 2 * width, hidden};
    const LowRank second_added{down_A, down_B, int(down_rank), hidden, width};
    const int64_t thin_size = int64_t(BLOCK) * std::max(gate_up_rank, down_rank);
#pragma omp parallel if (!is_small(tokens * top_k * hidden * width / 64))
    {
        const FlushSubnormals flush;
        Scratch scratch(int64_t(BLOCK) * (hidden + width) + thin_size);
        float *rows = scratch.allocate(int64_t(BLOCK) * hidden), *activated = scratch.allocate(int64_t(BLOCK) * width);
        float *thin = scratch.allocate(thin_size);
#pragma omp for schedule(dynamic, 1)
        for (int e = 0; e < experts; e++) {
            for (int64_t first = offsets[e]; first < offsets[e + 1]; first += BLOCK) {
                const int n = static_cast<int>(std::min<int64_t>(BLOCK, offsets[e + 1] - first));
                gather(rows, x, order + first, top_k, n, hidden);
                float *both = inner + first * 2 * width, *out = outputs + first * hidden;
                multiply(rows, n, gate_up, type, int64_t(e) * 2 * width, 2 * width, hidden, both);
                first_added.add(e, n, rows, thin, both);
                for (int i = 0; i < n; i++) {
                    const float *gate = both + int64_t(i) * 2 * width, *up = gate + width;
                    const float weight = weights[order[first + i]];
                    float *a = activated + int64_t(i) * width;
#pragma omp simd
                    for (int d = 0; d < width; d++) a[d] = weight * gate[d] * sigmoid(gate[d]) * up[d];
                }
                multiply(activated, n, down, type, e * hidden, hidden, width, out);
                second_added.add(e, n, activated, thin, out);
            }
        }
    }
    sum_by_token(y, outputs, rank, tokens, top_k, hidden);
}

// Gradients of x, weights [tokens · top_k] and the four factors; drows [tokens · top_k, hidden] is work space.
void gossamer_frozen_experts_backward(const float *dy, const float *x, const int64_t *order, const int64_t *rank,
                                      const int64_t *offsets, const float *weights, const void *gate_up,
                                      const void *down, int64_t type, const float *gate_up_A, const float *gate_up_B,
                                      int64_t gate_up_rank, const float *down_A, const float *down_B, int64_t down_rank,
                                      const float *inner, float *drows, float *dx, float *dweights, float *dgate_up_A,
                                      float *dgate_up_B, float *ddown_A, float *ddown_B, int64_t tokens, int64_t top_k,
                                      int64_t experts, int64_t hidden, int64_t width) {
    const LowRank first_added{gate_up_A, gate_up_B, int(gate_up_rank), 2 * width, hidden};
    const LowRank second_added{down_A, down_B, int(down_rank), hidden, width};
    const int64_t up_size = int64_t(2) * width * hidden, down_size = int64_t(hidden) * width;
    const int64_t thin_size = int64_t(BLOCK) * std::max(gate_up_rank, down_rank);
    const int64_t wide_size = type == BFLOAT16 ? up_size + down_size : 0;
#pragma omp parallel if (!is_small(tokens * top_k * hidden * width / 64))
    {
        const FlushSubnormals flush;
        Scratch scratch(int64_t(BLOCK) * (2 * hidden + 4 * width) + thin_size + wide_size);
        float *rows = scratch.allocate(int64_t(BLOCK) * hidden), *grads = scratch.allocate(int64_t(BLOCK) * hidden);
        float *activated = scratch.allocate(int64_t(BLOCK) * width),
              *dactivated = scratch.allocate(int64_t(BLOCK) * width);
        float *dboth = scratch.allocate(int64_t(BLOCK) * 2 * width), *thin = scratch.allocate(thin_size);
        float *wide = scratch.allocate(wide_size);
#pragma omp for schedule(dynamic, 1)
        for (int e = 0; e < experts; e++) {
            if (offsets[e] == offsets[e + 1]) {
                first_added.clear(e, dgate_up_A, dgate_up_B);
                second_added.clear(e, ddown_A, ddown_B);
                continue;
            }
            const float *G = widened(gate_up, type, e * up_size, up_size, wide);
            const float *D = widened(down, type, e * down_size, down_size, wide + up_size);
            for (int64_t first = offsets[e]; first < offsets[e + 1]; first += BLOCK) {
                const int n = static_cast<int>(std::min<int64_t>(BLOCK, offsets[e + 1] - first));
                const float beta = first == offsets[e] ? 0.0f : 1.0f;  // later blocks add to the gradient
                gather(rows, x, order + first, top_k, n, hidden);
                gather(grads, dy, order + first, top_k, n, hidden);
                gemm(PLAIN, PLAIN, n, width, hidden, grads, hidden, D, width, dactivated, width);
                second_added.add_input_gradient(e, n, grads, thin, dactivated);
                for (int i = 0; i < n; i++) {
                    const float *gate = inner + (first + i) * 2 * width, *da = dactivated + int64_t(i) * width;
                    dweights[order[first + i]] =
                        activation_gradient(width, weights[order[first + i]], gate, da, activated + int64_t(i) * width,
                                            dboth + int64_t(i) * 2 * width);
                }
                second_added.factor_gradients(e, n, grads, activated, thin, ddown_A, ddown_B, beta);
                float *drow = drows + first * hidden;
                gemm(PLAIN, PLAIN, n, hidden, 2 * width, dboth, 2 * width, G, hidden, drow, hidden);
                first_added.add_input_gradient(e, n, dboth, thin, drow);
                first_added.factor_gradients(e, n, dboth, rows, thin, dgate_up_A, dgate_up_B, beta);
            }
        }
    }
    sum_by_token(dx, drows, rank, tokens, top_k, hidden);
}

}  // extern "C"
