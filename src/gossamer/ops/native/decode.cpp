// Whole layers for the next few tokens of several sequences, in one parallel region: what a decoding step is made of.
//
// With few tokens a layer is a few hundred microseconds of reading weights, and as many calls from Python would cost
// more than that. The mathematics is that of model/, and model/decode/layers.py calls it. Threads meet at a barrier six
// times a layer; what is small (norms, the choice of experts) each computes for itself.

#include <algorithm>
#include <cmath>
#include <omp.h>

#include "attention.h"
#include "delta_step.h"
#include "layer.h"
#include "team.h"

using namespace gossamer;

namespace {

constexpr int UNIT = 16;   // rows of a matrix; a thread takes a number of units that lie side by side
constexpr int BLOCK = 64;  // rows whose products are held before they are used

// The tokens, whose they are, and where they lie in their texts.
struct Batch {
    int64_t num_sequences, num_tokens, max_pages;
    const int64_t *slots, *accepted, *past, *lengths, *page_table;
    bool speculative;  // the next step may forget them again
    std::vector<int64_t> starts;
};

// What all threads read and write.
struct Buffers {
    std::vector<float> projected;  // [q | k | v | z] of linear attention, or queries and their gates
    std::vector<float> projected_small;  // [b | a] of linear attention, or keys and values
    std::vector<float> mixer_output, logits, activations, cos, sin;
};

// One thread of the team, with what it alone reads and writes.
struct ThreadContext {
    Team *team;
    int thread;
    std::vector<float> normed, probabilities, weights;
    std::vector<const float *> rows;
    std::vector<int64_t> ids, order, offsets;
    // Its share of `count` units of work, one after the other: it reads memory that lies together.
    int64_t share_begin(int64_t count) const { return count * thread / team->threads; }
    int64_t share_end(int64_t count) const { return count * (thread + 1) / team->threads; }
};

void rms_norm(float *y, const float *x, const float *w, int64_t rows, int width, float eps) {
    for (int64_t row = 0; row < rows; row++, x += width, y += width) {
        const float n = 1.0f / std::sqrt(dot(x, x, width) / width + eps);
#pragma omp simd
        for (int i = 0; i < width; i++) y[i] = x[i] * n * w[i];
    }
}

void set_rows(std::vector<const float *> &rows, const float *x, int64_t count, int64_t width) {
    rows.resize(count);
    for (int64_t i = 0; i < count; i++) rows[i] = x + i * width;
}

// Rows from `first` up to `last`.
struct RowRange {
    int64_t first, last;
    int rows() const { return int(last - first); }
};

// This thread's rows of a matrix of `rows`.
RowRange rows_of(const ThreadContext &context, int64_t rows) {
    const int64_t units = (rows + UNIT - 1) / UNIT;
    return {context.share_begin(units) * UNIT, std::min(rows, context.share_end(units) * UNIT)};
}

// out [T, rows] = x Wᵀ + bias: this thread's share of the rows.
void linear(const ThreadContext &context, const Matrix &w, const float *bias, int64_t rows, int64_t width, float *out,
            int64_t ldo) {
    const std::vector<const float *> &x = context.rows;
    const RowRange mine = rows_of(context, rows);
    products(int(x.size()), mine.rows(), x.data(), w.from(mine.first, width), int(width), out + mine.first, ldo);
    for (size_t t = 0; bias && t < x.size(); t++)
        add_scaled(out + t * ldo + mine.first, 1.0f, bias + mine.first, mine.rows());
}

// x_t += in_t Wᵀ of a range of W's rows, for `count` vectors `in`; x_t lies at to(t).
template <typename To>
void add_products(const float *const *in, int64_t count, const Matrix &w, RowRange rows, int64_t width, To to) {
    float sums[4 * BLOCK];
    for (int64_t first = rows.first; first < rows.last; first += BLOCK) {
        const int n = int(std::min<int64_t>(BLOCK, rows.last - first));
        for (int64_t t = 0; t < count; t += 4) {
            const int group = int(std::min<int64_t>(4, count - t));
            products(group, n, in + t, w.from(first, width), int(width), sums, BLOCK);
            for (int i = 0; i < group; i++) add_scaled(to(t + i) + first, 1.0f, sums + i * BLOCK, n);
        }
    }
}

// x += in Wᵀ + bias: this thread's share of the rows.
void add_linear(const ThreadContext &context, const Matrix &w, const float *bias, int64_t rows, int64_t width,
                float *x) {
    const RowRange mine = rows_of(context, rows);
    const auto to = [&](int64_t t) { return x + t * rows; };
    add_products(context.rows.data(), int64_t(context.rows.size()), w, mine, width, to);
    for (size_t t = 0; bias && t < context.rows.size(); t++)
        add_scaled(to(t) + mine.first, 1.0f, bias + mine.first, mine.rows());
}

// Rotate dimension i against i + half for i < half.
void rotate(float *x, const float *cos, const float *sin, int half) {
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = b * cos[i] + a * sin[i];
    }
}

// All tokens of one sequence for one key head: norms, rotation, the new keys and values into their pages, attention and
// its gate. q [T, H, 2D], query before gate; kv [T, 2, Hkv, D].
void attend(const Layer &l, const Batch &batch, int64_t n, int64_t head, float *q, float *kv, float eps,
            const Buffers &buffers, float *mixer_output) {
    const int64_t H = l.num_attention_heads, D = l.head_dim, R = H / l.num_key_value_heads, row = l.key_value_dim();
    const int64_t first_token = batch.starts[n], length = batch.lengths[n];
    const int64_t *pages = batch.page_table + n * batch.max_pages;
    const int half = int(l.rotary_dim / 2);
    for (int64_t t = first_token; t < first_token + length; t++) {
        const float *cos = buffers.cos.data() + t * half, *sin = buffers.sin.data() + t * half;
        const int64_t position = batch.past[n] + t - first_token;
        const int64_t at = (pages[position / l.page_size] * l.page_size + position % l.page_size) * row + head * D;
        float *k = kv + t * 2 * row + head * D;
        rms_norm(l.k_pages + at, k, l.k_norm, 1, int(D), eps);
        rotate(l.k_pages + at, cos, sin, half);
        std::memcpy(l.v_pages + at, k + row, sizeof(float) * D);
        for (int64_t r = head * R; r < (head + 1) * R; r++) {
            float *query = q + (t * H + r) * 2 * D;
            rms_norm(query, query, l.q_norm, 1, int(D), eps);
            rotate(query, cos, sin, half);
        }
    }
    // Queries lie 2D apart for the sake of their gates; attention wants the heads of a token together.
    std::vector<float> queries(length * R * D);
    for (int64_t t = 0; t < length; t++)
        for (int64_t r = 0; r < R; r++)
            std::memcpy(queries.data() + (t * R + r) * D, q + ((first_token + t) * H + head * R + r) * 2 * D,
                        sizeof(float) * D);
    const AttentionLayout layout{int(l.num_key_value_heads), int(R), int(D), R * D, row, row,
                                 1.0f / std::sqrt(float(D))};
    const PagedKeys keys{l.k_pages + head * D, l.v_pages + head * D, layout, pages, int(l.page_size)};
    for (int64_t first = 0; first < length; first += QUERIES) {
        const int count = int(std::min<int64_t>(QUERIES, length - first));
        forward_block(layout, queries.data() + first * R * D, keys, batch.past[n] + first, count,
                      mixer_output + ((first_token + first) * H + head * R) * D, nullptr);
    }
    for (int64_t t = first_token; t < first_token + length; t++)
        for (int64_t r = head * R; r < (head + 1) * R; r++) {
            const float *gate = q + (t * H + r) * 2 * D + D;
            float *out = mixer_output + (t * H + r) * D;
#pragma omp simd
            for (int64_t d = 0; d < D; d++) out[d] *= sigmoid(gate[d]);
        }
}

// x += linear attention of the normed x, for this thread's share of each product and of the heads.
void linear_attention(const Layer &l, const Batch &batch, float eps, Buffers &buffers, ThreadContext &context,
                      float *x) {
    float *qkvz = buffers.projected.data(), *ba = buffers.projected_small.data(),
          *mixer_output = buffers.mixer_output.data();
    const int64_t heads = l.linear_num_key_heads, qkvz_dim = l.qkvz_dim(), ba_dim = 2 * l.linear_num_value_heads;
    const DeltaStepSizes sizes{int(heads), int(l.linear_num_value_heads / heads), int(l.linear_key_head_dim),
                    int(l.linear_value_head_dim), int(l.linear_conv_kernel_dim), int(l.max_step_tokens), eps};
    const DeltaState state{l.conv, l.recurrent, l.keys, l.updates, l.gates};
    linear(context, l.in_proj_qkvz, nullptr, qkvz_dim, l.hidden_size, qkvz, qkvz_dim);
    linear(context, l.in_proj_ba, nullptr, ba_dim, l.hidden_size, ba, ba_dim);
    context.team->arrive_and_wait();
    for (int64_t task = context.thread; task < batch.num_sequences * heads; task += context.team->threads) {
        const int64_t n = task / heads, first_token = batch.starts[n];
        const int head = int(task % heads), length = int(batch.lengths[n]);
        float *y = mixer_output + first_token * l.linear_value_dim();
        if (batch.speculative)
            step_head(sizes, state, batch.slots[n], int(batch.accepted[n]), length, head, qkvz + first_token * qkvz_dim,
                      ba + first_token * ba_dim, l.conv1d, l.A_log, l.dt_bias, l.norm, y);
        else
            step_head_final(sizes, state, batch.slots[n], length, head, qkvz + first_token * qkvz_dim,
                            ba + first_token * ba_dim, l.conv1d, l.A_log, l.dt_bias, l.norm, y);
    }
    context.team->arrive_and_wait();
    set_rows(context.rows, mixer_output, batch.num_tokens, l.linear_value_dim());
    add_linear(context, l.out_proj, nullptr, l.hidden_size, l.linear_value_dim(), x);
}

// x += full attention of the normed x, for this thread's share of each product and of the heads.
void full_attention(const Layer &l, const Batch &batch, float eps, Buffers &buffers, ThreadContext &context, float *x) {
    float *q = buffers.projected.data(), *kv = buffers.projected_small.data(),
          *mixer_output = buffers.mixer_output.data();
    const int64_t heads = l.num_key_value_heads, q_dim = 2 * l.query_dim(), kv_dim = l.key_value_dim();
    linear(context, l.q_proj, l.q_proj_bias, q_dim, l.hidden_size, q, q_dim);
    linear(context, l.k_proj, l.k_proj_bias, kv_dim, l.hidden_size, kv, 2 * kv_dim);
    linear(context, l.v_proj, l.v_proj_bias, kv_dim, l.hidden_size, kv + kv_dim, 2 * kv_dim);
    context.team->arrive_and_wait();
    for (int64_t task = context.thread; task < batch.num_sequences * heads; task += context.team->threads)
        attend(l, batch, task / heads, task % heads, q, kv, eps, buffers, mixer_output);
    context.team->arrive_and_wait();
    set_rows(context.rows, mixer_output, batch.num_tokens, l.query_dim());
    add_linear(context, l.o_proj, l.o_proj_bias, l.hidden_size, l.query_dim(), x);
}

// The token mixer: x += Mixer(Norm x).
void mix(const Layer &l, const Batch &batch, float eps, Buffers &buffers, ThreadContext &context, float *x) {
    rms_norm(context.normed.data(), x, l.input_layernorm, batch.num_tokens, int(l.hidden_size), eps);
    set_rows(context.rows, context.normed.data(), batch.num_tokens, l.hidden_size);
    if (l.in_proj_qkvz)
        linear_attention(l, batch, eps, buffers, context, x);
    else
        full_attention(l, batch, eps, buffers, context, x);
    context.team->arrive_and_wait();
}

// From the router's logits of all tokens: which tokens each expert has, sorted by expert, and with what weight.
void route(const Layer &l, int64_t T, const float *logits, int64_t ldl, ThreadContext &context) {
    const int64_t E = l.num_experts, k = l.num_experts_per_tok;
    context.ids.resize(T * k), context.weights.resize(T * k), context.order.resize(T * k);
    context.probabilities.resize(2 * E);
    context.offsets.assign(E + 1, 0);
    float *p = context.probabilities.data(), *score = p + E;
    for (int64_t t = 0; t < T; t++) {
        const float *row = logits + t * ldl;
        float max = row[0], sum = 0.0f, top_k_sum = 0.0f;
        for (int64_t e = 1; e < E; e++) max = std::max(max, row[e]);
        for (int64_t e = 0; e < E; e++) sum += p[e] = exp_(row[e] - max);
        for (int64_t e = 0; e < E; e++)
            score[e] = p[e] / sum + (l.e_score_correction_bias ? l.e_score_correction_bias[e] : 0.0f);
        for (int64_t j = 0; j < k; j++) {
            const int64_t best = std::max_element(score, score + E) - score;
            context.ids[t * k + j] = best, context.weights[t * k + j] = p[best] / sum;
            top_k_sum += p[best] / sum;
            score[best] = -INFINITY;
        }
        for (int64_t j = 0; j < k; j++) {
            if (l.norm_topk_prob) context.weights[t * k + j] /= top_k_sum;
            context.offsets[context.ids[t * k + j] + 1]++;
        }
    }
    for (int64_t e = 0; e < E; e++) context.offsets[e + 1] += context.offsets[e];
    std::vector<int64_t> next(context.offsets.begin(), context.offsets.end() - 1);
    for (int64_t i = 0; i < T * k; i++) context.order[next[context.ids[i]]++] = i;
}

// activations[i] = weight_i · SiLU(G x_i) ⊙ U x_i for rows `first` to `first` + n of G and U.
void activate(const float *const *x, int count, const Matrix &gate, const Matrix &up, int64_t hidden, int n,
              const float *weights, float *activations, int64_t ld) {
    float g[4 * BLOCK], u[4 * BLOCK];
    for (int t = 0; t < count; t += 4) {
        const int group = std::min(4, count - t);
        products(group, n, x + t, gate, int(hidden), g, BLOCK);
        products(group, n, x + t, up, int(hidden), u, BLOCK);
        for (int i = 0; i < group; i++)
            for (int r = 0; r < n; r++) {
                const float open = g[i * BLOCK + r];
                activations[(t + i) * ld + r] = weights[t + i] * open * sigmoid(open) * u[i * BLOCK + r];
            }
    }
}

// The feed-forward part: x += FFN(Norm x).
void feed_forward(const Layer &l, const Batch &batch, float eps, Buffers &buffers, ThreadContext &context, float *x) {
    const int64_t T = batch.num_tokens, hidden = l.hidden_size, E = l.num_experts, k = l.num_experts_per_tok;
    const int64_t ldl = E + 1, I = l.moe_intermediate_size, J = l.shared_dim();
    float *activations = buffers.activations.data(), *shared_activations = activations + T * k * I;
    rms_norm(context.normed.data(), x, l.post_attention_layernorm, T, int(hidden), eps);
    set_rows(context.rows, context.normed.data(), T, hidden);
    std::vector<float> shared_weights(T, 1.0f);
    if (E) {
        linear(context, l.gate, nullptr, E, hidden, buffers.logits.data(), ldl);
        linear(context, l.shared_expert_gate, nullptr, 1, hidden, buffers.logits.data() + E, ldl);
        context.team->arrive_and_wait();
        route(l, T, buffers.logits.data(), ldl, context);
        for (int64_t t = 0; t < T; t++) shared_weights[t] = sigmoid(buffers.logits[t * ldl + E]);
    }
    // First products: rows of the shared expert, then of every expert that has tokens.
    std::vector<const float *> sorted(T * k);
    std::vector<float> weights(T * k);
    std::vector<int64_t> active;
    for (int64_t i = 0; i < T * k; i++) {
        sorted[i] = context.normed.data() + context.order[i] / k * hidden;
        weights[i] = context.weights[context.order[i]];
    }
    for (int64_t e = 0; e < E; e++)
        if (context.offsets[e] < context.offsets[e + 1]) active.push_back(e);
    const auto units_of = [](int64_t rows) { return (rows + UNIT - 1) / UNIT; };
    const int64_t all = units_of(J) + int64_t(active.size()) * units_of(I);
    int64_t before = 0;  // units of the experts seen so far
    const auto visit = [&](int64_t rows, auto work) {
        const int64_t last = std::min(rows, (context.share_end(all) - before) * UNIT);
        int64_t first = std::max<int64_t>(0, context.share_begin(all) - before) * UNIT;
        for (; first < last; first += BLOCK)
            work(first, int(std::min<int64_t>(BLOCK, last - first)));
        before += units_of(rows);
    };
    visit(J, [&](int64_t first, int n) {
        activate(context.rows.data(), int(T), l.gate_proj.from(first, hidden), l.up_proj.from(first, hidden), hidden, n,
                 shared_weights.data(), shared_activations + first, J);
    });
    for (const int64_t e : active)
        visit(I, [&](int64_t first, int n) {
            const int64_t from = context.offsets[e];
            const Matrix gate = l.experts_gate_up_proj.from(e * 2 * I + first, hidden), up = gate.from(I, hidden);
            activate(sorted.data() + from, int(context.offsets[e + 1] - from), gate, up, hidden, n,
                     weights.data() + from, activations + from * I + first, I);
        });
    context.team->arrive_and_wait();
    // Second products: each thread has a range of the result's rows, to which all experts add in the order of their
    // numbers.
    const RowRange mine = rows_of(context, hidden);
    set_rows(context.rows, shared_activations, T, J);
    add_products(context.rows.data(), T, l.down_proj, mine, J, [&](int64_t t) { return x + t * hidden; });
    for (const int64_t e : active) {
        const int64_t from = context.offsets[e], count = context.offsets[e + 1] - from;
        set_rows(context.rows, activations + from * I, count, I);
        add_products(context.rows.data(), count, l.experts_down_proj.from(e * hidden, I), mine, I,
                     [&](int64_t i) { return x + context.order[from + i] / k * hidden; });
    }
    context.team->arrive_and_wait();
}

// Numbers that a token's feed-forward part computes between its two products.
int64_t activations_of(const Layer &l) { return l.num_experts_per_tok * l.moe_intermediate_size + l.shared_dim(); }

// Makes room for what a pass of T tokens through these layers computes in between.
void resize(Buffers &buffers, const Layer *layers, int64_t num_layers, int64_t T) {
    const auto grow = [](std::vector<float> &v, int64_t size) { if (int64_t(v.size()) < size) v.resize(size); };
    for (const Layer *l = layers; l < layers + num_layers; l++) {
        grow(buffers.projected, T * std::max(l->qkvz_dim(), 2 * l->query_dim()));
        grow(buffers.projected_small, T * 2 * std::max(l->linear_num_value_heads, l->key_value_dim()));
        grow(buffers.mixer_output, T * std::max(l->linear_value_dim(), l->query_dim()));
        grow(buffers.logits, T * (l->num_experts + 1));
        grow(buffers.activations, T * activations_of(*l));
        grow(buffers.cos, T * l->rotary_dim / 2), grow(buffers.sin, T * l->rotary_dim / 2);
    }
}

}  // namespace

extern "C" {

// Writes what `Layer` consists of, "kind name" for each field, into `out`, which has room for `size` characters.
void gossamer_layer_fields(char *out, int64_t size) {
#define GOSSAMER_SIZE(name) "size " #name "\n"
#define GOSSAMER_WEIGHT(name) "weight " #name "\n"
#define GOSSAMER_MATRIX(name) "matrix " #name "\n"
#define GOSSAMER_STATE(name) "state " #name "\n"
    std::strncpy(out, GOSSAMER_LAYER(GOSSAMER_SIZE, GOSSAMER_WEIGHT, GOSSAMER_MATRIX, GOSSAMER_STATE), size_t(size));
}

// x [T, hidden] passes through all layers and the norm behind them, in place. `layers` holds `num_layers` of `Layer`;
// step_metadata [4, sequences]: slots, accepted, past, lengths; page_table [sequences, max_pages];
// frequencies [rotary_dim / 2] of the angles; final_norm [hidden], 1 + w. `accepted` is read only if the tokens are
// speculative.
void gossamer_decode_layers(float *x, const int64_t *layers, int64_t num_layers, const int64_t *step_metadata,
                            const int64_t *page_table, const float *frequencies, const float *final_norm,
                            int64_t num_sequences, int64_t max_pages, int64_t speculative, float eps) {
    const Layer *list = reinterpret_cast<const Layer *>(layers);
    Batch batch{num_sequences, 0, max_pages, step_metadata, step_metadata + num_sequences,
                step_metadata + 2 * num_sequences, step_metadata + 3 * num_sequences, page_table, speculative != 0,
                {0}};
    for (int64_t n = 0; n < num_sequences; n++) batch.starts.push_back(batch.num_tokens += batch.lengths[n]);
    const int64_t T = batch.num_tokens, hidden = list->hidden_size;
    int64_t half = 0, widest = 0;
    for (const Layer *l = list; l < list + num_layers; l++) {
        half = std::max(half, l->rotary_dim / 2);
        widest = std::max(widest, std::max(l->qkvz_dim(), 2 * l->query_dim()) + 3 * activations_of(*l));
    }
    thread_local Buffers own_buffers;
    Buffers &buffers = own_buffers;  // the calling thread's, for the whole team
    resize(buffers, list, num_layers, T);
    for (int64_t n = 0; n < num_sequences; n++)
        for (int64_t t = batch.starts[n]; t < batch.starts[n + 1]; t++)
            for (int64_t i = 0; i < half; i++) {
                const float angle = float(batch.past[n] + t - batch.starts[n]) * frequencies[i];
                buffers.cos[t * half + i] = std::cos(angle), buffers.sin[t * half + i] = std::sin(angle);
            }
    Team team;
#pragma omp parallel if (!is_small(T * hidden * widest / 4))
    {
        const FlushSubnormals flush;
#pragma omp single
        team.threads = omp_get_num_threads();
        thread_local ThreadContext context;
        context.team = &team, context.thread = omp_get_thread_num();
        context.normed.resize(T * hidden);
        for (const Layer *l = list; l < list + num_layers; l++) {
            mix(*l, batch, eps, buffers, context, x);
            feed_forward(*l, batch, eps, buffers, context, x);
        }
        for (int64_t t = context.thread; t < T; t += team.threads)
            rms_norm(x + t * hidden, x + t * hidden, final_norm, 1, int(hidden), eps);
    }
}

}  // extern "C"
