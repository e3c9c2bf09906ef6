// Whole layers for the next few tokens of several sequences, in one parallel region: what a decoding step is made of.
//
// With few tokens a layer is a few hundred microseconds of reading weights, and as many calls from Python would cost more
// than that. The mathematics is that of model/; docs in ops/decode_layers. Threads meet at a barrier six times a layer;
// what is small (norms, the choice of experts) each computes for itself.

#include <algorithm>
#include <cmath>
#include <omp.h>

#include "attention.h"
#include "delta_step.h"
#include "rows.h"
#include "team.h"

using namespace gossamer;

namespace {

constexpr int UNIT = 16;   // rows of a matrix, of which a thread takes a number in one piece
constexpr int BLOCK = 64;  // rows whose products are kept before they go on

// A layer as ops/decode_layers lists it: addresses and sizes, 8 bytes each. Of a linear layer the pages, of a layer of
// full attention the memory is not there.
struct Layer {
    const float *input_norm, *post_norm;  // 1 + w
    // linear attention
    Matrix qkvz, ba, linear_out;
    const float *conv_weight, *A_log, *dt_bias, *gated_norm;
    float *conv, *recurrent, *keys, *updates, *gates;
    // full attention; biases may be null
    Matrix q, k, v, o;
    const float *q_bias, *k_bias, *v_bias, *o_bias, *q_norm, *k_norm;
    float *k_pages, *v_pages;
    // feed-forward: router (null in a dense layer), experts, and the shared expert or dense network
    Matrix router;
    const float *router_bias;
    Matrix gate_up, down, shared_gate, gate, up, shared_down;
    int64_t shared_width;
};

struct Sizes {
    int64_t layers, hidden, heads, kv_heads, head_dim, rotary_half, key_heads, value_heads, key_dim, value_dim, taps, most,
        experts, chosen, width, renormalise, page_size;
};

// The tokens, whose they are, and where they lie in their texts.
struct Batch {
    int64_t sequences, tokens, most_pages;
    const int64_t *slots, *kept, *past, *lengths, *table;
    bool stay;  // no later step forgets any of them
    std::vector<int64_t> starts;
};

struct Shared {  // by all threads
    std::vector<float> projected, more, mixed, logits, acts, cos, sin;
};

struct Own {  // of a thread, number `thread` of its team
    Team *team;
    int thread;
    std::vector<float> normed, sums, weights;
    std::vector<const float *> rows;
    std::vector<int64_t> ids, order, offsets;
    // Of `count` pieces of work those that are this thread's, one after the other: it reads one stretch of memory.
    int64_t first_of(int64_t count) const { return count * thread / team->threads; }
    int64_t last_of(int64_t count) const { return count * (thread + 1) / team->threads; }
};

void rms_norm(float *y, const float *x, const float *w, int64_t rows, int width, float eps) {
    for (int64_t row = 0; row < rows; row++, x += width, y += width) {
        const float n = 1.0f / std::sqrt(dot(x, x, width) / width + eps);
#pragma omp simd
        for (int i = 0; i < width; i++) y[i] = x[i] * n * w[i];
    }
}

void point_at(std::vector<const float *> &rows, const float *x, int64_t count, int64_t width) {
    rows.resize(count);
    for (int64_t i = 0; i < count; i++) rows[i] = x + i * width;
}

// Rows from `first` up to `last`.
struct Stretch {
    int64_t first, last;
    int rows() const { return int(last - first); }
};

// This thread's stretch of a matrix of `rows`.
Stretch share(const Own &own, int64_t rows) {
    const int64_t units = (rows + UNIT - 1) / UNIT;
    return {own.first_of(units) * UNIT, std::min(rows, own.last_of(units) * UNIT)};
}

// out [T, rows] = x Wᵀ + bias: this thread's share of the rows.
void linear(const Own &own, const Matrix &w, const float *bias, int64_t rows, int64_t width, float *out, int64_t ldo) {
    const std::vector<const float *> &x = own.rows;
    const Stretch mine = share(own, rows);
    products(int(x.size()), mine.rows(), x.data(), w.from(mine.first, width), int(width), out + mine.first, ldo);
    for (size_t t = 0; bias && t < x.size(); t++)
        add_scaled(out + t * ldo + mine.first, 1.0f, bias + mine.first, mine.rows());
}

// x_t += in_t Wᵀ of a stretch of W's rows, for `count` vectors `in`; x_t lies at to(t).
template <typename To>
void add_products(const float *const *in, int64_t count, const Matrix &w, Stretch rows, int64_t width, To to) {
    float sums[4 * BLOCK];
    for (int64_t first = rows.first; first < rows.last; first += BLOCK) {
        const int n = int(std::min<int64_t>(BLOCK, rows.last - first));
        for (int64_t t = 0; t < count; t += 4) {
            const int some = int(std::min<int64_t>(4, count - t));
            products(some, n, in + t, w.from(first, width), int(width), sums, BLOCK);
            for (int i = 0; i < some; i++) add_scaled(to(t + i) + first, 1.0f, sums + i * BLOCK, n);
        }
    }
}

// x += in Wᵀ + bias: this thread's share of the rows.
void add_linear(const Own &own, const Matrix &w, const float *bias, int64_t rows, int64_t width, float *x) {
    const Stretch mine = share(own, rows);
    const auto to = [&](int64_t t) { return x + t * rows; };
    add_products(own.rows.data(), int64_t(own.rows.size()), w, mine, width, to);
    for (size_t t = 0; bias && t < own.rows.size(); t++)
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
void attend(const Layer &l, const Sizes &z, const Batch &batch, int64_t n, int64_t head, float *q, float *kv, float eps,
            const Shared &shared, float *mixed) {
    const int64_t D = z.head_dim, R = z.heads / z.kv_heads, row = z.kv_heads * D, length = batch.lengths[n];
    const int64_t *table = batch.table + n * batch.most_pages;
    const int half = int(z.rotary_half);
    for (int64_t t = batch.starts[n]; t < batch.starts[n] + length; t++) {
        const float *cos = shared.cos.data() + t * half, *sin = shared.sin.data() + t * half;
        const int64_t place = batch.past[n] + t - batch.starts[n];
        const int64_t at = (table[place / z.page_size] * z.page_size + place % z.page_size) * row + head * D;
        float *k = kv + t * 2 * row + head * D;
        rms_norm(l.k_pages + at, k, l.k_norm, 1, int(D), eps);
        rotate(l.k_pages + at, cos, sin, half);
        std::memcpy(l.v_pages + at, k + row, sizeof(float) * D);
        for (int64_t r = head * R; r < (head + 1) * R; r++) {
            float *one = q + (t * z.heads + r) * 2 * D;
            rms_norm(one, one, l.q_norm, 1, int(D), eps);
            rotate(one, cos, sin, half);
        }
    }
    // Queries lie 2D apart for the sake of their gates; attention wants the heads of a token together.
    std::vector<float> together(length * R * D);
    for (int64_t t = 0; t < length; t++)
        for (int64_t r = 0; r < R; r++)
            std::memcpy(together.data() + (t * R + r) * D, q + ((batch.starts[n] + t) * z.heads + head * R + r) * 2 * D,
                        sizeof(float) * D);
    const AttentionLayout layout{int(z.kv_heads), int(R), int(D), R * D, row, row, 1.0f / std::sqrt(float(D))};
    const InPages keys{l.k_pages + head * D, l.v_pages + head * D, layout, table, int(z.page_size)};
    for (int64_t first = 0; first < length; first += QUERIES) {
        const int some = int(std::min<int64_t>(QUERIES, length - first));
        forward_block(layout, together.data() + first * R * D, keys, batch.past[n] + first, some,
                      mixed + ((batch.starts[n] + first) * z.heads + head * R) * D, nullptr);
    }
    for (int64_t t = batch.starts[n]; t < batch.starts[n] + length; t++)
        for (int64_t r = head * R; r < (head + 1) * R; r++) {
            const float *gate = q + (t * z.heads + r) * 2 * D + D;
            float *out = mixed + (t * z.heads + r) * D;
#pragma omp simd
            for (int64_t d = 0; d < D; d++) out[d] *= sigmoid(gate[d]);
        }
}

void mix(const Layer &l, const Sizes &z, const Batch &batch, float eps, Shared &shared, Own &own, float *x) {
    const int64_t T = batch.tokens, hidden = z.hidden;
    float *projected = shared.projected.data(), *more = shared.more.data(), *mixed = shared.mixed.data();
    rms_norm(own.normed.data(), x, l.input_norm, T, int(hidden), eps);
    point_at(own.rows, own.normed.data(), T, hidden);
    if (l.qkvz) {
        const Step s{int(z.key_heads), int(z.value_heads / z.key_heads), int(z.key_dim), int(z.value_dim), int(z.taps),
                     int(z.most), eps};
        const Memory memory{l.conv, l.recurrent, l.keys, l.updates, l.gates};
        const int64_t wide = z.key_heads * s.projected();
        linear(own, l.qkvz, nullptr, wide, hidden, projected, wide);
        linear(own, l.ba, nullptr, 2 * z.value_heads, hidden, more, 2 * z.value_heads);
        own.team->meet();
        for (int64_t task = own.thread; task < batch.sequences * z.key_heads; task += own.team->threads) {
            const int64_t n = task / z.key_heads, at = batch.starts[n];
            const int head = int(task % z.key_heads), length = int(batch.lengths[n]);
            const float *qkvz = projected + at * wide, *ba = more + at * 2 * z.value_heads;
            float *y = mixed + at * z.value_heads * z.value_dim;
            if (batch.stay)
                step_head_for_good(s, memory, batch.slots[n], length, head, qkvz, ba, l.conv_weight, l.A_log, l.dt_bias,
                                   l.gated_norm, y);
            else
                step_head(s, memory, batch.slots[n], int(batch.kept[n]), length, head, qkvz, ba, l.conv_weight, l.A_log,
                          l.dt_bias, l.gated_norm, y);
        }
        own.team->meet();
        point_at(own.rows, mixed, T, z.value_heads * z.value_dim);
        add_linear(own, l.linear_out, nullptr, hidden, z.value_heads * z.value_dim, x);
    } else {
        const int64_t wide = 2 * z.heads * z.head_dim, kv = z.kv_heads * z.head_dim;
        linear(own, l.q, l.q_bias, wide, hidden, projected, wide);
        linear(own, l.k, l.k_bias, kv, hidden, more, 2 * kv);
        linear(own, l.v, l.v_bias, kv, hidden, more + kv, 2 * kv);
        own.team->meet();
        for (int64_t task = own.thread; task < batch.sequences * z.kv_heads; task += own.team->threads)
            attend(l, z, batch, task / z.kv_heads, task % z.kv_heads, projected, more, eps, shared, mixed);
        own.team->meet();
        point_at(own.rows, mixed, T, z.heads * z.head_dim);
        add_linear(own, l.o, l.o_bias, hidden, z.heads * z.head_dim, x);
    }
    own.team->meet();
}

// From the router's logits of all tokens: which tokens each expert has, sorted by expert, and with what weight.
void route(const Layer &l, const Sizes &z, int64_t T, const float *logits, int64_t ldl, Own &own) {
    const int64_t E = z.experts, k = z.chosen;
    own.ids.resize(T * k), own.weights.resize(T * k), own.order.resize(T * k), own.sums.resize(2 * E);
    own.offsets.assign(E + 1, 0);
    float *p = own.sums.data(), *score = p + E;
    for (int64_t t = 0; t < T; t++) {
        const float *row = logits + t * ldl;
        float most = row[0], sum = 0.0f, chosen = 0.0f;
        for (int64_t e = 1; e < E; e++) most = std::max(most, row[e]);
        for (int64_t e = 0; e < E; e++) sum += p[e] = exp_(row[e] - most);
        for (int64_t e = 0; e < E; e++) score[e] = p[e] / sum + (l.router_bias ? l.router_bias[e] : 0.0f);
        for (int64_t j = 0; j < k; j++) {
            const int64_t best = std::max_element(score, score + E) - score;
            own.ids[t * k + j] = best, own.weights[t * k + j] = p[best] / sum;
            chosen += p[best] / sum;
            score[best] = -INFINITY;
        }
        for (int64_t j = 0; j < k; j++) {
            if (z.renormalise) own.weights[t * k + j] /= chosen;
            own.offsets[own.ids[t * k + j] + 1]++;
        }
    }
    for (int64_t e = 0; e < E; e++) own.offsets[e + 1] += own.offsets[e];
    std::vector<int64_t> next(own.offsets.begin(), own.offsets.end() - 1);
    for (int64_t i = 0; i < T * k; i++) own.order[next[own.ids[i]]++] = i;
}

// acts[i] = weight_i · SiLU(G x_i) ⊙ U x_i for rows `first` to `first` + n of G and U.
void activate(const float *const *x, int count, const Matrix &gate, const Matrix &up, int64_t hidden, int n,
              const float *weights, float *acts, int64_t ld) {
    float g[4 * BLOCK], u[4 * BLOCK];
    for (int t = 0; t < count; t += 4) {
        const int some = std::min(4, count - t);
        products(some, n, x + t, gate, int(hidden), g, BLOCK);
        products(some, n, x + t, up, int(hidden), u, BLOCK);
        for (int i = 0; i < some; i++)
            for (int r = 0; r < n; r++) {
                const float open = g[i * BLOCK + r];
                acts[(t + i) * ld + r] = weights[t + i] * open * sigmoid(open) * u[i * BLOCK + r];
            }
    }
}

void feed_forward(const Layer &l, const Sizes &z, const Batch &batch, float eps, Shared &shared, Own &own, float *x) {
    const int64_t T = batch.tokens, hidden = z.hidden, E = l.router ? z.experts : 0, k = l.router ? z.chosen : 0;
    const int64_t ldl = z.experts + 1, I = z.width, J = l.shared_width;
    float *acts = shared.acts.data(), *shared_acts = acts + T * k * I;
    rms_norm(own.normed.data(), x, l.post_norm, T, int(hidden), eps);
    point_at(own.rows, own.normed.data(), T, hidden);
    std::vector<float> open(T, 1.0f);
    if (l.router) {
        linear(own, l.router, nullptr, E, hidden, shared.logits.data(), ldl);
        linear(own, l.shared_gate, nullptr, 1, hidden, shared.logits.data() + E, ldl);
        own.team->meet();
        route(l, z, T, shared.logits.data(), ldl, own);
        for (int64_t t = 0; t < T; t++) open[t] = sigmoid(shared.logits[t * ldl + E]);
    }
    // First products: rows of the shared expert, then of every expert that has tokens.
    std::vector<const float *> sorted(T * k);
    std::vector<float> weights(T * k);
    std::vector<int64_t> active;
    for (int64_t i = 0; i < T * k; i++) {
        sorted[i] = own.normed.data() + own.order[i] / k * hidden;
        weights[i] = own.weights[own.order[i]];
    }
    for (int64_t e = 0; e < E; e++)
        if (own.offsets[e] < own.offsets[e + 1]) active.push_back(e);
    const auto units_of = [](int64_t rows) { return (rows + UNIT - 1) / UNIT; };
    const int64_t all = units_of(J) + int64_t(active.size()) * units_of(I);
    int64_t before = 0;  // units of the experts seen so far
    const auto visit = [&](int64_t rows, auto work) {
        const int64_t last = std::min(rows, (own.last_of(all) - before) * UNIT);
        for (int64_t first = std::max<int64_t>(0, own.first_of(all) - before) * UNIT; first < last; first += BLOCK)
            work(first, int(std::min<int64_t>(BLOCK, last - first)));
        before += units_of(rows);
    };
    visit(J, [&](int64_t first, int n) {
        activate(own.rows.data(), int(T), l.gate.from(first, hidden), l.up.from(first, hidden), hidden, n, open.data(),
                 shared_acts + first, J);
    });
    for (const int64_t e : active)
        visit(I, [&](int64_t first, int n) {
            const int64_t from = own.offsets[e];
            const Matrix gate = l.gate_up.from(e * 2 * I + first, hidden), up = gate.from(I, hidden);
            activate(sorted.data() + from, int(own.offsets[e + 1] - from), gate, up, hidden, n, weights.data() + from,
                     acts + from * I + first, I);
        });
    own.team->meet();
    // Second products: each thread has a stretch of the result, to which all experts add in the order of their numbers.
    const Stretch mine = share(own, hidden);
    point_at(own.rows, shared_acts, T, J);
    add_products(own.rows.data(), T, l.shared_down, mine, J, [&](int64_t t) { return x + t * hidden; });
    for (const int64_t e : active) {
        const int64_t from = own.offsets[e], count = own.offsets[e + 1] - from;
        point_at(own.rows, acts + from * I, count, I);
        add_products(own.rows.data(), count, l.down.from(e * hidden, I), mine, I,
                     [&](int64_t i) { return x + own.order[from + i] / k * hidden; });
    }
    own.team->meet();
}

}  // namespace

extern "C" {

// x [T, hidden] passes through all layers in place. `layers` holds a `Layer` each, `sizes` the `Sizes`; steps [4,
// sequences]: slots, kept, past, lengths; table [sequences, most_pages]; angles' inverse frequencies [rotary_half];
// final_norm [hidden], 1 + w of the norm behind the layers. If the tokens `stay`, `kept` is not read.
void gossamer_decode_layers(float *x, const int64_t *layers, const int64_t *sizes, const int64_t *steps,
                            const int64_t *table, const float *frequencies, const float *final_norm, int64_t sequences,
                            int64_t most_pages, int64_t stay, float eps) {
    Sizes z;
    std::memcpy(&z, sizes, sizeof(z));
    const Layer *list = reinterpret_cast<const Layer *>(layers);
    Batch batch{sequences, 0, most_pages, steps, steps + sequences, steps + 2 * sequences, steps + 3 * sequences, table,
                stay != 0, {0}};
    for (int64_t n = 0; n < sequences; n++) batch.starts.push_back(batch.tokens += batch.lengths[n]);
    const int64_t T = batch.tokens;
    int64_t widest = 0;
    for (int64_t i = 0; i < z.layers; i++) widest = std::max(widest, z.chosen * z.width + list[i].shared_width);
    thread_local Shared shared;
    const auto room = [](std::vector<float> &v, int64_t size) { if (int64_t(v.size()) < size) v.resize(size); };
    const int64_t linear_wide = 2 * (z.key_heads * z.key_dim + z.value_heads * z.value_dim);
    room(shared.projected, T * std::max(linear_wide, 2 * z.heads * z.head_dim));
    room(shared.more, T * 2 * std::max(z.value_heads, z.kv_heads * z.head_dim));
    room(shared.mixed, T * std::max(z.value_heads * z.value_dim, z.heads * z.head_dim));
    room(shared.logits, T * (z.experts + 1));
    room(shared.acts, T * widest);
    room(shared.cos, T * z.rotary_half), room(shared.sin, T * z.rotary_half);
    for (int64_t n = 0; n < sequences; n++)
        for (int64_t t = batch.starts[n]; t < batch.starts[n + 1]; t++)
            for (int64_t i = 0; i < z.rotary_half; i++) {
                const float angle = float(batch.past[n] + t - batch.starts[n]) * frequencies[i];
                shared.cos[t * z.rotary_half + i] = std::cos(angle), shared.sin[t * z.rotary_half + i] = std::sin(angle);
            }
    Shared &everybodys = shared;
    Team team;
    const int64_t work = T * z.hidden * (linear_wide + 3 * widest);  // of a layer
#pragma omp parallel if (!is_small(work / 4))
    {
        const FlushSubnormals flush;
#pragma omp single
        team.threads = omp_get_num_threads();
        thread_local Own own;
        own.team = &team, own.thread = omp_get_thread_num();
        own.normed.resize(T * z.hidden);
        for (int64_t i = 0; i < z.layers; i++) {
            mix(list[i], z, batch, eps, everybodys, own, x);
            feed_forward(list[i], z, batch, eps, everybodys, own, x);
        }
        for (int64_t t = own.thread; t < T; t += team.threads)
            rms_norm(x + t * z.hidden, x + t * z.hidden, final_norm, 1, int(z.hidden), eps);
    }
}

// out [T, rows] = x [T, width] Wᵀ for few tokens; int8 if there are scales.
void gossamer_few_rows(const float *x, const void *w, const float *scales, float *out, int64_t tokens, int64_t rows,
                       int64_t width) {
    const Matrix matrix{w, scales};
    std::vector<const float *> vectors;
    point_at(vectors, x, tokens, width);
    parallel_for((rows + UNIT - 1) / UNIT, !is_small(rows * width / 4), [&](int64_t unit) {
        const int64_t first = unit * UNIT;
        products(int(tokens), int(std::min<int64_t>(UNIT, rows - first)), vectors.data(), matrix.from(first, width),
                 int(width), out + first, rows);
    });
}

}  // extern "C"
