// RMSNorm and gated RMSNorm, forward and backward, one pass over memory each.
//
//   y = x · n · w,            n = 1 / √(mean x² + ε)
//   y = x · n · w · SiLU(z)   for the gated one
//
// Backward with u = dy · w (· SiLU(z)): dx = n (u − x · n² · mean(u · x)), dw = Σ_rows dy · x · n (· SiLU(z)),
// dz = dy · x · n · w · SiLU'(z). Each thread has its own sum for dw, and the sums are added up in order at the end.

#include <algorithm>
#include <cmath>
#include <omp.h>

#include "kernels.h"

using namespace gossamer;

namespace {

float inverse_rms(const float *x, int width, float eps) { return 1.0f / std::sqrt(dot(x, x, width) / width + eps); }

// The number of blocks of rows, one for each thread. Each block has its own row of dw, so that the sums do not depend
// on the order in which threads run.
int blocks_of(int64_t rows, int64_t width) {
    return is_small(rows * width) ? 1 : static_cast<int>(std::min<int64_t>(rows, omp_get_max_threads()));
}

void sum_blocks(const std::vector<float> &parts, float *dw, int blocks, int width) {
    std::memset(dw, 0, sizeof(float) * width);
    for (int block = 0; block < blocks; block++) add_scaled(dw, 1.0f, parts.data() + int64_t(block) * width, width);
}

}  // namespace

extern "C" {

// x, y [rows, width]; inverse [rows] is saved for the backward pass.
void gossamer_rms_norm(const float *x, const float *w, float *y, float *inverse, int64_t rows, int64_t width,
                       float eps) {
    parallel_for(rows, !is_small(rows * width), [&](int64_t row) {
        const float *in = x + row * width;
        float *out = y + row * width;
        const float n = inverse_rms(in, width, eps);
        inverse[row] = n;
#pragma omp simd
        for (int i = 0; i < width; i++) out[i] = in[i] * n * w[i];
    });
}

void gossamer_rms_norm_backward(const float *dy, const float *x, const float *w, const float *inverse, float *dx,
                                float *dw, int64_t rows, int64_t width) {
    const int blocks = blocks_of(rows, width);
    std::vector<float> parts(int64_t(blocks) * width, 0.0f);
    parallel_for(blocks, blocks > 1, [&](int64_t block) {
        float *part = parts.data() + int64_t(block) * width;
        for (int64_t row = rows * block / blocks; row < rows * (block + 1) / blocks; row++) {
            const float *g = dy + row * width, *in = x + row * width;
            float *out = dx + row * width;
            const float n = inverse[row];
            float inner = 0.0f;
#pragma omp simd reduction(+ : inner)
            for (int i = 0; i < width; i++) {
                inner += g[i] * w[i] * in[i];
                part[i] += g[i] * in[i] * n;
            }
            const float correction = n * n * n * inner / width;
#pragma omp simd
            for (int i = 0; i < width; i++) out[i] = g[i] * w[i] * n - in[i] * correction;
        }
    });
    const FlushSubnormals flush;
    sum_blocks(parts, dw, blocks, width);
}

// z's rows of `heads` · width floats lie z_stride floats apart, because z may be a part of a wider projection.
void gossamer_gated_rms_norm(const float *x, const float *z, const float *w, float *y, float *inverse, int64_t rows,
                             int64_t heads, int64_t width, int64_t z_stride, float eps) {
    parallel_for(rows, !is_small(rows * heads * width), [&](int64_t row) {
        for (int head = 0; head < heads; head++) {
            const int64_t at = row * heads + head;
            const float *in = x + at * width, *gate = z + row * z_stride + int64_t(head) * width;
            float *out = y + at * width;
            const float n = inverse_rms(in, width, eps);
            inverse[at] = n;
#pragma omp simd
            for (int i = 0; i < width; i++) out[i] = in[i] * n * w[i] * gate[i] * sigmoid(gate[i]);
        }
    });
}

void gossamer_gated_rms_norm_backward(const float *dy, const float *x, const float *z, const float *w,
                                      const float *inverse, float *dx, float *dz, float *dw, int64_t rows,
                                      int64_t heads, int64_t width, int64_t z_stride) {
    const int blocks = blocks_of(rows, heads * width);
    std::vector<float> parts(int64_t(blocks) * width, 0.0f);
    parallel_for(blocks, blocks > 1, [&](int64_t block) {
        float *part = parts.data() + int64_t(block) * width;
        for (int64_t row = rows * block / blocks; row < rows * (block + 1) / blocks; row++) {
            for (int head = 0; head < heads; head++) {
                const int64_t at = row * heads + head;
                const float *g = dy + at * width, *in = x + at * width;
                const float *gate = z + row * z_stride + int64_t(head) * width;
                float *out = dx + at * width, *out_gate = dz + at * width;
                const float n = inverse[at];
                float inner = 0.0f;
#pragma omp simd reduction(+ : inner)
                for (int i = 0; i < width; i++) {
                    const float s = sigmoid(gate[i]), silu = gate[i] * s, normed = in[i] * n;
                    const float u = g[i] * silu;
                    part[i] += u * normed;
                    out[i] = u * w[i];
                    inner += u * w[i] * in[i];
                    out_gate[i] = g[i] * normed * w[i] * (s + silu * (1.0f - s));
                }
                const float correction = n * n * n * inner / width;
#pragma omp simd
                for (int i = 0; i < width; i++) out[i] = out[i] * n - in[i] * correction;
            }
        }
    });
    const FlushSubnormals flush;
    sum_blocks(parts, dw, blocks, width);
}

}  // extern "C"
