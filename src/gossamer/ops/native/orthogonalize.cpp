// The rounds of Newton and Schulz's kind that turn a matrix into the nearest orthogonal one, roughly.
//
// A thread takes a matrix and keeps it in its cache for all rounds. X Xᵀ and its square are symmetric: half of them is
// computed.

#include <cmath>
#include <utility>

#include "kernels.h"

using namespace gossamer;

namespace {

// The half above the diagonal, from the one below.
void mirror(float *square, int n) {
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++) square[int64_t(i) * n + j] = square[int64_t(j) * n + i];
}

}  // namespace

extern "C" {

// x: `count` matrices of rows × columns, `matrix_stride` floats apart, their rows `row_stride`; y the same, contiguous.
// X ← a X + (b X Xᵀ + c (X Xᵀ)²) X, `rounds` times, from X / (‖X‖ + eps).
void gossamer_orthogonalize(const float *x, float *y, int64_t count, int64_t rows, int64_t columns, int64_t matrix_stride,
                            int64_t row_stride, float a, float b, float c, float eps, int64_t rounds) {
    const bool tall = rows > columns;
    const int few = static_cast<int>(tall ? columns : rows), many = static_cast<int>(tall ? rows : columns);
    const int64_t size = int64_t(few) * many;
    parallel_for<DYNAMIC>(count, !is_small(count * size), [&](int64_t number) {
        Scratch scratch(2 * size + 2 * int64_t(few) * few);
        float *X = scratch.take(size), *next = scratch.take(size);
        float *G = scratch.take(int64_t(few) * few), *H = scratch.take(int64_t(few) * few);
        const float *from = x + number * matrix_stride;
        double square = 0.0;
        for (int64_t i = 0; i < rows; i++) {
            const float *row = from + i * row_stride;
            square += dot(row, row, columns);
            if (tall)
                for (int64_t j = 0; j < columns; j++) X[j * many + i] = row[j];
            else
                std::memcpy(X + i * many, row, sizeof(float) * columns);
        }
        scale_into(X, 1.0f / (static_cast<float>(std::sqrt(square)) + eps), X, size);
        for (int round = 0; round < rounds; round++) {
            gemm(PLAIN, TRANSPOSED, few, few, many, X, many, X, many, G, few, 1.0f, 0.0f, LOWER_RESULT);
            mirror(G, few);
            std::memcpy(H, G, sizeof(float) * few * few);
            gemm(PLAIN, PLAIN, few, few, few, G, few, G, few, H, few, c, b, LOWER_RESULT);
            mirror(H, few);
            std::memcpy(next, X, sizeof(float) * size);
            gemm(PLAIN, PLAIN, few, many, few, H, few, X, many, next, many, 1.0f, a);
            std::swap(X, next);
        }
        float *out = y + number * size;
        if (tall)
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++) out[i * columns + j] = X[j * many + i];
        else
            std::memcpy(out, X, sizeof(float) * size);
    });
}

}  // extern "C"
