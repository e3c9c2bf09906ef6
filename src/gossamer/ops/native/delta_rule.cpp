// The gated delta rule, forward and backward: which thread computes which chunk and when. A chunk is in delta_chunk.h.
//
// If there are enough documents and heads for all threads, a thread takes one key head of one document and walks
// through its chunks, so that everything about a chunk stays in its cache. Otherwise (one long document on many cores)
// the chunks are computed in rounds: the first and the last parts of a round's chunks run in parallel, and in between
// the state passes through them, in parallel over value heads and columns. Both ways do the same arithmetic in the same
// order, so the number of threads does not change a single bit of the result.
//
// Only the state before each chunk is saved for the backward pass, which recomputes the rest.

#include <omp.h>

#include "delta_chunk.h"

using namespace gossamer;

namespace {

// Cost of rounds relative to walks: they store results between their parts, and more threads have to make up for it.
constexpr double ROUNDS_COST = 1.15;
constexpr int CHUNKS_PER_THREAD = 3;  // chunks of a key head that a thread takes in a round

// A document's number, first token and length, the number of chunks before it, and the number of its chunks.
struct Document {
    int64_t index, start, length, first_chunk, chunks;
};

std::vector<Document> documents_of(const int64_t *lengths, int64_t documents, int chunk) {
    std::vector<Document> result;
    int64_t start = 0, first = 0;
    for (int64_t i = 0; i < documents; i++) {
        const int64_t chunks = (lengths[i] + chunk - 1) / chunk;
        result.push_back({i, start, lengths[i], first, chunks});
        start += lengths[i];
        first += chunks;
    }
    return result;
}

// A chunk of a document: its first token and its number, both counted over all documents, and its number of tokens n.
struct Place {
    int64_t token, number;
    int n;
};

Place place_of(const Document &document, int64_t chunk, int C) {
    const int64_t left = document.length - chunk * C;
    return {document.start + chunk * C, document.first_chunk + chunk, static_cast<int>(left < C ? left : C)};
}

// Consecutive chunks of a document, and the index of the first of them among the chunks of their round.
struct Run {
    int64_t document;
    std::vector<Place> chunks;
    int first;
};

// Chunks that are computed in parallel; they include at most one run of each document.
struct Round {
    std::vector<Run> runs;
    std::vector<Place> chunks;
};

std::vector<Round> rounds_of(const std::vector<Document> &documents, int round_size, int C) {
    std::vector<Round> rounds;
    for (const Document &document : documents)
        for (int64_t chunk = 0; chunk < document.chunks;) {
            if (rounds.empty() || int(rounds.back().chunks.size()) == round_size) rounds.emplace_back();
            Round &round = rounds.back();
            Run run{document.index, {}, int(round.chunks.size())};
            for (; chunk < document.chunks && int(round.chunks.size()) < round_size; chunk++) {
                run.chunks.push_back(place_of(document, chunk, C));
                round.chunks.push_back(run.chunks.back());
            }
            round.runs.push_back(run);
        }
    return rounds;
}

// The number of columns of a state that one thread carries, if `heads` states are carried at the same time. They are
// whole panels of a product, so that the results are those of a single product.
int columns_per_task(int value_dim, int64_t heads, int threads) {
    const int64_t parts = std::max<int64_t>(1, 2 * threads / heads);
    const int64_t columns = (value_dim + parts - 1) / parts;
    return int((columns + COLUMNS - 1) / COLUMNS * COLUMNS);
}

// The order of a pass: walks or rounds.
struct PassPlan {
    std::vector<Document> documents;  // longest first
    std::vector<Round> rounds;        // empty for walks
    int round_size = 0;               // the largest number of chunks in a round

    PassPlan(const ChunkShape &shape, const int64_t *lengths, int64_t count)
        : documents(documents_of(lengths, count, shape.chunk)) {
        const int threads = omp_get_max_threads();
        std::stable_sort(documents.begin(), documents.end(),
                         [](const Document &a, const Document &b) { return a.length > b.length; });
        std::vector<double> walks;
        for (const Document &document : documents) walks.insert(walks.end(), shape.key_heads, double(document.chunks));
        if (imbalance(walks, threads) <= ROUNDS_COST) return;
        round_size = std::max(1, CHUNKS_PER_THREAD * threads / shape.key_heads);
        rounds = rounds_of(documents, round_size, shape.chunk);
    }
};

// The input tensors of a pass, and the positions of a head's share of a chunk in them.
struct Inputs {
    const ChunkShape shape;
    const float *q, *k, *v, *g, *beta;
    const float *q_at(const Place &place, int head) const {
        return q + place.token * shape.q_stride + head * shape.key_dim;
    }
    const float *k_at(const Place &place, int head) const {
        return k + place.token * shape.k_stride + head * shape.key_dim;
    }
    const float *v_at(const Place &place, int value_head) const {
        return v + place.token * shape.v_stride + value_head * shape.value_dim;
    }
    int64_t gate(const Place &place, int value_head) const { return place.token * shape.value_heads() + value_head; }
    int64_t values(const Place &place, int value_head) const { return gate(place, value_head) * shape.value_dim; }
    // The offset of a value head's state among those of all documents, or of all chunks.
    int64_t state(int64_t number, int value_head) const {
        return (number * shape.value_heads() + value_head) * shape.state_size();
    }
    void set(Chunk &chunk, const Keys &keys, const Place &place, int value_head) const {
        const int64_t at = gate(place, value_head);
        chunk.set(g + at, beta + at, shape.value_heads(), keys.KK, place.n, shape.chunk);
    }
};

struct ForwardPass {
    const Inputs in;
    float *o, *state, *states;  // state [documents, Hv, dk, dv] is first initial, then final; states as in the kernel
    int64_t out_stride() const { return int64_t(in.shape.value_heads()) * in.shape.value_dim; }

    void walk(const Document &document, int head) const {
        const ChunkShape &shape = in.shape;
        Scratch scratch(Keys::floats(shape) + Chunk::floats(shape) + Link::floats(shape) + shape.keys() +
                        shape.state_size());
        Keys keys(scratch, shape);
        Chunk chunk(scratch, shape.chunk);
        Link link(scratch, shape);
        float *Kc = scratch.allocate(shape.keys()), *own = scratch.allocate(shape.state_size());
        for (int64_t number = 0; number < document.chunks; number++) {
            const Place place = place_of(document, number, shape.chunk);
            keys.set(shape, in.q_at(place, head), in.k_at(place, head), place.n);
            for (int h = head * shape.repeats; h < (head + 1) * shape.repeats; h++) {
                float *before = states ? states + in.state(place.number, h) : own;
                in.set(chunk, keys, place, h);
                link.prepare(shape, keys, chunk, in.v_at(place, h), place.n, Kc);
                link.carry(shape, state + in.state(document.index, h), before, place.n, 0, shape.value_dim);
                link.output(shape, before, o + in.values(place, h), out_stride(), place.n);
            }
        }
    }

    void run_in_rounds(const std::vector<Round> &rounds, int round_size) const {
        const ChunkShape &shape = in.shape;
        const int Hv = shape.value_heads();
        const size_t link_size = Link::floats(shape) + (states ? 0 : shape.state_size() + PADDING);
        Block block(link_size * round_size * Hv);
        Scratch memory(block.floats());
        std::vector<Link> links;
        std::vector<float *> befores;
        for (int i = 0; i < round_size * Hv; i++) {
            links.emplace_back(memory, shape);
            befores.push_back(states ? nullptr : memory.allocate(shape.state_size()));
        }
        auto before = [&](const Place &place, int number, int h) {
            return states ? states + in.state(place.number, h) : befores[number * Hv + h];
        };
#pragma omp parallel
        {
            const FlushSubnormals flush;
            for (const Round &round : rounds) {
                const int chunks = int(round.chunks.size()), carried = int(round.runs.size()) * Hv;
#pragma omp for schedule(dynamic, 1)
                for (int task = 0; task < chunks * shape.key_heads; task++) {
                    const int number = task / shape.key_heads, head = task % shape.key_heads;
                    const Place &place = round.chunks[number];
                    Scratch scratch(Keys::floats(shape) + Chunk::floats(shape) + shape.keys());
                    Keys keys(scratch, shape);
                    Chunk chunk(scratch, shape.chunk);
                    float *Kc = scratch.allocate(shape.keys());
                    keys.set(shape, in.q_at(place, head), in.k_at(place, head), place.n);
                    for (int h = head * shape.repeats; h < (head + 1) * shape.repeats; h++) {
                        in.set(chunk, keys, place, h);
                        links[number * Hv + h].prepare(shape, keys, chunk, in.v_at(place, h), place.n, Kc);
                    }
                }
                const int columns = columns_per_task(shape.value_dim, carried, omp_get_num_threads());
                const int parts = (shape.value_dim + columns - 1) / columns;
#pragma omp for schedule(dynamic, 1)
                for (int task = 0; task < carried * parts; task++) {
                    const Run &run = round.runs[task / (Hv * parts)];
                    const int h = task / parts % Hv, from = task % parts * columns;
                    float *S = state + in.state(run.document, h);
                    for (size_t i = 0; i < run.chunks.size(); i++) {
                        const int number = run.first + int(i);
                        links[number * Hv + h].carry(shape, S, before(run.chunks[i], number, h), run.chunks[i].n, from,
                                                     std::min(shape.value_dim, from + columns));
                    }
                }
#pragma omp for schedule(dynamic, 1)
                for (int task = 0; task < chunks * Hv; task++) {
                    const int number = task / Hv, h = task % Hv;
                    const Place &place = round.chunks[number];
                    links[task].output(shape, before(place, number, h), o + in.values(place, h), out_stride(), place.n);
                }
            }
        }
    }
};

struct BackwardPass {
    const Inputs in;
    const float *states, *grad_o;
    float *dstate, *dq, *dk, *dv, *dg, *dbeta;  // dstate [documents, Hv, dk, dv] is first that of the final states
    int64_t out_stride() const { return int64_t(in.shape.value_heads()) * in.shape.value_dim; }

    // The tensors of one value head in a chunk.
    struct Head {
        Chunk chunk;
        Link link;
        LinkGradients grads;
        static size_t floats(const ChunkShape &shape) {
            return Chunk::floats(shape) + Link::floats(shape) + LinkGradients::floats(shape);
        }
        Head(Scratch &scratch, const ChunkShape &shape)
            : chunk(scratch, shape.chunk), link(scratch, shape), grads(scratch, shape) {}
    };

    void prepare(const Keys &keys, Head &head, const Place &place, int h, float *Kc) const {
        in.set(head.chunk, keys, place, h);
        head.link.prepare(in.shape, keys, head.chunk, in.v_at(place, h), place.n, Kc);
        head.grads.prepare(in.shape, head.link, states + in.state(place.number, h), grad_o + in.values(place, h),
                           out_stride(), place.n);
    }

    void carry(Head &head, const Place &place, int64_t document, int h, int from, int to) const {
        head.grads.carry(in.shape, head.link, grad_o + in.values(place, h), out_stride(),
                         dstate + in.state(document, h), place.n, from, to);
    }

    void add(KeyGradients &sums, const Keys &keys, const Head &head, const Place &place, int h) const {
        const int64_t gate = in.gate(place, h);
        sums.add(in.shape, keys, head.chunk, head.link, head.grads, states + in.state(place.number, h),
                 in.v_at(place, h), dv + in.values(place, h), dg + gate, dbeta + gate, place.n);
    }

    void finish(KeyGradients &sums, const Keys &keys, const Place &place, int head) const {
        const int64_t at = (place.token * in.shape.key_heads + head) * in.shape.key_dim;
        sums.finish(in.shape, keys, in.q_at(place, head), in.k_at(place, head), dq + at, dk + at, place.n);
    }

    void walk(const Document &document, int head) const {
        const ChunkShape &shape = in.shape;
        Scratch scratch(Keys::floats(shape) + Head::floats(shape) + KeyGradients::floats(shape) + shape.keys());
        Keys keys(scratch, shape);
        Head own(scratch, shape);
        KeyGradients sums(scratch, shape);
        float *Kc = scratch.allocate(shape.keys());
        for (int64_t number = document.chunks - 1; number >= 0; number--) {
            const Place place = place_of(document, number, shape.chunk);
            keys.set(shape, in.q_at(place, head), in.k_at(place, head), place.n);
            sums.clear(shape);
            for (int h = head * shape.repeats; h < (head + 1) * shape.repeats; h++) {
                prepare(keys, own, place, h, Kc);
                carry(own, place, document.index, h, 0, shape.value_dim);
                add(sums, keys, own, place, h);
            }
            finish(sums, keys, place, head);
        }
    }

    void run_in_rounds(const std::vector<Round> &rounds, int round_size) const {
        const ChunkShape &shape = in.shape;
        const int Hk = shape.key_heads, Hv = shape.value_heads(), R = shape.repeats;
        Block block((Keys::floats(shape) * Hk + Head::floats(shape) * Hv) * round_size);
        Scratch memory(block.floats());
        std::vector<Keys> all_keys;
        std::vector<Head> heads;
        for (int i = 0; i < round_size * Hk; i++) all_keys.emplace_back(memory, shape);
        for (int i = 0; i < round_size * Hv; i++) heads.emplace_back(memory, shape);
#pragma omp parallel
        {
            const FlushSubnormals flush;
            for (auto round = rounds.rbegin(); round != rounds.rend(); ++round) {
                const int chunks = int(round->chunks.size()), carried = int(round->runs.size()) * Hv;
#pragma omp for schedule(dynamic, 1)
                for (int task = 0; task < chunks * Hk; task++) {
                    const int number = task / Hk, head = task % Hk;
                    const Place &place = round->chunks[number];
                    Scratch scratch(shape.keys());
                    float *Kc = scratch.allocate(shape.keys());
                    all_keys[task].set(shape, in.q_at(place, head), in.k_at(place, head), place.n);
                    for (int h = head * R; h < (head + 1) * R; h++)
                        prepare(all_keys[task], heads[number * Hv + h], place, h, Kc);
                }
                const int columns = columns_per_task(shape.value_dim, carried, omp_get_num_threads());
                const int parts = (shape.value_dim + columns - 1) / columns;
#pragma omp for schedule(dynamic, 1)
                for (int task = 0; task < carried * parts; task++) {
                    const Run &run = round->runs[task / (Hv * parts)];
                    const int h = task / parts % Hv, from = task % parts * columns;
                    for (int i = int(run.chunks.size()) - 1; i >= 0; i--)
                        carry(heads[(run.first + i) * Hv + h], run.chunks[i], run.document, h, from,
                              std::min(shape.value_dim, from + columns));
                }
#pragma omp for schedule(dynamic, 1)
                for (int task = 0; task < chunks * Hk; task++) {
                    const int number = task / Hk, head = task % Hk;
                    const Place &place = round->chunks[number];
                    Scratch scratch(KeyGradients::floats(shape));
                    KeyGradients sums(scratch, shape);
                    sums.clear(shape);
                    for (int h = head * R; h < (head + 1) * R; h++)
                        add(sums, all_keys[task], heads[number * Hv + h], place, h);
                    finish(sums, all_keys[task], place, head);
                }
            }
        }
    }
};

template <class Pass> void execute(const Pass &pass, const int64_t *lengths, int64_t documents) {
    const int key_heads = pass.in.shape.key_heads;
    const PassPlan plan(pass.in.shape, lengths, documents);
    if (!plan.rounds.empty()) return pass.run_in_rounds(plan.rounds, plan.round_size);
    parallel_for<DYNAMIC>(documents * key_heads, true, [&](int64_t task) {
        pass.walk(plan.documents[task / key_heads], int(task % key_heads));
    });
}

}  // namespace

extern "C" {

// q, k [tokens, Hk, dk] and v [tokens, Hv, dv] with their own strides between tokens; g, beta [tokens, Hv]; o [tokens,
// Hv, dv]. initial, final_state [documents, Hv, dk, dv]; states [chunks of all documents, Hv, dk, dv] or null.
void gossamer_delta_rule(const float *q, const float *k, const float *v, const float *g, const float *beta,
                         const float *initial, const int64_t *lengths, float *o, float *final_state, float *states,
                         int64_t documents, int64_t key_heads, int64_t repeats, int64_t key_dim, int64_t value_dim,
                         int64_t chunk, int64_t q_stride, int64_t k_stride, int64_t v_stride) {
    const ChunkShape shape(key_heads, repeats, key_dim, value_dim, chunk, q_stride, k_stride, v_stride);
    std::memcpy(final_state, initial, sizeof(float) * documents * shape.value_heads() * shape.state_size());
    execute(ForwardPass{{shape, q, k, v, g, beta}, o, final_state, states}, lengths, documents);
}

// dstate [documents, Hv, dk, dv] comes as the final states' gradient and leaves as the initial states'. dq, dk, dv, dg
// and dbeta are contiguous.
void gossamer_delta_rule_backward(const float *q, const float *k, const float *v, const float *g, const float *beta,
                                  const float *states, const int64_t *lengths, const float *grad_o, float *dstate,
                                  float *dq, float *dk, float *dv, float *dg, float *dbeta, int64_t documents,
                                  int64_t key_heads, int64_t repeats, int64_t key_dim, int64_t value_dim, int64_t chunk,
                                  int64_t q_stride, int64_t k_stride, int64_t v_stride) {
    const ChunkShape shape(key_heads, repeats, key_dim, value_dim, chunk, q_stride, k_stride, v_stride);
    execute(BackwardPass{{shape, q, k, v, g, beta}, states, grad_o, dstate, dq, dk, dv, dg, dbeta}, lengths, documents);
}

}  // extern "C"
