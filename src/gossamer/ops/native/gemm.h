// Single-threaded matrix products of small and middling sizes, for one expert's or one chunk's share of the work.
//
// A BLAS made for large matrices reaches half of a core's rate at 64 × 64 × 64 or at an expert's few dozen rows. Here
// the right operand is packed a panel of two vectors' width at a time, and a tile of the result stays in registers while
// the common dimension is walked; the left operand is read where it lies, transposed or not.

#pragma once

#include <algorithm>
#include <cstdint>

namespace gossamer {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 12;  // 32 registers: 24 sums, two of the panel, a broadcast
#elif defined(__AVX__)
constexpr int LANES = 8, TILE_ROWS = 6;  // 16 registers: 12 sums, two of the panel, a broadcast
#elif defined(__aarch64__)
// 32 registers: 16 sums, as many as four units with a latency of four cycles keep busy. Ten rows would fit, too, but do
// not divide the 64 rows of a chunk; with more the compiler puts sums into memory.
constexpr int LANES = 4, TILE_ROWS = 8;
#else
constexpr int LANES = 4, TILE_ROWS = 6;  // SSE2 has 16 registers, too
#endif
constexpr int COLUMNS = 2 * LANES;  // of a panel
constexpr int DEPTH = 512;          // of the common dimension that is walked at a time

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

enum Form { PLAIN, TRANSPOSED };
// Of a product with something triangular, what is left out: the zeros of a square op(A), with its diagonal kept, or what
// lies above the diagonal of a square result, which is then not written, or holds anything.
enum Part { ALL, LOWER_LEFT, UPPER_LEFT, LOWER_RESULT };

inline float dot(const float *a, const float *b, int64_t n) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// C [m, n] = alpha · op(A) op(B) + beta · C for row-major matrices with rows `lda`, `ldb`, `ldc` floats apart.
// A TRANSPOSED operand lies in memory as [k, m] or [n, k]. With beta = 0 what C held is not read. A triangular op(A) has
// at most DEPTH rows.
void gemm(Form a_form, Form b_form, int m, int n, int k, const float *a, int64_t lda, const float *b, int64_t ldb,
          float *c, int64_t ldc, float alpha = 1.0f, float beta = 0.0f, Part part = ALL);

}  // namespace gossamer
