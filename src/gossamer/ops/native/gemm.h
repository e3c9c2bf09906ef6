// Single-threaded products of small and medium matrices, such as those of one expert or one chunk.
//
// A BLAS made for large matrices reaches half of a core's peak rate at 64 × 64 × 64 or at an expert's few dozen rows.
// Here the right operand is packed into panels as wide as two vectors, and a tile of the result stays in registers
// while the inner dimension is traversed. The left operand is read in place, transposed or not.

#pragma once

#include <algorithm>
#include <cstdint>

namespace gossamer {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 12;  // 32 registers: 24 sums, two of the panel, a broadcast
#elif defined(__AVX__)
constexpr int LANES = 8, TILE_ROWS = 6;  // 16 registers: 12 sums, two of the panel, a broadcast
#elif defined(__aarch64__)
// 32 registers: 16 sums, as many as keep four units with a latency of four cycles busy. Ten rows would fit as well but
// do not divide the 64 rows of a chunk; with more rows the compiler spills sums to memory.
constexpr int LANES = 4, TILE_ROWS = 8;
#else
constexpr int LANES = 4, TILE_ROWS = 6;  // SSE2 also has 16 registers
#endif
constexpr int COLUMNS = 2 * LANES;  // width of a panel
constexpr int DEPTH = 512;          // part of the inner dimension that is traversed at a time

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

enum Form { PLAIN, TRANSPOSED };
// The part of a product that is computed. With a triangular op(A) (LOWER_LEFT, UPPER_LEFT) its zeros are skipped, but
// not its diagonal. With LOWER_RESULT whatever lies above the diagonal of a square result is unspecified.
enum Part { ALL, LOWER_LEFT, UPPER_LEFT, LOWER_RESULT };

inline float dot(const float *a, const float *b, int64_t n) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// C [m, n] = alpha · op(A) op(B) + beta · C for row-major matrices with rows `lda`, `ldb` and `ldc` floats apart.
// A TRANSPOSED operand lies in memory as [k, m] or [n, k]. With beta = 0, C is not read. A triangular op(A) has at most
// DEPTH rows.
void gemm(Form a_form, Form b_form, int m, int n, int k, const float *a, int64_t lda, const float *b, int64_t ldb,
          float *c, int64_t ldc, float alpha = 1.0f, float beta = 0.0f, Part part = ALL);

struct BFloat16;

// C [m, n] = A Bᵀ for B [n, k] of bfloat16, which is widened a panel at a time: once for all rows of A.
void gemm(int m, int n, int k, const float *a, int64_t lda, const BFloat16 *b, int64_t ldb, float *c, int64_t ldc);

}  // namespace gossamer
