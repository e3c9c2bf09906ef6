// Products of a few vectors with a matrix that is read once, from memory: what decoding spends its time on.
//
// Every result is one vector of partial sums, walked from the first number to the last and then folded, however many
// vectors and rows are done together: a token's numbers do not depend on what is decoded beside it.

#pragma once

#include "kernels.h"

namespace gossamer {

inline float fold(const Vector &sums) {
    float lanes[LANES];
    for (int i = 0; i < LANES; i++) lanes[i] = sums[i];
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

// out[t·ldo + r] = ⟨x_t, row r⟩ for TOKENS vectors of n floats and ROWS rows, ldw floats apart.
template <int TOKENS, int ROWS>
inline void dots(const float *const *x, const float *w, int64_t ldw, int n, float *out, int64_t ldo) {
    Vector sums[TOKENS][ROWS] = {};
    int p = 0;
    for (; p + LANES <= n; p += LANES) {
        Vector weights[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) weights[r] = *reinterpret_cast<const Vector *>(w + r * ldw + p);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) {
            const Vector values = *reinterpret_cast<const Vector *>(x[t] + p);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) sums[t][r] += values * weights[r];
        }
    }
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < ROWS; r++) {
            float sum = fold(sums[t][r]);
            for (int q = p; q < n; q++) sum += x[t][q] * w[r * ldw + q];
            out[t * ldo + r] = sum;
        }
}

template <int ROWS>
inline void dots_of(int tokens, const float *const *x, const float *w, int64_t ldw, int n, float *out, int64_t ldo) {
    for (; tokens >= 4; tokens -= 4, x += 4, out += 4 * ldo) dots<4, ROWS>(x, w, ldw, n, out, ldo);
    if (tokens == 3) dots<3, ROWS>(x, w, ldw, n, out, ldo);
    if (tokens == 2) dots<2, ROWS>(x, w, ldw, n, out, ldo);
    if (tokens == 1) dots<1, ROWS>(x, w, ldw, n, out, ldo);
}

// out[t·ldo + r] = ⟨x_t, row r⟩ for any number of vectors and rows.
inline void products(int tokens, int rows, const float *const *x, const float *w, int64_t ldw, int n, float *out,
                     int64_t ldo) {
    for (; rows >= 4; rows -= 4, w += 4 * ldw, out += 4) dots_of<4>(tokens, x, w, ldw, n, out, ldo);
    for (; rows > 0; rows--, w += ldw, out++) dots_of<1>(tokens, x, w, ldw, n, out, ldo);
}

}  // namespace gossamer
