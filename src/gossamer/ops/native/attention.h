// Attention of a block of queries to all keys before them, as in FlashAttention; see attention.cpp.

#pragma once

#include <cmath>

#include "kernels.h"

namespace gossamer {

constexpr int QUERIES = 64;  // queries of a head in a block
constexpr int KEYS = 128;    // keys in a block
constexpr int FEW_ROWS = 4;  // with as few rows as this in a block, packing the values does not pay

struct AttentionLayout {
    int kv_heads, repeats, width;          // Hkv, query heads per key head, D
    int64_t q_stride, k_stride, v_stride;  // floats from one token to the next; the heads of a token are contiguous
    float scale;                           // of the scores
    int heads() const { return kv_heads * repeats; }
    int64_t out_stride() const { return int64_t(heads()) * width; }
};

// Gathers the rows of a block, for each of the repeats its n queries: to[r·n + i] = factor · from(token i, head r).
inline void gather_queries(float *to, const float *from, int64_t stride, const AttentionLayout &layout, int n,
                           float factor) {
    for (int r = 0; r < layout.repeats; r++)
        for (int i = 0; i < n; i++)
            scale_into(to + (int64_t(r) * n + i) * layout.width, factor, from + i * stride + r * layout.width,
                       layout.width);
}

// The number of keys from `key` on, out of `keys`, that row i of a block that begins at query `first` sees: all up to
// its own position.
inline int visible(int64_t first, int i, int64_t key, int keys) {
    const int64_t count = first + i + 1 - key;
    return static_cast<int>(count < 0 ? 0 : (count < keys ? count : keys));
}

// A head's keys and values, one after the other in memory; they are read `block` of them at a time.
struct ContiguousKeys {
    const float *k, *v;
    const AttentionLayout &layout;
    int block() const { return KEYS; }
    const float *keys(int64_t key) const { return k + key * layout.k_stride; }
    const float *values(int64_t key) const { return v + key * layout.v_stride; }
};

// A head's keys and values in pages of `size` tokens, which a table numbers; they are read a page at a time.
struct PagedKeys {
    const float *k, *v;
    const AttentionLayout &layout;
    const int64_t *table;
    int size;
    int block() const { return size; }
    const float *keys(int64_t key) const { return k + table[key / size] * size * layout.k_stride; }
    const float *values(int64_t key) const { return v + table[key / size] * size * layout.v_stride; }
};

// Attends from `n` queries of the heads that share a key head, the first at position `first`. lse may be null;
// otherwise it receives the logarithms of the sums of exponentials.
template <typename Keys>
void forward_block(const AttentionLayout &layout, const float *q, const Keys &past, int64_t first, int n, float *o,
                   float *lse) {
    const int D = layout.width, rows = layout.repeats * n;
    Scratch scratch(int64_t(rows) * (2 * D + KEYS + 2));
    float *Q = scratch.allocate(int64_t(rows) * D), *O = scratch.allocate(int64_t(rows) * D),
          *S = scratch.allocate(int64_t(rows) * KEYS), *row_max = scratch.allocate(rows), *sum = scratch.allocate(rows);
    gather_queries(Q, q, layout.q_stride, layout, n, layout.scale);
    std::memset(O, 0, sizeof(float) * rows * D);
    for (int row = 0; row < rows; row++) row_max[row] = -INFINITY, sum[row] = 0.0f;
    for (int64_t key = 0; key < first + n; key += past.block()) {
        const int keys = static_cast<int>(std::min<int64_t>(past.block(), first + n - key));
        gemm(PLAIN, TRANSPOSED, rows, keys, D, Q, D, past.keys(key), layout.k_stride, S, KEYS);
        for (int row = 0; row < rows; row++) {
            float *s = S + int64_t(row) * KEYS;
            const int seen = visible(first, row % n, key, keys);
            float largest = row_max[row], added = 0.0f;
#pragma omp simd reduction(max : largest)
            for (int j = 0; j < seen; j++) largest = s[j] > largest ? s[j] : largest;
#pragma omp simd reduction(+ : added)
            for (int j = 0; j < seen; j++) {
                s[j] = exp_(s[j] - largest);
                added += s[j];
            }
            for (int j = seen; j < keys; j++) s[j] = 0.0f;
            if (largest > row_max[row]) {
                const float shrink = sum[row] == 0.0f ? 0.0f : exp_(row_max[row] - largest);
                scale_into(O + int64_t(row) * D, shrink, O + int64_t(row) * D, D);
                sum[row] *= shrink;
                row_max[row] = largest;
            }
            sum[row] += added;
        }
        if (rows <= FEW_ROWS) {  // packing the values would take as long as using them
            for (int row = 0; row < rows; row++)
                for (int j = 0; j < keys; j++)
                    add_scaled(O + int64_t(row) * D, S[int64_t(row) * KEYS + j],
                               past.values(key) + j * layout.v_stride, D);
        } else {
            gemm(PLAIN, PLAIN, rows, D, keys, S, KEYS, past.values(key), layout.v_stride, O, D, 1.0f, 1.0f);
        }
    }
    for (int r = 0; r < layout.repeats; r++)
        for (int i = 0; i < n; i++) {
            const int row = r * n + i;
            scale_into(o + i * layout.out_stride() + r * D, 1.0f / sum[row], O + int64_t(row) * D, D);
            if (lse) lse[i * layout.heads() + r] = row_max[row] + std::log(sum[row]);
        }
}

}  // namespace gossamer
