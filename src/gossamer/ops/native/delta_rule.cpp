// The gated delta rule in chunks, forward and backward: the mathematics of docs/delta-rule.md.
//
// A thread takes one key head of one document and walks its chunks, with the state and everything of a chunk in the
// cache; K Kᵀ and Q Kᵀ are shared by the value heads of the key head. Kept for the backward pass is the state before
// each chunk alone; the rest is computed again there. Cumulative gates are in float64: their differences, not they
// themselves, are what e^x is taken of.
//
// Names follow the document: n tokens in a chunk (at most C), M decay, A the inverse, N = Ṽ the corrected values.

#include <cmath>

#include "kernels.h"

using namespace gossamer;

namespace {

constexpr int C_MOST = 64;  // tokens in a chunk; a multiple of LANES

struct Shape {
    int key_heads, repeats, key_dim, value_dim, chunk;
    int64_t q_stride, k_stride, v_stride;  // floats from a token to the next; heads of a token lie together
    float scale;                           // of q
    Shape(int64_t Hk, int64_t r, int64_t dk, int64_t dv, int64_t C, int64_t q, int64_t k, int64_t v)
        : key_heads(Hk), repeats(r), key_dim(dk), value_dim(dv), chunk(C), q_stride(q), k_stride(k), v_stride(v),
          scale(1.0f / std::sqrt(static_cast<float>(dk))) {}
    int value_heads() const { return key_heads * repeats; }
    int64_t state_size() const { return int64_t(key_dim) * value_dim; }
};

// y = x / √(Σ x² + 1e-6) · scale for each of n rows; inverse[i] is 1 / √….
void normalise(const float *x, int64_t stride, int n, int width, float scale, float *y, float *inverse) {
    for (int i = 0; i < n; i++) {
        const float *row = x + i * stride;
        inverse[i] = 1.0f / std::sqrt(dot(row, row, width) + 1e-6f);
        scale_into(y + int64_t(i) * width, inverse[i] * scale, row, width);
    }
}

// The gradient through `normalise`: dx = inverse · scale · (g − y ⟨y, g⟩), y of unit length.
void normalise_backward(const float *g, const float *x, int64_t stride, const float *inverse, int n, int width,
                        float scale, float *dx, int64_t dx_stride) {
    for (int i = 0; i < n; i++) {
        const float *grad = g + int64_t(i) * width, *row = x + i * stride;
        float *out = dx + i * dx_stride;
        const float pull = dot(grad, row, width) * inverse[i] * inverse[i], factor = inverse[i] * scale;
#pragma omp simd
        for (int d = 0; d < width; d++) out[d] = factor * (grad[d] - pull * row[d]);
    }
}

// What one value head has in a chunk before its values are looked at. Square matrices have rows of C floats.
struct Chunk {
    float *M, *A, *L;              // [n, C]: decay e^(c_i − c_j), (I + L)⁻¹, b K Kᵀ ∘ M; zero above the diagonal
    float *before, *after, *beta;  // [n]: e^c, e^(c_C − c), β
    float *Ab;                     // [n, C]: A with columns scaled by β
    float whole;                   // e^(c_C)

    Chunk(Scratch &scratch, int C)
        : M(scratch.take(C * C)), A(scratch.take(C * C)), L(scratch.take(C * C)), before(scratch.take(C)),
          after(scratch.take(C)), beta(scratch.take(C)), Ab(scratch.take(C * C)) {}

    // g, b: this head's gates, `heads` floats from a token to the next.
    void set(const float *g, const float *b, int heads, const float *KK, int n, int C) {
        double c[C_MOST], sum = 0.0;
        for (int i = 0; i < n; i++) {
            c[i] = sum += g[int64_t(i) * heads];
            beta[i] = b[int64_t(i) * heads];
        }
        whole = std::exp(static_cast<float>(sum));
        for (int i = 0; i < n; i++) {
            before[i] = exp_(static_cast<float>(c[i]));
            after[i] = exp_(static_cast<float>(sum - c[i]));
            float *row = M + i * C, *lower = L + i * C;
#pragma omp simd
            for (int j = 0; j <= i; j++) row[j] = static_cast<float>(c[i] - c[j]);
#pragma omp simd
            for (int j = 0; j <= i; j++) row[j] = exp_(row[j]);
#pragma omp simd
            for (int j = 0; j < i; j++) lower[j] = beta[i] * KK[i * C + j] * row[j];
            for (int j = i + 1; j < n; j++) row[j] = 0.0f;
            for (int j = i; j < n; j++) lower[j] = 0.0f;
        }
        invert(n, C);
        for (int i = 0; i < n; i++) {
#pragma omp simd
            for (int j = 0; j < n; j++) Ab[i * C + j] = A[i * C + j] * beta[j];
        }
    }

    // A = (I + L)⁻¹ by forward substitution, one vector's width of columns at a time: A_i = e_i − Σ_(j<i) L_ij A_j.
    void invert(int n, int C) {
        for (int first = 0; first < n; first += LANES) {
            auto columns = [&](int row) { return reinterpret_cast<Vector *>(A + row * C + first); };
            for (int i = 0; i < first; i++) *columns(i) = Vector{};
            for (int i = first; i < n; i++) {
                Vector sums[4] = {};  // four chains of additions, none of which waits for another
                int j = first;
                for (; j + 4 <= i; j += 4)
                    for (int chain = 0; chain < 4; chain++) sums[chain] += L[i * C + j + chain] * *columns(j + chain);
                for (; j < i; j++) sums[0] += L[i * C + j] * *columns(j);
                Vector row = -((sums[0] + sums[1]) + (sums[2] + sums[3]));
                if (i < first + LANES) row[i - first] += 1.0f;
                *columns(i) = row;
            }
        }
    }
};

// rows_i = factors_i · x_i, all of `width` floats.
void scale_rows(float *rows, const float *factors, const float *x, int n, int width) {
    for (int i = 0; i < n; i++) scale_into(rows + int64_t(i) * width, factors[i], x + int64_t(i) * width, width);
}

// W = A b e^c K and N = A b V − W S.
void correct(const Chunk &chunk, const float *K, const float *v, const float *S, const Shape &shape, int n, float *Kc,
             float *W, float *N) {
    const int dk = shape.key_dim, dv = shape.value_dim, C = shape.chunk;
    scale_rows(Kc, chunk.before, K, n, dk);
    gemm(PLAIN, PLAIN, n, dk, n, chunk.Ab, C, Kc, dk, W, dk, 1.0f, 0.0f, LOWER_LEFT);
    gemm(PLAIN, PLAIN, n, dv, n, chunk.Ab, C, v, static_cast<int>(shape.v_stride), N, dv, 1.0f, 0.0f, LOWER_LEFT);
    gemm(PLAIN, PLAIN, n, dv, dk, W, dk, S, dv, N, dv, -1.0f, 1.0f);
}

// P = Q Kᵀ ∘ M, zero above the diagonal.
void weigh(const Chunk &chunk, const float *QK, int n, int C, float *P) {
    for (int i = 0; i < n; i++) {
#pragma omp simd
        for (int j = 0; j <= i; j++) P[i * C + j] = QK[i * C + j] * chunk.M[i * C + j];
        for (int j = i + 1; j < n; j++) P[i * C + j] = 0.0f;
    }
}

void forward_head(const Shape &shape, const float *q, const float *k, const float *v, const float *g, const float *beta,
                  int64_t length, const float *initial, float *o, float *final_state, float *states) {
    const int dk = shape.key_dim, dv = shape.value_dim, C = shape.chunk, R = shape.repeats, Hv = shape.value_heads();
    Scratch scratch(7 * C * C + 5 * C + C * (5 * dk + dv));
    float *Q = scratch.take(C * dk), *K = scratch.take(C * dk), *inverse = scratch.take(C);
    float *KK = scratch.take(C * C), *QK = scratch.take(C * C), *P = scratch.take(C * C);
    float *Kc = scratch.take(C * dk), *W = scratch.take(C * dk), *Qc = scratch.take(C * dk), *N = scratch.take(C * dv);
    Chunk chunk(scratch, C);
    for (int r = 0; r < R; r++)
        std::memcpy(final_state + r * shape.state_size(), initial + r * shape.state_size(),
                    sizeof(float) * shape.state_size());
    for (int64_t start = 0, number = 0; start < length; start += C, number++) {
        const int n = static_cast<int>(length - start < C ? length - start : C);
        normalise(q + start * shape.q_stride, shape.q_stride, n, dk, shape.scale, Q, inverse);
        normalise(k + start * shape.k_stride, shape.k_stride, n, dk, 1.0f, K, inverse);
        gemm(PLAIN, TRANSPOSED, n, n, dk, K, dk, K, dk, KK, C, 1.0f, 0.0f, LOWER_RESULT);
        gemm(PLAIN, TRANSPOSED, n, n, dk, Q, dk, K, dk, QK, C, 1.0f, 0.0f, LOWER_RESULT);
        for (int r = 0; r < R; r++) {
            chunk.set(g + start * Hv + r, beta + start * Hv + r, Hv, KK, n, C);
            float *S = final_state + r * shape.state_size();
            if (states)
                std::memcpy(states + (number * Hv + r) * shape.state_size(), S, sizeof(float) * shape.state_size());
            correct(chunk, K, v + start * shape.v_stride + r * dv, S, shape, n, Kc, W, N);
            weigh(chunk, QK, n, C, P);
            scale_rows(Qc, chunk.before, Q, n, dk);
            float *out = o + (start * Hv + r) * dv;
            gemm(PLAIN, PLAIN, n, dv, dk, Qc, dk, S, dv, out, Hv * dv);
            gemm(PLAIN, PLAIN, n, dv, n, P, C, N, dv, out, Hv * dv, 1.0f, 1.0f, LOWER_LEFT);
            scale_rows(Kc, chunk.after, K, n, dk);
            gemm(TRANSPOSED, PLAIN, dk, dv, n, Kc, dk, N, dv, S, dv, 1.0f, chunk.whole);
        }
    }
}

void backward_head(const Shape &shape, const float *q, const float *k, const float *v, const float *g,
                   const float *beta, int64_t length, const float *states, const float *grad_o, float *dstate,
                   float *dq, float *dk_, float *dv_, float *dg, float *dbeta) {
    const int dk = shape.key_dim, dv = shape.value_dim, C = shape.chunk, R = shape.repeats, Hv = shape.value_heads();
    Scratch scratch(12 * C * C + 7 * C + C * (11 * dk + 3 * dv));
    float *Q = scratch.take(C * dk), *K = scratch.take(C * dk), *q_inverse = scratch.take(C),
          *k_inverse = scratch.take(C);
    float *KK = scratch.take(C * C), *QK = scratch.take(C * C), *P = scratch.take(C * C), *dP = scratch.take(C * C);
    float *dL = scratch.take(C * C), *G = scratch.take(C * C), *E = scratch.take(C * C);
    float *Kc = scratch.take(C * dk), *Kr = scratch.take(C * dk), *Qc = scratch.take(C * dk), *W = scratch.take(C * dk);
    float *N = scratch.take(C * dv), *dN = scratch.take(C * dv), *X = scratch.take(C * dv);
    float *OS = scratch.take(C * dk), *Y = scratch.take(C * dk), *NS = scratch.take(C * dk);
    float *dQ = scratch.take(C * dk), *dK = scratch.take(C * dk);
    Chunk chunk(scratch, C);
    const int64_t chunks = (length + C - 1) / C;
    for (int64_t number = chunks - 1; number >= 0; number--) {
        const int64_t start = number * C;
        const int n = static_cast<int>(length - start < C ? length - start : C);
        normalise(q + start * shape.q_stride, shape.q_stride, n, dk, shape.scale, Q, q_inverse);
        normalise(k + start * shape.k_stride, shape.k_stride, n, dk, 1.0f, K, k_inverse);
        gemm(PLAIN, TRANSPOSED, n, n, dk, K, dk, K, dk, KK, C, 1.0f, 0.0f, LOWER_RESULT);
        gemm(PLAIN, TRANSPOSED, n, n, dk, Q, dk, K, dk, QK, C, 1.0f, 0.0f, LOWER_RESULT);
        std::memset(dQ, 0, sizeof(float) * n * dk);
        std::memset(dK, 0, sizeof(float) * n * dk);
        std::memset(G, 0, sizeof(float) * C * C);
        std::memset(E, 0, sizeof(float) * C * C);
        for (int r = 0; r < R; r++) {
            chunk.set(g + start * Hv + r, beta + start * Hv + r, Hv, KK, n, C);
            const float *S = states + (number * Hv + r) * shape.state_size();
            const float *V = v + start * shape.v_stride + r * dv;
            const float *dO = grad_o + (start * Hv + r) * dv;
            float *dS = dstate + r * shape.state_size();
            correct(chunk, K, V, S, shape, n, Kc, W, N);
            weigh(chunk, QK, n, C, P);
            scale_rows(Kr, chunk.after, K, n, dk);
            scale_rows(Qc, chunk.before, Q, n, dk);
            gemm(TRANSPOSED, PLAIN, n, dv, n, P, C, dO, Hv * dv, dN, dv, 1.0f, 0.0f, UPPER_LEFT);
            gemm(PLAIN, PLAIN, n, dv, dk, Kr, dk, dS, dv, dN, dv, 1.0f, 1.0f);
            gemm(PLAIN, TRANSPOSED, n, n, dv, dO, Hv * dv, N, dv, dP, C, 1.0f, 0.0f, LOWER_RESULT);
            gemm(PLAIN, TRANSPOSED, n, dk, dv, dO, Hv * dv, S, dv, OS, dk);
            gemm(TRANSPOSED, PLAIN, n, dv, n, chunk.A, C, dN, dv, X, dv, 1.0f, 0.0f, UPPER_LEFT);
            gemm(PLAIN, TRANSPOSED, n, dk, dv, X, dv, S, dv, Y, dk, -1.0f);
            gemm(PLAIN, TRANSPOSED, n, n, dv, X, dv, N, dv, dL, C, -1.0f, 0.0f, LOWER_RESULT);
            gemm(PLAIN, TRANSPOSED, n, dk, dv, N, dv, dS, dv, NS, dk);

            double dc[C_MOST], tails = 0.0;
            float columns[C_MOST] = {};
            for (int i = 0; i < n; i++) {
                const float b = chunk.beta[i], decay = chunk.before[i];
                const float *X_i = X + int64_t(i) * dv, *V_i = V + i * shape.v_stride;
                const float *Y_i = Y + int64_t(i) * dk, *K_i = K + int64_t(i) * dk, *NS_i = NS + int64_t(i) * dk;
                const float *OS_i = OS + int64_t(i) * dk;
                float *G_i = G + i * C, *E_i = E + i * C, *dP_i = dP + i * C, *dL_i = dL + i * C;
                const float *M_i = chunk.M + i * C, *KK_i = KK + i * C, *P_i = P + i * C, *L_i = chunk.L + i * C;
                G_i[i] += dP_i[i] * M_i[i];
                dP_i[i] *= P_i[i];
                float H_KK = 0.0f, row = dP_i[i];
#pragma omp simd reduction(+ : H_KK, row)
                for (int j = 0; j < i; j++) {
                    G_i[j] += dP_i[j] * M_i[j];
                    const float H = dL_i[j] * M_i[j];
                    E_i[j] += b * H;
                    H_KK += H * KK_i[j];
                    dP_i[j] = dP_i[j] * P_i[j] + dL_i[j] * L_i[j];
                    row += dP_i[j];
                }
                const float YK = dot(Y_i, K_i, dk);
                const float tail = chunk.after[i] * dot(K_i, NS_i, dk);
                dbeta[(start + i) * Hv + r] = dot(X_i, V_i, dv) + decay * YK + H_KK;
                dc[i] = double(row) + decay * dot(OS_i, Q + int64_t(i) * dk, dk) + b * decay * YK - tail;
                tails += tail;
                scale_into(dv_ + ((start + i) * Hv + r) * dv, b, X_i, dv);
                float *dQ_i = dQ + int64_t(i) * dk, *dK_i = dK + int64_t(i) * dk;
#pragma omp simd
                for (int d = 0; d < dk; d++) {
                    dQ_i[d] += decay * OS_i[d];
                    dK_i[d] += chunk.after[i] * NS_i[d] + b * decay * Y_i[d];
                }
            }
            for (int i = 0; i < n; i++) add_scaled(columns, 1.0f, dP + i * C, i + 1);
            for (int i = 0; i < n; i++) dc[i] -= columns[i];
            dc[n - 1] += tails + double(chunk.whole) * dot(S, dS, static_cast<int>(shape.state_size()));
            double sum = 0.0;
            for (int i = n - 1; i >= 0; i--) dg[(start + i) * Hv + r] = static_cast<float>(sum += dc[i]);

            gemm(TRANSPOSED, PLAIN, dk, dv, n, Qc, dk, dO, Hv * dv, dS, dv, 1.0f, chunk.whole);
            gemm(TRANSPOSED, PLAIN, dk, dv, n, W, dk, dN, dv, dS, dv, -1.0f, 1.0f);
        }
        // What all value heads of the key head share: dQ += G K, dK += Gᵀ Q + (E + Eᵀ) K with E = Σ b H.
        gemm(PLAIN, PLAIN, n, dk, n, G, C, K, dk, dQ, dk, 1.0f, 1.0f, LOWER_LEFT);
        gemm(TRANSPOSED, PLAIN, n, dk, n, G, C, Q, dk, dK, dk, 1.0f, 1.0f, UPPER_LEFT);
        gemm(PLAIN, PLAIN, n, dk, n, E, C, K, dk, dK, dk, 1.0f, 1.0f, LOWER_LEFT);
        gemm(TRANSPOSED, PLAIN, n, dk, n, E, C, K, dk, dK, dk, 1.0f, 1.0f, UPPER_LEFT);
        const int64_t stride = int64_t(shape.key_heads) * dk;
        normalise_backward(dQ, q + start * shape.q_stride, shape.q_stride, q_inverse, n, dk, shape.scale,
                           dq + start * stride, stride);
        normalise_backward(dK, k + start * shape.k_stride, shape.k_stride, k_inverse, n, dk, 1.0f,
                           dk_ + start * stride, stride);
    }
}

// Where a document begins, and how many chunks lie before it.
struct Document {
    int64_t start, length, first_chunk;
};

std::vector<Document> documents_of(const int64_t *lengths, int documents, int chunk) {
    std::vector<Document> result;
    int64_t start = 0, first = 0;
    for (int i = 0; i < documents; i++) {
        result.push_back({start, lengths[i], first});
        start += lengths[i];
        first += (lengths[i] + chunk - 1) / chunk;
    }
    return result;
}

}  // namespace

extern "C" {

// q, k [tokens, Hk, dk] and v [tokens, Hv, dv] with their own strides between tokens; g, beta [tokens, Hv]; o [tokens,
// Hv, dv]. initial, final_state [documents, Hv, dk, dv]; states [chunks of all documents, Hv, dk, dv] or null.
void gossamer_delta_rule(const float *q, const float *k, const float *v, const float *g, const float *beta,
                         const float *initial, const int64_t *lengths, float *o, float *final_state, float *states,
                         int64_t documents, int64_t key_heads, int64_t repeats, int64_t key_dim, int64_t value_dim, int64_t chunk,
                         int64_t q_stride, int64_t k_stride, int64_t v_stride) {
    const Shape shape(key_heads, repeats, key_dim, value_dim, chunk, q_stride, k_stride, v_stride);
    const auto layout = documents_of(lengths, documents, chunk);
    const int Hv = shape.value_heads();
    const int64_t size = shape.state_size();
#pragma omp parallel for schedule(dynamic, 1)
    for (int task = 0; task < documents * key_heads; task++) {
        const Document &document = layout[task / key_heads];
        const int head = task % key_heads, first = head * repeats;
        const int64_t at = document.start;
        float *kept = states ? states + (document.first_chunk * Hv + first) * size : nullptr;
        const int64_t own = (int64_t(task / key_heads) * Hv + first) * size;
        forward_head(shape, q + at * q_stride + head * key_dim, k + at * k_stride + head * key_dim,
                     v + at * v_stride + first * value_dim, g + at * Hv + first, beta + at * Hv + first,
                     document.length, initial + own, o + (at * Hv + first) * value_dim, final_state + own, kept);
    }
}

// dstate [documents, Hv, dk, dv] comes as the final states' gradient and leaves as the initial states'. dq, dk, dv, dg
// and dbeta are contiguous.
void gossamer_delta_rule_backward(const float *q, const float *k, const float *v, const float *g, const float *beta,
                                  const float *states, const int64_t *lengths, const float *grad_o, float *dstate,
                                  float *dq, float *dk, float *dv, float *dg, float *dbeta, int64_t documents,
                                  int64_t key_heads, int64_t repeats, int64_t key_dim, int64_t value_dim, int64_t chunk, int64_t q_stride,
                                  int64_t k_stride, int64_t v_stride) {
    const Shape shape(key_heads, repeats, key_dim, value_dim, chunk, q_stride, k_stride, v_stride);
    const auto layout = documents_of(lengths, documents, chunk);
    const int Hv = shape.value_heads();
    const int64_t size = shape.state_size();
#pragma omp parallel for schedule(dynamic, 1)
    for (int task = 0; task < documents * key_heads; task++) {
        const Document &document = layout[task / key_heads];
        const int head = task % key_heads, first = head * repeats;
        const int64_t at = document.start;
        backward_head(shape, q + at * q_stride + head * key_dim, k + at * k_stride + head * key_dim,
                      v + at * v_stride + first * value_dim, g + at * Hv + first, beta + at * Hv + first,
                      document.length, states + (document.first_chunk * Hv + first) * size,
                      grad_o + (at * Hv + first) * value_dim,
                      dstate + (int64_t(task / key_heads) * Hv + first) * size,
                      dq + (at * key_heads + head) * key_dim, dk + (at * key_heads + head) * key_dim,
                      dv + (at * Hv + first) * value_dim, dg + at * Hv + first, dbeta + at * Hv + first);
    }
}

}  // extern "C"
