// Products of a few vectors with a matrix that is read once, from memory: what decoding spends its time on.
//
// Every result is one vector of partial sums, walked from the first number to the last and then folded, however many
// vectors and rows are done together: a token's numbers do not depend on what is decoded beside it. A matrix is of
// float32, or of int8 with a scale for each row, a quarter of the bytes.

#pragma once

#include "kernels.h"

namespace gossamer {

// A matrix as it is handed over: float32, or int8 if there are scales.
struct Matrix {
    const void *values;
    const float *scales;
    explicit operator bool() const { return values != nullptr; }
    // The rows from `row` on, `width` numbers each.
    Matrix from(int64_t row, int64_t width) const {
        const int64_t bytes = row * width * int64_t(scales ? sizeof(int8_t) : sizeof(float));
        return {static_cast<const char *>(values) + bytes, scales ? scales + row : nullptr};
    }
};

inline Vector load(const float *p) { return *reinterpret_cast<const Vector *>(p); }

inline Vector load(const int8_t *p) {
    typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
    typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
    return __builtin_convertvector(*reinterpret_cast<const Bytes *>(p), Floats);
}

inline float fold(const Vector &sums) {
    float lanes[LANES];
    for (int i = 0; i < LANES; i++) lanes[i] = sums[i];
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

// out[t·ldo + r] = scale_r ⟨x_t, row r⟩ for TOKENS vectors of n floats and ROWS rows of n numbers.
template <int TOKENS, int ROWS, typename Number>
inline void dots(const float *const *x, const Number *w, const float *scales, int n, float *out, int64_t ldo) {
    Vector sums[TOKENS][ROWS] = {};
    int p = 0;
    for (; p + LANES <= n; p += LANES) {
        Vector weights[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) weights[r] = load(w + int64_t(r) * n + p);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) {
            const Vector values = load(x[t] + p);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) sums[t][r] += values * weights[r];
        }
    }
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < ROWS; r++) {
            float sum = fold(sums[t][r]);
            for (int q = p; q < n; q++) sum += x[t][q] * float(w[int64_t(r) * n + q]);
            out[t * ldo + r] = scales ? scales[r] * sum : sum;
        }
}

template <int ROWS, typename Number>
inline void dots_of(int tokens, const float *const *x, const Number *w, const float *scales, int n, float *out,
                    int64_t ldo) {
    for (; tokens >= 4; tokens -= 4, x += 4, out += 4 * ldo) dots<4, ROWS>(x, w, scales, n, out, ldo);
    if (tokens == 3) dots<3, ROWS>(x, w, scales, n, out, ldo);
    if (tokens == 2) dots<2, ROWS>(x, w, scales, n, out, ldo);
    if (tokens == 1) dots<1, ROWS>(x, w, scales, n, out, ldo);
}

template <typename Number>
inline void products_of(int tokens, int rows, const float *const *x, const Number *w, const float *scales, int n,
                        float *out, int64_t ldo) {
    for (; rows >= 4; rows -= 4, w += 4 * int64_t(n), out += 4) {
        dots_of<4>(tokens, x, w, scales, n, out, ldo);
        if (scales) scales += 4;
    }
    for (; rows > 0; rows--, w += n, out++) {
        dots_of<1>(tokens, x, w, scales, n, out, ldo);
        if (scales) scales++;
    }
}

// out[t·ldo + r] = ⟨x_t, row r⟩ for any number of vectors of n floats and of the matrix' first rows.
inline void products(int tokens, int rows, const float *const *x, const Matrix &w, int n, float *out, int64_t ldo) {
    if (w.scales)
        products_of(tokens, rows, x, static_cast<const int8_t *>(w.values), w.scales, n, out, ldo);
    else
        products_of(tokens, rows, x, static_cast<const float *>(w.values), nullptr, n, out, ldo);
}

}  // namespace gossamer
