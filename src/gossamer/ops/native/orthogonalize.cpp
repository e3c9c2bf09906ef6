// The Newton-Schulz iterations that approximate the nearest orthogonal matrix.
//
// A thread takes a matrix and keeps it in its cache for all rounds. X Xᵀ and its square are symmetric, so only half of
// each is computed.

#include <cmath>
#include <utility>

#include "kernels.h"

using namespace gossamer;

namespace {

// Copies the half below the diagonal to the half above it.
void mirror(float *square, int n) {
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++) square[int64_t(i) * n + j] = square[int64_t(j) * n + i];
}

}  // namespace

extern "C" {

// x holds `count` matrices of rows × columns, which lie `matrix_stride` floats apart, with rows `row_stride` apart; y
// holds them contiguously. Starting from X / (‖X‖ + eps), X ← a X + (b X Xᵀ + c (X Xᵀ)²) X is applied `rounds` times.
void gossamer_orthogonalize(const float *x, float *y, int64_t count, int64_t rows, int64_t columns,
                            int64_t matrix_stride, int64_t row_stride, float a, float b, float c, float eps,
                            int64_t rounds) {
    const bool tall = rows > columns;
    const int shorter = static_cast<int>(tall ? columns : rows), longer = static_cast<int>(tall ? rows : columns);
    const int64_t size = int64_t(shorter) * longer;
    parallel_for<DYNAMIC>(count, !is_small(count * size), [&](int64_t number) {
        Scratch scratch(2 * size + 2 * int64_t(shorter) * shorter);
        float *X = scratch.allocate(size), *next = scratch.allocate(size);
        float *G = scratch.allocate(int64_t(shorter) * shorter), *H = scratch.allocate(int64_t(shorter) * shorter);
        const float *from = x + number * matrix_stride;
        double square = 0.0;
        for (int64_t i = 0; i < rows; i++) {
            const float *row = from + i * row_stride;
            square += dot(row, row, columns);
            if (tall)
                for (int64_t j = 0; j < columns; j++) X[j * longer + i] = row[j];
            else
                std::memcpy(X + i * longer, row, sizeof(float) * columns);
        }
        scale_into(X, 1.0f / (static_cast<float>(std::sqrt(square)) + eps), X, size);
        for (int round = 0; round < rounds; round++) {
            gemm(PLAIN, TRANSPOSED, shorter, shorter, longer, X, longer, X, longer, G, shorter, 1.0f, 0.0f,
                 LOWER_RESULT);
            mirror(G, shorter);
            std::memcpy(H, G, sizeof(float) * shorter * shorter);
            gemm(PLAIN, PLAIN, shorter, shorter, shorter, G, shorter, G, shorter, H, shorter, c, b, LOWER_RESULT);
            mirror(H, shorter);
            std::memcpy(next, X, sizeof(float) * size);
            gemm(PLAIN, PLAIN, shorter, longer, shorter, H, shorter, X, longer, next, longer, 1.0f, a);
            std::swap(X, next);
        }
        float *out = y + number * size;
        if (tall)
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++) out[i * columns + j] = X[j * longer + i];
        else
            std::memcpy(out, X, sizeof(float) * size);
    });
}

}  // extern "C"
