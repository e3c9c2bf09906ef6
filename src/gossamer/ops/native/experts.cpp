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
                    const float *gate = inner + (first + i) * 2 * width, *up = gate + width;
                    const float *da = dactivated + int64_t(i) * width;
                    float *act = activated + int64_t(i) * width, *dgate = dboth + int64_t(i) * 2 * width,
                          *dup_row = dgate + width;
                    const float weight = weights[order[first + i]];
                    float inner_product = 0.0f;
#pragma omp simd reduction(+ : inner_product)
                    for (int d = 0; d < width; d++) {
                        const float s = sigmoid(gate[d]), silu = gate[d] * s, a = silu * up[d];
                        inner_product += da[d] * a;  // ⟨dy, D a⟩ = ⟨Dᵀ dy, a⟩
                        act[d] = weight * a;
                        dup_row[d] = weight * da[d] * silu;
                        dgate[d] = weight * da[d] * up[d] * (s + silu * (1.0f - s));
                    }
                    dweights[order[first + i]] = inner_product;
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

}  // extern "C"
