// Drafts of a multi-token-prediction head: what joins a token and a hidden state, the head's layer, the output head and
// the choice of a token, again and again, in one call from model/decode/drafts.py.

#include <cmath>
#include <numeric>

#include "layer.h"
#include "sample.h"

using namespace gossamer;

extern "C" {
void gossamer_decode_layers(float *x, const int64_t *layers, int64_t num_layers, const int64_t *step_metadata,
                            const int64_t *page_table, const float *frequencies, const float *final_norm,
                            int64_t num_sequences, int64_t max_pages, int64_t speculative, float eps);
void gossamer_small_linear(const float *x, const void *w, const float *scales, int64_t type, float *out, int64_t tokens,
                           int64_t rows, int64_t width);
void gossamer_sample_tokens(const float *logits, const float *temperatures, const int64_t *keys, int64_t *tokens,
                            int64_t rows, int64_t count);
}

namespace {

void norm_into(float *y, const float *x, const float *w, int64_t width, float eps) {
    const float n = 1.0f / std::sqrt(dot(x, x, int(width)) / width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) y[i] = x[i] * n * w[i];
}

// y = row `row` of a matrix of float32 or bfloat16.
void read_row(float *y, const void *matrix, int64_t type, int64_t row, int64_t width) {
    if (type == BFLOAT16)
        widen(y, static_cast<const BFloat16 *>(matrix) + row * width, width);
    else
        std::memcpy(y, static_cast<const float *>(matrix) + row * width, sizeof(float) * width);
}

}  // namespace

extern "C" {

// tokens [N, max_count]; of sequence n, `counts[n]` are written. next_token_ids [T] and hidden [T, width] belong to the
// T = Σ lengths positions; embedding [vocab, width] of float32 or bfloat16; fc [width, 2 width]; layer, step_metadata,
// page_table, frequencies and final_norm as in gossamer_decode_layers; lm_head [vocab, width]; temperatures [N];
// keys [N, max_count].
void gossamer_draft_tokens(int64_t *tokens, const int64_t *next_token_ids, const float *hidden, const void *embedding,
                           int64_t embedding_type, const float *embedding_norm, const float *hidden_norm,
                           const void *fc, const float *fc_scales, int64_t fc_type, const int64_t *layer,
                           const int64_t *step_metadata, const int64_t *page_table, const float *frequencies,
                           const float *final_norm, const void *lm_head, const float *lm_head_scales,
                           int64_t lm_head_type, int64_t vocab, const int64_t *counts, const float *temperatures,
                           const int64_t *keys, int64_t max_count, int64_t num_sequences, int64_t max_pages,
                           float eps) {
    const FlushSubnormals flush;
    const int64_t N = num_sequences, width = reinterpret_cast<const Layer *>(layer)->hidden_size;
    const int64_t *slots = step_metadata, *past = step_metadata + 2 * N, *lengths = step_metadata + 3 * N;
    const int64_t T = std::accumulate(lengths, lengths + N, int64_t(0));
    thread_local std::vector<float> joined, states, last, logits, group_temperatures;
    thread_local std::vector<int64_t> group, next_metadata, pages, group_keys, drafts;
    joined.resize(T * 2 * width), states.resize(T * width), last.resize(N * width), logits.resize(N * vocab);
    // The head at `count` positions of `sequences` sequences: its output is left in `states`.
    const auto forward = [&](const int64_t *ids, const float *from, const int64_t *metadata, const int64_t *page_tables,
                             int64_t count, int64_t sequences) {
        for (int64_t t = 0; t < count; t++) {
            float *input = joined.data() + t * 2 * width;
            read_row(input, embedding, embedding_type, ids[t], width);
            norm_into(input, input, embedding_norm, width, eps);
            norm_into(input + width, from + t * width, hidden_norm, width, eps);
        }
        gossamer_small_linear(joined.data(), fc, fc_scales, fc_type, states.data(), count, width, 2 * width);
        gossamer_decode_layers(states.data(), layer, 1, metadata, page_tables, frequencies, final_norm, sequences,
                               max_pages, 1, eps);
    };
    forward(next_token_ids, hidden, step_metadata, page_table, T, N);
    group.resize(N);  // the sequences whose hidden states lie in `last`
    int64_t end = 0;
    for (int64_t n = 0; n < N; n++) {
        group[n] = n, end += lengths[n];
        std::memcpy(last.data() + n * width, states.data() + (end - 1) * width, sizeof(float) * width);
    }
    for (int64_t index = 0; index < max_count; index++) {
        int64_t size = 0;  // of those in the group that want another draft
        for (size_t row = 0; row < group.size(); row++)
            if (counts[group[row]] > index) {
                if (size < int64_t(row))
                    std::memcpy(last.data() + size * width, last.data() + row * width, sizeof(float) * width);
                group[size++] = group[row];
            }
        group.resize(size);
        if (!size) return;
        if (index) {  // the head again, on its own output and the newest draft, a position further
            next_metadata.assign(4 * size, 0), pages.resize(size * max_pages), drafts.resize(size);
            for (int64_t row = 0; row < size; row++) {
                const int64_t n = group[row];
                drafts[row] = tokens[n * max_count + index - 1];
                next_metadata[row] = slots[n], next_metadata[2 * size + row] = past[n] + lengths[n] + index - 1;
                next_metadata[3 * size + row] = 1;
                std::memcpy(pages.data() + row * max_pages, page_table + n * max_pages, sizeof(int64_t) * max_pages);
            }
            forward(drafts.data(), last.data(), next_metadata.data(), pages.data(), size, size);
            std::memcpy(last.data(), states.data(), sizeof(float) * size * width);
        }
        gossamer_small_linear(last.data(), lm_head, lm_head_scales, lm_head_type, logits.data(), size, vocab, width);
        group_temperatures.resize(size), group_keys.resize(size), drafts.resize(size);
        for (int64_t row = 0; row < size; row++)
            group_temperatures[row] = temperatures[group[row]], group_keys[row] = keys[group[row] * max_count + index];
        gossamer_sample_tokens(logits.data(), group_temperatures.data(), group_keys.data(), drafts.data(), size, vocab);
        // Where no logit is finite there is no draft; any token will do, since it will not be accepted.
        for (int64_t row = 0; row < size; row++)
            tokens[group[row] * max_count + index] = std::max<int64_t>(drafts[row], 0);
    }
}

}  // extern "C"
