// Implementation of small_linear.h, which is compiled once for all kernels, and the product as an operation of its own.

#include "small_linear.h"

#include <algorithm>
#include <utility>

namespace gossamer {

namespace {

// sum + a · b, rounded once where the processor can do so. The compiler would fuse some products and not others, and a
// token's last bits would then depend on how many tokens are decoded beside it.
inline Vector fused(const Vector &a, const Vector &b, const Vector &sum) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__) && defined(__AVX__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__aarch64__)
    return (Vector)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return sum + a * b;
#endif
}

// Loads the first `count` numbers and fills the rest of the vector with zeros.
template <typename Number>
inline Vector load_part(const Number *p, int count) {
    float lanes[LANES] = {};
    for (int i = 0; i < count; i++) lanes[i] = float(p[i]);
    return load(lanes);
}

// Sums a vector's lanes by halves: first lanes that are half a vector apart, then a quarter, and so on.
inline float fold(const Vector &sums) {
    float lanes[LANES];
    for (int i = 0; i < LANES; i++) lanes[i] = sums[i];
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
// Lane l of one step of `fold` on two vectors at once, numbered over both: in each block of 2·HALF lanes, the first
// HALF come from the first vector and the others from the second.
template <int HALF>
constexpr int picked(int l, int upper) {
    return l / (2 * HALF) * 2 * HALF + l % HALF + (l / HALF % 2) * LANES + upper * HALF;
}

template <int HALF, int... L>
inline Vector halved(const Vector &a, const Vector &b, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(a, b, picked<HALF>(L, 0)...) + __builtin_shufflevector(a, b, picked<HALF>(L, 1)...);
}

template <int HALF>
inline void halve(Vector *sums) {
    for (int i = 0; i < HALF; i++)
        sums[i] = halved<HALF>(sums[i], sums[i + HALF], std::make_integer_sequence<int, LANES>());
    if constexpr (HALF > 1) halve<HALF / 2>(sums);
}
#endif

// totals[i] = fold(sums[i]) for LANES vectors, by the same additions but on whole vectors.
inline Vector fold_all(Vector (&sums)[LANES]) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
    halve<LANES / 2>(sums);
    return sums[0];
#else
    Vector totals;
    for (int i = 0; i < LANES; i++) totals[i] = fold(sums[i]);
    return totals;
#endif
}

// Number of independent partial sums of a product. An addition waits about four cycles for the one before it, and with
// one sum of four lanes, or of eight for numbers of two bytes or one, a core would process weights more slowly than
// memory delivers them.
template <typename Number>
constexpr int CHAINS_OF = LANES < 8 ? 4 : sizeof(Number) < sizeof(float) ? 2 : 1;

// Rows that are traversed together if there are several vectors: a core needs eight independent sums, and what it has
// read of a vector should serve several rows. A single vector is multiplied by one row after the other, because a core
// prefetches one stream of memory much better than several.
constexpr int MAX_SIDE = LANES / 4;

// The same for numbers of this type: the sums of all chains should fit into the registers.
template <typename Number>
constexpr int SIDE_OF = LANES < 8 ? MAX_SIDE : MAX_SIDE / CHAINS_OF<Number>;

// out[t·ldo + r] = scale_r ⟨x_t, row r⟩ for TOKENS vectors of n floats and ROWS rows of n numbers, at most LANES
// results; SIDE rows are traversed together.
template <int TOKENS, int ROWS, int SIDE, typename Number>
inline void dots(const float *const *x, const Number *w, const float *scales, int n, float *out, int64_t ldo) {
    constexpr int CHAINS = CHAINS_OF<Number>;
    Vector sums[LANES] = {};
#pragma GCC unroll 16
    for (int first = 0; first < ROWS; first += SIDE) {
        const Number *rows = w + int64_t(first) * n;
        Vector chains[CHAINS][SIDE][TOKENS] = {};
        const auto add = [&](int p, int chain, auto read) {
#pragma GCC unroll 4
            for (int r = 0; r < SIDE; r++) {
                const Vector weights = read(rows + int64_t(r) * n + p);
#pragma GCC unroll 4
                for (int t = 0; t < TOKENS; t++)
                    chains[chain][r][t] = fused(read(x[t] + p), weights, chains[chain][r][t]);
            }
        };
        const auto whole = [](auto from) { return load(from); };
        int p = 0;
#pragma GCC unroll 4
        for (; p + CHAINS * LANES <= n; p += CHAINS * LANES)
#pragma GCC unroll 4
            for (int chain = 0; chain < CHAINS; chain++) add(p + chain * LANES, chain, whole);
        for (; CHAINS > 1 && p + LANES <= n; p += LANES) add(p, 0, whole);
        if (p < n) add(p, 0, [&](auto from) { return load_part(from, n - p); });
        for (int r = 0; r < SIDE; r++)
            for (int t = 0; t < TOKENS; t++) {
                Vector &sum = sums[t * ROWS + first + r];
                sum = chains[0][r][t];
                for (int chain = 1; chain < CHAINS; chain++) sum += chains[chain][r][t];
            }
    }
    alignas(sizeof(Vector)) float totals[LANES];
    if constexpr (TOKENS * ROWS > 1)
        *reinterpret_cast<Vector *>(totals) = fold_all(sums);
    else
        totals[0] = fold(sums[0]);
    for (int t = 0; t < TOKENS; t++) {
        float *total = totals + t * ROWS;
        for (int r = 0; scales && r < ROWS; r++) total[r] *= scales[r];
        std::memcpy(out + t * ldo, total, sizeof(float) * ROWS);
    }
}

template <int ROWS, typename Number>
inline void dots_of(int tokens, const float *const *x, const Number *w, const float *scales, int n, float *out,
                    int64_t ldo) {
    constexpr int SIDE = std::min(ROWS, SIDE_OF<Number>);
    if constexpr (4 * ROWS <= LANES)
        for (; tokens >= 4; tokens -= 4, x += 4, out += 4 * ldo) dots<4, ROWS, SIDE>(x, w, scales, n, out, ldo);
    if constexpr (3 * ROWS <= LANES)
        if (tokens == 3) dots<3, ROWS, SIDE>(x, w, scales, n, out, ldo);
    if constexpr (2 * ROWS <= LANES)
        if (tokens == 2) dots<2, ROWS, SIDE>(x, w, scales, n, out, ldo);
    if (tokens == 1) dots<1, ROWS, 1>(x, w, scales, n, out, ldo);
}

template <typename Number>
inline void products_of(int tokens, int rows, const float *const *x, const Number *w, const float *scales, int n,
                        float *out, int64_t ldo) {
    const auto pass = [&](auto count) {
        constexpr int ROWS = decltype(count)::value;
        for (; rows >= ROWS; rows -= ROWS, w += ROWS * int64_t(n), out += ROWS) {
            dots_of<ROWS>(tokens, x, w, scales, n, out, ldo);
            if (scales) scales += ROWS;
        }
    };
    if (tokens == 1) pass(std::integral_constant<int, LANES>());
    if (tokens == 2) pass(std::integral_constant<int, LANES / 2>());
    pass(std::integral_constant<int, MAX_SIDE>());
    pass(std::integral_constant<int, 1>());
}

}  // namespace

// out[t·ldo + r] += ⟨A x_t, row r of B⟩. The thin product A x_t costs each caller a few rows more.
static void add_low_rank(int tokens, int rows, const float *const *x, const Matrix &w, int n, float *out, int64_t ldo) {
    if (!rows) return;
    constexpr int GROUP = 4;
    const int rank = int(w.rank);
    const float *A = w.A + w.row / w.stack_rows * rank * n;
    thread_local std::vector<float> thin, sums;
    if (int64_t(thin.size()) < GROUP * rank) thin.resize(GROUP * rank);
    if (int64_t(sums.size()) < int64_t(GROUP) * rows) sums.resize(int64_t(GROUP) * rows);
    for (int first = 0; first < tokens; first += GROUP) {
        const int count = std::min(GROUP, tokens - first);
        products_of(count, rank, x + first, A, nullptr, n, thin.data(), rank);
        const float *vectors[GROUP];
        for (int t = 0; t < count; t++) vectors[t] = thin.data() + int64_t(t) * rank;
        products_of(count, rows, vectors, w.B, nullptr, rank, sums.data(), rows);
        for (int t = 0; t < count; t++)
            add_scaled(out + int64_t(first + t) * ldo, 1.0f, sums.data() + int64_t(t) * rows, rows);
    }
}

void products(int tokens, int rows, const float *const *x, const Matrix &w, int n, float *out, int64_t ldo) {
    if (w.type == INT8)
        products_of(tokens, rows, x, static_cast<const int8_t *>(w.values), w.scales, n, out, ldo);
    else if (w.type == BFLOAT16)
        products_of(tokens, rows, x, static_cast<const BFloat16 *>(w.values), nullptr, n, out, ldo);
    else
        products_of(tokens, rows, x, static_cast<const float *>(w.values), nullptr, n, out, ldo);
    if (w.A) add_low_rank(tokens, rows, x, w, n, out, ldo);
}

}  // namespace gossamer

using namespace gossamer;

extern "C" {

// out [T, rows] = x [T, width] Wᵀ for few tokens; w, scales and type as in `Matrix`.
void gossamer_small_linear(const float *x, const void *w, const float *scales, int64_t type, float *out, int64_t tokens,
                           int64_t rows, int64_t width) {
    constexpr int UNIT = 16;  // rows in a task
    const Matrix matrix{w, scales, type};
    std::vector<const float *> vectors(tokens);
    for (int64_t t = 0; t < tokens; t++) vectors[t] = x + t * width;
    parallel_for((rows + UNIT - 1) / UNIT, !is_small(rows * width / 4), [&](int64_t task) {
        const int64_t first = task * UNIT;
        products(int(tokens), int(std::min<int64_t>(UNIT, rows - first)), vectors.data(), matrix.from(first, width),
                 int(width), out + first, rows);
    });
}

}  // extern "C"
