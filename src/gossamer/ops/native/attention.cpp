// Causal softmax attention inside each document, forward and backward, without the score matrix in memory.
//
// As in FlashAttention (arXiv 2205.14135, 2307.08691): blocks of queries meet blocks of keys, the softmax is corrected as
// larger scores come, and the backward pass makes the scores again from the kept logarithms of the sums. The query heads
// that share a key head are rows of one product.

#include <cmath>

#include "kernels.h"

using namespace gossamer;

namespace {

constexpr int QUERIES = 64;  // of a head, in a block
constexpr int KEYS = 128;    // in a block
constexpr int FEW = 4;       // rows of a block

struct Layout {
    int kv_heads, repeats, width;          // Hkv, query heads a key head, D
    int64_t q_stride, k_stride, v_stride;  // floats from a token to the next; heads of a token lie together
    float scale;
    int heads() const { return kv_heads * repeats; }
    int64_t out_stride() const { return int64_t(heads()) * width; }
};

// Rows of a block: for each of the repeats its n queries. to[r·n + i] = factor · from(token i, head r).
void gather(float *to, const float *from, int64_t stride, const Layout &layout, int n, float factor) {
    for (int r = 0; r < layout.repeats; r++)
        for (int i = 0; i < n; i++)
            scale_into(to + (int64_t(r) * n + i) * layout.width, factor, from + i * stride + r * layout.width,
                       layout.width);
}

// Keys that row i of a block beginning at query `first` sees, of those from `key` on: all up to its own place.
int visible(int64_t first, int i, int64_t key, int keys) {
    const int64_t count = first + i + 1 - key;
    return static_cast<int>(count < 0 ? 0 : (count < keys ? count : keys));
}

// A head's keys and values, `block` of them at a time: one after the other in memory …
struct InARow {
    const float *k, *v;
    const Layout &layout;
    int block() const { return KEYS; }
    const float *keys(int64_t key) const { return k + key * layout.k_stride; }
    const float *values(int64_t key) const { return v + key * layout.v_stride; }
};

// … or in pages of `size` tokens, numbered by a table.
struct InPages {
    const float *k, *v;
    const Layout &layout;
    const int64_t *table;
    int size;
    int block() const { return size; }
    const float *keys(int64_t key) const { return k + table[key / size] * size * layout.k_stride; }
    const float *values(int64_t key) const { return v + table[key / size] * size * layout.v_stride; }
};

// `n` queries of the heads that share a key head, the first at place `first`. lse is written if there is room for it.
template <typename Keys>
void forward_block(const Layout &layout, const float *q, const Keys &past, int64_t first, int n, float *o, float *lse) {
    const int D = layout.width, rows = layout.repeats * n;
    Scratch scratch(int64_t(rows) * (2 * D + KEYS + 2));
    float *Q = scratch.take(int64_t(rows) * D), *O = scratch.take(int64_t(rows) * D),
          *S = scratch.take(int64_t(rows) * KEYS), *most = scratch.take(rows), *sum = scratch.take(rows);
    gather(Q, q, layout.q_stride, layout, n, layout.scale);
    std::memset(O, 0, sizeof(float) * rows * D);
    for (int row = 0; row < rows; row++) most[row] = -INFINITY, sum[row] = 0.0f;
    for (int64_t key = 0; key < first + n; key += past.block()) {
        const int keys = static_cast<int>(std::min<int64_t>(past.block(), first + n - key));
        gemm(PLAIN, TRANSPOSED, rows, keys, D, Q, D, past.keys(key), layout.k_stride, S, KEYS);
        for (int row = 0; row < rows; row++) {
            float *s = S + int64_t(row) * KEYS;
            const int seen = visible(first, row % n, key, keys);
            float larger = most[row], added = 0.0f;
#pragma omp simd reduction(max : larger)
            for (int j = 0; j < seen; j++) larger = s[j] > larger ? s[j] : larger;
#pragma omp simd reduction(+ : added)
            for (int j = 0; j < seen; j++) {
                s[j] = exp_(s[j] - larger);
                added += s[j];
            }
            for (int j = seen; j < keys; j++) s[j] = 0.0f;
            if (larger > most[row]) {
                const float shrink = sum[row] == 0.0f ? 0.0f : exp_(most[row] - larger);
                scale_into(O + int64_t(row) * D, shrink, O + int64_t(row) * D, D);
                sum[row] *= shrink;
                most[row] = larger;
            }
            sum[row] += added;
        }
        if (rows <= FEW) {  // packing the values would take as long as using them
            for (int row = 0; row < rows; row++)
                for (int j = 0; j < keys; j++)
                    add_scaled(O + int64_t(row) * D, S[int64_t(row) * KEYS + j], past.values(key) + j * layout.v_stride, D);
        } else {
            gemm(PLAIN, PLAIN, rows, D, keys, S, KEYS, past.values(key), layout.v_stride, O, D, 1.0f, 1.0f);
        }
    }
    for (int r = 0; r < layout.repeats; r++)
        for (int i = 0; i < n; i++) {
            const int row = r * n + i;
            scale_into(o + i * layout.out_stride() + r * D, 1.0f / sum[row], O + int64_t(row) * D, D);
            if (lse) lse[i * layout.heads() + r] = most[row] + std::log(sum[row]);
        }
}

// All of a document's queries that share one key head. dq, dk and dv have the strides of contiguous tensors.
void backward_head(const Layout &layout, const float *q, const float *k, const float *v, const float *o,
                   const float *lse, const float *grad_o, int64_t length, float *dq, float *dk, float *dv) {
    const int D = layout.width, most_rows = layout.repeats * QUERIES;
    const int64_t out = layout.out_stride(), kv = int64_t(layout.kv_heads) * D;
    Scratch scratch(int64_t(most_rows) * (3 * D + 2 * KEYS + 2));
    float *Q = scratch.take(int64_t(most_rows) * D), *dO = scratch.take(int64_t(most_rows) * D),
          *dQ = scratch.take(int64_t(most_rows) * D), *P = scratch.take(int64_t(most_rows) * KEYS),
          *dP = scratch.take(int64_t(most_rows) * KEYS), *inner = scratch.take(most_rows), *log_sum = scratch.take(most_rows);
    for (int64_t t = 0; t < length; t++) {
        std::memset(dk + t * kv, 0, sizeof(float) * D);
        std::memset(dv + t * kv, 0, sizeof(float) * D);
    }
    for (int64_t first = 0; first < length; first += QUERIES) {
        const int n = static_cast<int>(std::min<int64_t>(QUERIES, length - first)), rows = layout.repeats * n;
        gather(Q, q + first * layout.q_stride, layout.q_stride, layout, n, layout.scale);
        gather(dO, grad_o + first * out, out, layout, n, 1.0f);
        std::memset(dQ, 0, sizeof(float) * rows * D);
        for (int row = 0; row < rows; row++) {
            const int i = row % n, r = row / n;
            inner[row] = dot(dO + int64_t(row) * D, o + (first + i) * out + r * D, D);
            log_sum[row] = lse[(first + i) * layout.heads() + r];
        }
        for (int64_t key = 0; key < first + n; key += KEYS) {
            const int keys = static_cast<int>(std::min<int64_t>(KEYS, first + n - key));
            const float *K = k + key * layout.k_stride, *V = v + key * layout.v_stride;
            gemm(PLAIN, TRANSPOSED, rows, keys, D, Q, D, K, layout.k_stride, P, KEYS);
            gemm(PLAIN, TRANSPOSED, rows, keys, D, dO, D, V, layout.v_stride, dP, KEYS);
            for (int row = 0; row < rows; row++) {
                float *p = P + int64_t(row) * KEYS, *dp = dP + int64_t(row) * KEYS;
                const int seen = visible(first, row % n, key, keys);
                const float normaliser = log_sum[row], mean = inner[row];
#pragma omp simd
                for (int j = 0; j < seen; j++) {
                    p[j] = exp_(p[j] - normaliser);
                    dp[j] = p[j] * (dp[j] - mean);
                }
                for (int j = seen; j < keys; j++) p[j] = dp[j] = 0.0f;
            }
            gemm(TRANSPOSED, PLAIN, keys, D, rows, P, KEYS, dO, D, dv + key * kv, kv, 1.0f, 1.0f);
            gemm(TRANSPOSED, PLAIN, keys, D, rows, dP, KEYS, Q, D, dk + key * kv, kv, 1.0f, 1.0f);
            gemm(PLAIN, PLAIN, rows, D, keys, dP, KEYS, K, layout.k_stride, dQ, D, 1.0f, 1.0f);
        }
        for (int r = 0; r < layout.repeats; r++)
            for (int i = 0; i < n; i++)
                scale_into(dq + (first + i) * out + r * D, layout.scale, dQ + (int64_t(r) * n + i) * D, D);
    }
}

}  // namespace

extern "C" {

// q [tokens, H, D], k and v [tokens, Hkv, D] with their own strides between tokens; o [tokens, H, D] and lse [tokens, H]
// are contiguous.
void gossamer_attention(const float *q, const float *k, const float *v, const int64_t *lengths, float *o, float *lse,
                        int64_t documents, int64_t kv_heads, int64_t repeats, int64_t width, int64_t q_stride,
                        int64_t k_stride, int64_t v_stride) {
    const Layout layout{int(kv_heads), int(repeats), int(width), q_stride,
                        k_stride,      v_stride,     1.0f / std::sqrt(float(width))};
    struct Block {
        int64_t start, first;
        int queries, head;
    };
    std::vector<Block> blocks;
    int64_t start = 0;
    for (int64_t document = 0; document < documents; start += lengths[document++])
        for (int64_t first = 0; first < lengths[document]; first += QUERIES)
            for (int head = 0; head < layout.kv_heads; head++)
                blocks.push_back({start, first, int(std::min<int64_t>(QUERIES, lengths[document] - first)), head});
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t number = 0; number < blocks.size(); number++) {
        const Block &block = blocks[number];
        const int64_t at = block.start + block.first;
        const int first_head = block.head * layout.repeats;
        const InARow keys{k + block.start * k_stride + block.head * width, v + block.start * v_stride + block.head * width,
                          layout};
        forward_block(layout, q + at * q_stride + first_head * width, keys, block.first, block.queries,
                      o + at * layout.out_stride() + first_head * width, lse + at * layout.heads() + first_head);
    }
}

// q and o [tokens, H, D]; k and v [pages, page_size, Hkv, D]; steps [4, sequences]: slots, kept, past, lengths; table
// [sequences, most_pages]. Of each sequence the queries are the last `length` of its past + length places.
void gossamer_paged_attention(const float *q, const float *k, const float *v, const int64_t *steps,
                              const int64_t *table, float *o, int64_t sequences, int64_t most_pages, int64_t page_size,
                              int64_t kv_heads, int64_t repeats, int64_t width) {
    const int64_t stride = kv_heads * width;
    const Layout layout{int(kv_heads), int(repeats), int(width), stride * repeats,
                        stride,        stride,       1.0f / std::sqrt(float(width))};
    const int64_t *past = steps + 2 * sequences, *lengths = steps + 3 * sequences;
    struct Block {
        int64_t sequence, at, first;
        int queries, head;
    };
    std::vector<Block> blocks;
    int64_t start = 0, work = 0;
    for (int64_t n = 0; n < sequences; start += lengths[n++])
        for (int64_t i = 0; i < lengths[n]; i += QUERIES) {
            const int queries = int(std::min<int64_t>(QUERIES, lengths[n] - i));
            work += queries * (past[n] + i) * stride * repeats;
            for (int head = 0; head < kv_heads; head++) blocks.push_back({n, start + i, past[n] + i, queries, head});
        }
#pragma omp parallel for schedule(dynamic, 1) if (!is_small(work / 4))
    for (size_t number = 0; number < blocks.size(); number++) {
        const Block &block = blocks[number];
        const int64_t mine = block.at * layout.out_stride() + block.head * repeats * width;
        const InPages keys{k + block.head * width, v + block.head * width, layout, table + block.sequence * most_pages,
                           int(page_size)};
        forward_block(layout, q + mine, keys, block.first, block.queries, o + mine, nullptr);
    }
}

// dq, dk and dv are contiguous.
void gossamer_attention_backward(const float *q, const float *k, const float *v, const float *o, const float *lse,
                                 const float *grad_o, const int64_t *lengths, float *dq, float *dk, float *dv,
                                 int64_t documents, int64_t kv_heads, int64_t repeats, int64_t width, int64_t q_stride,
                                 int64_t k_stride, int64_t v_stride) {
    const Layout layout{int(kv_heads), int(repeats), int(width), q_stride,
                        k_stride,      v_stride,     1.0f / std::sqrt(float(width))};
    std::vector<int64_t> starts(1, 0);
    for (int64_t document = 0; document < documents; document++) starts.push_back(starts.back() + lengths[document]);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t task = 0; task < documents * kv_heads; task++) {
        const int64_t at = starts[task / kv_heads], head = task % kv_heads, first = head * repeats;
        const int64_t mine = at * layout.out_stride() + first * width, shared = at * kv_heads * width + head * width;
        backward_head(layout, q + at * q_stride + first * width, k + at * k_stride + head * width,
                      v + at * v_stride + head * width, o + mine, lse + at * layout.heads() + first, grad_o + mine,
                      lengths[task / kv_heads], dq + mine, dk + shared, dv + shared);
    }
}

}  // extern "C"
