// Causal softmax attention within each document, forward and backward, without the score matrix in memory.
//
// As in FlashAttention (arXiv 2205.14135, 2307.08691), blocks of queries meet blocks of keys, the softmax is corrected
// when larger scores appear, and the backward pass recomputes the scores from the stored logarithms of the sums. The
// query heads that share a key head are rows of one product.

#include <omp.h>

#include "attention.h"

using namespace gossamer;

namespace {

// The tensors of one key head of a document in the backward pass, from the document's first token on. dq, dk and dv
// have the strides of contiguous tensors.
struct HeadGradient {
    const AttentionLayout &layout;
    const float *q, *k, *v, *o, *lse, *grad_o;
    int64_t length;
    float *dq, *dk, *dv;

    // Takes every block of queries with the blocks of keys between `from` and `to` (a multiple of KEYS, or the length),
    // in this order. It writes the queries' gradient dq, the keys' gradients dk and dv, or both.
    void compute(int64_t from, int64_t to, int64_t first_query, int64_t last_query, bool write_dq,
                 bool write_dk) const {
        const int D = layout.width, max_rows = layout.repeats * QUERIES;
        const int64_t out = layout.out_stride(), kv = int64_t(layout.kv_heads) * D;
        Scratch scratch(int64_t(max_rows) * (3 * D + 2 * KEYS + 2));
        float *Q = scratch.allocate(int64_t(max_rows) * D), *dO = scratch.allocate(int64_t(max_rows) * D),
              *dQ = scratch.allocate(int64_t(max_rows) * D), *P = scratch.allocate(int64_t(max_rows) * KEYS),
              *dP = scratch.allocate(int64_t(max_rows) * KEYS), *inner = scratch.allocate(max_rows),
              *log_sum = scratch.allocate(max_rows);
        for (int64_t t = from; write_dk && t < to; t++) {
            std::memset(dk + t * kv, 0, sizeof(float) * D);
            std::memset(dv + t * kv, 0, sizeof(float) * D);
        }
        for (int64_t first = first_query; first < last_query; first += QUERIES) {
            const int n = static_cast<int>(std::min<int64_t>(QUERIES, length - first)), rows = layout.repeats * n;
            gather_queries(Q, q + first * layout.q_stride, layout.q_stride, layout, n, layout.scale);
            gather_queries(dO, grad_o + first * out, out, layout, n, 1.0f);
            std::memset(dQ, 0, sizeof(float) * rows * D);
            for (int row = 0; row < rows; row++) {
                const int i = row % n, r = row / n;
                inner[row] = dot(dO + int64_t(row) * D, o + (first + i) * out + r * D, D);
                log_sum[row] = lse[(first + i) * layout.heads() + r];
            }
            for (int64_t key = from; key < std::min(to, first + n); key += KEYS) {
                const int keys = static_cast<int>(std::min<int64_t>(KEYS, first + n - key));
                const float *K = k + key * layout.k_stride, *V = v + key * layout.v_stride;
                gemm(PLAIN, TRANSPOSED, rows, keys, D, Q, D, K, layout.k_stride, P, KEYS);
                gemm(PLAIN, TRANSPOSED, rows, keys, D, dO, D, V, layout.v_stride, dP, KEYS);
                for (int row = 0; row < rows; row++) {
                    float *p = P + int64_t(row) * KEYS, *dp = dP + int64_t(row) * KEYS;
                    const int seen = visible(first, row % n, key, keys);
                    const float normalizer = log_sum[row], mean = inner[row];
#pragma omp simd
                    for (int j = 0; j < seen; j++) {
                        p[j] = exp_(p[j] - normalizer);
                        dp[j] = p[j] * (dp[j] - mean);
                    }
                    for (int j = seen; j < keys; j++) p[j] = dp[j] = 0.0f;
                }
                if (write_dk) {
                    gemm(TRANSPOSED, PLAIN, keys, D, rows, P, KEYS, dO, D, dv + key * kv, kv, 1.0f, 1.0f);
                    gemm(TRANSPOSED, PLAIN, keys, D, rows, dP, KEYS, Q, D, dk + key * kv, kv, 1.0f, 1.0f);
                }
                if (write_dq) gemm(PLAIN, PLAIN, rows, D, keys, dP, KEYS, K, layout.k_stride, dQ, D, 1.0f, 1.0f);
            }
            for (int r = 0; write_dq && r < layout.repeats; r++)
                for (int i = 0; i < n; i++)
                    scale_into(dq + (first + i) * out + r * D, layout.scale, dQ + (int64_t(r) * n + i) * D, D);
        }
    }
};

}  // namespace

extern "C" {

// q [tokens, H, D], k and v [tokens, Hkv, D] with their own strides between tokens; o [tokens, H, D] and lse [tokens,
// H] are contiguous.
void gossamer_attention(const float *q, const float *k, const float *v, const int64_t *lengths, float *o, float *lse,
                        int64_t documents, int64_t kv_heads, int64_t repeats, int64_t width, int64_t q_stride,
                        int64_t k_stride, int64_t v_stride) {
    const AttentionLayout layout{int(kv_heads), int(repeats), int(width), q_stride, k_stride, v_stride,
                                 1.0f / std::sqrt(float(width))};
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
    parallel_for<DYNAMIC>(int64_t(blocks.size()), true, [&](int64_t number) {
        const Block &block = blocks[number];
        const int64_t at = block.start + block.first;
        const int first_head = block.head * layout.repeats;
        const ContiguousKeys keys{k + block.start * k_stride + block.head * width,
                                  v + block.start * v_stride + block.head * width, layout};
        forward_block(layout, q + at * q_stride + first_head * width, keys, block.first, block.queries,
                      o + at * layout.out_stride() + first_head * width, lse + at * layout.heads() + first_head);
    });
}

// q and o [tokens, H, D]; k and v [pages, page_size, Hkv, D]; step_metadata [4, sequences]: slots, accepted, past,
// lengths; table [sequences, max_pages]. The queries of each sequence are the last `length` of its past + length
// positions.
void gossamer_paged_attention(const float *q, const float *k, const float *v, const int64_t *step_metadata,
                              const int64_t *table, float *o, int64_t sequences, int64_t max_pages, int64_t page_size,
                              int64_t kv_heads, int64_t repeats, int64_t width) {
    const int64_t stride = kv_heads * width;
    const AttentionLayout layout{int(kv_heads), int(repeats), int(width), stride * repeats, stride, stride,
                                 1.0f / std::sqrt(float(width))};
    const int64_t *past = step_metadata + 2 * sequences, *lengths = step_metadata + 3 * sequences;
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
    parallel_for<DYNAMIC>(int64_t(blocks.size()), !is_small(work / 4), [&](int64_t number) {
        const Block &block = blocks[number];
        const int64_t mine = block.at * layout.out_stride() + block.head * repeats * width;
        const PagedKeys keys{k + block.head * width, v + block.head * width, layout, table + block.sequence * max_pages,
                             int(page_size)};
        forward_block(layout, q + mine, keys, block.first, block.queries, o + mine, nullptr);
    });
}

// dq, dk and dv are contiguous. A thread takes a key head of a document. If there are too few of them for the threads,
// a task is instead the gradients of a block of keys or of a block of queries. That takes seven products instead of
// five and gives the same results to the last bit.
void gossamer_attention_backward(const float *q, const float *k, const float *v, const float *o, const float *lse,
                                 const float *grad_o, const int64_t *lengths, float *dq, float *dk, float *dv,
                                 int64_t documents, int64_t kv_heads, int64_t repeats, int64_t width, int64_t q_stride,
                                 int64_t k_stride, int64_t v_stride) {
    const AttentionLayout layout{int(kv_heads), int(repeats), int(width), q_stride, k_stride, v_stride,
                                 1.0f / std::sqrt(float(width))};
    std::vector<HeadGradient> heads;
    std::vector<double> work;
    int64_t at = 0;
    for (int64_t document = 0; document < documents; at += lengths[document++])
        for (int64_t head = 0; head < kv_heads; head++) {
            const int64_t first = head * repeats, mine = at * layout.out_stride() + first * width,
                          shared = at * kv_heads * width + head * width;
            heads.push_back({layout, q + at * q_stride + first * width, k + at * k_stride + head * width,
                             v + at * v_stride + head * width, o + mine, lse + at * layout.heads() + first,
                             grad_o + mine, lengths[document], dq + mine, dk + shared, dv + shared});
            work.push_back(double(lengths[document]) * double(lengths[document]));
        }
    struct Task {
        const HeadGradient *head;
        int64_t first_key, last_key, first_query, last_query;
        bool write_dq, write_dk;
        double work;
    };
    std::vector<Task> tasks;
    const bool whole_heads = imbalance(work, omp_get_max_threads()) <= 7.0 / 5.0;
    for (const HeadGradient &head : heads) {
        const int64_t length = head.length;
        if (whole_heads) {
            tasks.push_back({&head, 0, length, 0, length, true, true, double(length) * double(length)});
            continue;
        }
        for (int64_t key = 0; key < length; key += KEYS)
            tasks.push_back({&head, key, std::min(length, key + KEYS), key / QUERIES * QUERIES, length, false, true,
                             double(length - key)});
        for (int64_t query = 0; query < length; query += QUERIES)
            tasks.push_back({&head, 0, length, query, std::min(length, query + QUERIES), true, false,
                             double(query + QUERIES) * 3 / 8});
    }
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task &a, const Task &b) { return a.work > b.work; });
    parallel_for<DYNAMIC>(int64_t(tasks.size()), true, [&](int64_t number) {
        const Task &task = tasks[number];
        task.head->compute(task.first_key, task.last_key, task.first_query, task.last_query, task.write_dq,
                           task.write_dk);
    });
}

}  // extern "C"
