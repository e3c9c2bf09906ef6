// Sampling a token from logits by the Gumbel-max trick; ops/sample_tokens.py says what is computed.

#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace gossamer {

// C. Wellons' hash `lowbias32`.
inline uint32_t hash32(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// A token's random number, uniform in 31 bits.
inline int32_t random_bits(uint32_t low, uint32_t high, uint32_t token) {
    return int32_t(hash32(hash32(token ^ low) ^ high) >> 1);
}

// A sample of the standard Gumbel distribution from uniform bits.
inline double gumbel(int32_t bits) { return -std::log(-std::log1p(-(bits + 0.5) / 2147483648.0)); }

// Samples the token of one row; returns −1 if its largest logit is not finite. Temperature 0 takes the most likely
// token, the first of several equal ones.
inline int64_t sample_token(const float *logits, int64_t count, float temperature, int64_t key) {
    float largest = -INFINITY;
    int has_nan = 0;
#pragma omp simd reduction(max : largest) reduction(| : has_nan)
    for (int64_t i = 0; i < count; i++) {
        largest = logits[i] > largest ? logits[i] : largest;
        has_nan |= logits[i] != logits[i];
    }
    if (has_nan || !std::isfinite(largest)) return -1;
    int64_t token = std::find(logits, logits + count, largest) - logits;
    if (temperature <= 0) return token;

    const uint32_t low = uint32_t(key), high = uint32_t(uint64_t(key) >> 32);
    double best = gumbel(random_bits(low, high, uint32_t(token)));
    // Token i beats the best score so far, b, if E_i < e^(x_i − b) with x_i = (l_i − largest) / T, and E_i ≥ w_i. Most
    // blocks are therefore skipped by comparisons that the compiler can vectorize, without a logarithm.
    constexpr int BLOCK = 64;
    const float scale = 1.0f / temperature;
    for (int64_t first = 0; first < count; first += BLOCK) {
        const int n = int(std::min<int64_t>(BLOCK, count - first));
        const float *row = logits + first, bound = float(best) - 1e-3f;
        int may_beat = 0;
#pragma omp simd reduction(| : may_beat)
        for (int i = 0; i < n; i++) {
            const float w = (float(random_bits(low, high, uint32_t(first) + i)) + 0.5f) * (1.0f / 2147483648.0f);
            may_beat |= w < exp_((row[i] - largest) * scale - bound);
        }
        if (!may_beat) continue;
        for (int i = 0; i < n; i++) {
            const double x = (double(row[i]) - double(largest)) / double(temperature);
            if (x + 22.2 <= best) continue;  // no noise is larger
            const double score = x + gumbel(random_bits(low, high, uint32_t(first) + i));
            if (score > best) best = score, token = first + i;
        }
    }
    return token;
}

}  // namespace gossamer
