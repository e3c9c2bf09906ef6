// Drafts of a multi-token-prediction head: what joins a token and a hidden state, the head's layer, the output head and
// the choice of a token, again and again, in one call from Python (docs in ops/draft_tokens).

#include <cmath>
#include <numeric>

#include "draw.h"
#include "rows.h"

using namespace gossamer;

extern "C" {
void gossamer_decode_layers(float *x, const int64_t *layers, const int64_t *sizes, const int64_t *steps,
                            const int64_t *table, const float *frequencies, const float *final_norm, int64_t sequences,
                            int64_t most_pages, int64_t stay, float eps);
void gossamer_few_rows(const float *x, const void *w, const float *scales, float *out, int64_t tokens, int64_t rows,
                       int64_t width);
void gossamer_draw(const float *logits, const float *temperatures, const int64_t *keys, int64_t *tokens, int64_t rows,
                   int64_t count);
}

namespace {

void norm_into(float *y, const float *x, const float *w, int64_t width, float eps) {
    const float n = 1.0f / std::sqrt(dot(x, x, int(width)) / width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) y[i] = x[i] * n * w[i];
}

}  // namespace

extern "C" {

// tokens [sequences, most]; of sequence n `counts[n]` are written. following, hidden [T, width]: T = Σ lengths places;
// embedding [vocab, width]; joint [width, 2 width]; layers, sizes, steps, table, frequencies and final_norm as in
// gossamer_decode_layers; out [vocab, width]; temperatures [sequences]; keys [sequences, most].
void gossamer_draft_tokens(int64_t *tokens, const int64_t *following, const float *hidden, const float *embedding,
                           const float *embedding_norm, const float *hidden_norm, const void *joint,
                           const float *joint_scales, const int64_t *layers, const int64_t *sizes, const int64_t *steps,
                           const int64_t *table, const float *frequencies, const float *final_norm, const void *out,
                           const float *out_scales, int64_t vocab, const int64_t *counts, const float *temperatures,
                           const int64_t *keys, int64_t most, int64_t sequences, int64_t most_pages, float eps) {
    const FlushSubnormals flush;
    const int64_t N = sequences, width = sizes[1], *lengths = steps + 3 * N;
    const int64_t T = std::accumulate(lengths, lengths + N, int64_t(0));
    thread_local std::vector<float> joined, states, last, logits;
    thread_local std::vector<float> warmth;
    thread_local std::vector<int64_t> group, now, pages, seeds, made;
    joined.resize(T * 2 * width), states.resize(T * width), last.resize(N * width), logits.resize(N * vocab);
    const auto pass = [&](const int64_t *ids, const float *from, const int64_t *places, const int64_t *tables,
                          int64_t count, int64_t some) {
        for (int64_t t = 0; t < count; t++) {
            float *both = joined.data() + t * 2 * width;
            norm_into(both, embedding + ids[t] * width, embedding_norm, width, eps);
            norm_into(both + width, from + t * width, hidden_norm, width, eps);
        }
        gossamer_few_rows(joined.data(), joint, joint_scales, states.data(), count, width, 2 * width);
        gossamer_decode_layers(states.data(), layers, sizes, places, tables, frequencies, final_norm, some, most_pages, 0,
                               eps);
    };
    pass(following, hidden, steps, table, T, N);
    group.resize(N);
    int64_t end = 0;
    for (int64_t n = 0; n < N; n++) {
        group[n] = n, end += lengths[n];
        std::memcpy(last.data() + n * width, states.data() + (end - 1) * width, sizeof(float) * width);
    }
    for (int64_t place = 0; place < most; place++) {
        int64_t some = 0;  // of those that want another
        for (size_t row = 0; row < group.size(); row++)
            if (counts[group[row]] > place) {
                if (some < int64_t(row))
                    std::memcpy(last.data() + some * width, last.data() + row * width, sizeof(float) * width);
                group[some++] = group[row];
            }
        group.resize(some);
        if (!some) return;
        if (place) {  // the head's output and the newest draft, a place further
            now.assign(4 * some, 0), pages.resize(some * most_pages), made.resize(some);
            for (int64_t row = 0; row < some; row++) {
                const int64_t n = group[row];
                made[row] = tokens[n * most + place - 1];
                now[row] = steps[n], now[2 * some + row] = steps[2 * N + n] + lengths[n] + place - 1, now[3 * some + row] = 1;
                std::memcpy(pages.data() + row * most_pages, table + n * most_pages, sizeof(int64_t) * most_pages);
            }
            pass(made.data(), last.data(), now.data(), pages.data(), some, some);
            std::memcpy(last.data(), states.data(), sizeof(float) * some * width);
        }
        gossamer_few_rows(last.data(), out, out_scales, logits.data(), some, vocab, width);
        warmth.resize(some), seeds.resize(some), made.resize(some);
        for (int64_t row = 0; row < some; row++)
            warmth[row] = temperatures[group[row]], seeds[row] = keys[group[row] * most + place];
        gossamer_draw(logits.data(), warmth.data(), seeds.data(), made.data(), some, vocab);
        // One that was drawn from nothing is as good as any.
        for (int64_t row = 0; row < some; row++) tokens[group[row] * most + place] = std::max<int64_t>(made[row], 0);
    }
}

}  // extern "C"
