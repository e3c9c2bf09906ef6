// A chunk of the gated delta rule, forward and backward: the mathematics of docs/delta-rule.md.
//
// A chunk is computed in three parts. `prepare` computes what depends on its tokens alone. `carry` passes the state
// through it; this is the only part that waits for the chunk before, and it works on columns of the state. `output` (in
// the backward pass `add` and `finish`) computes what follows from the state before the chunk. delta_rule.cpp decides
// which thread computes which chunk and when.
//
// K Kᵀ and Q Kᵀ are shared by the value heads of a key head. Cumulative gates are in float64, because e^x is taken of
// their differences.
//
// The names are those of the document: n tokens in a chunk (at most C), M the decay, A the inverse, N = Ṽ the corrected
// values.

#pragma once

#include <cmath>

#include "kernels.h"

namespace gossamer {

constexpr int MAX_CHUNK = 64;  // tokens in a chunk; a multiple of LANES

struct ChunkShape {
    int key_heads, repeats, key_dim, value_dim, chunk;
    int64_t q_stride, k_stride, v_stride;  // floats from one token to the next; the heads of a token are contiguous
    float scale;                           // of q
    ChunkShape(int64_t Hk, int64_t r, int64_t dk, int64_t dv, int64_t C, int64_t q, int64_t k, int64_t v)
        : key_heads(Hk), repeats(r), key_dim(dk), value_dim(dv), chunk(C), q_stride(q), k_stride(k), v_stride(v),
          scale(1.0f / std::sqrt(static_cast<float>(dk))) {}
    int value_heads() const { return key_heads * repeats; }
    int64_t state_size() const { return int64_t(key_dim) * value_dim; }
    size_t square() const { return size_t(chunk) * chunk; }
    size_t keys() const { return size_t(chunk) * key_dim; }
    size_t values() const { return size_t(chunk) * value_dim; }
};

// y = x / √(Σ x² + 1e-6) · scale for each of n rows; inverse[i] is 1 / √(Σ x² + 1e-6).
void normalize(const float *x, int64_t stride, int n, int width, float scale, float *y, float *inverse) {
    for (int i = 0; i < n; i++) {
        const float *row = x + i * stride;
        inverse[i] = 1.0f / std::sqrt(dot(row, row, width) + 1e-6f);
        scale_into(y + int64_t(i) * width, inverse[i] * scale, row, width);
    }
}

// The gradient of `normalize`: dx = inverse · scale · (g − y ⟨y, g⟩), where y has unit length.
void normalize_backward(const float *g, const float *x, int64_t stride, const float *inverse, int n, int width,
                        float scale, float *dx, int64_t dx_stride) {
    for (int i = 0; i < n; i++) {
        const float *grad = g + int64_t(i) * width, *row = x + i * stride;
        float *out = dx + i * dx_stride;
        const float projection = dot(grad, row, width) * inverse[i] * inverse[i], factor = inverse[i] * scale;
#pragma omp simd
        for (int d = 0; d < width; d++) out[d] = factor * (grad[d] - projection * row[d]);
    }
}

// What follows from the gates and keys of a value head in a chunk. Square matrices have rows of C floats.
struct Chunk {
    float *M, *A, *L;              // [n, C]: decay e^(c_i − c_j), (I + L)⁻¹, b K Kᵀ ∘ M; zero above the diagonal
    float *before, *after, *beta;  // [n]: e^c, e^(c_C − c), β
    float *Ab;                     // [n, C]: A with its columns scaled by β
    float whole;                   // e^(c_C)

    static size_t floats(const ChunkShape &shape) { return 4 * shape.square() + 3 * shape.chunk + 7 * PADDING; }
    Chunk(Scratch &scratch, int C)
        : M(scratch.allocate(C * C)), A(scratch.allocate(C * C)), L(scratch.allocate(C * C)),
          before(scratch.allocate(C)), after(scratch.allocate(C)), beta(scratch.allocate(C)),
          Ab(scratch.allocate(C * C)) {}

    // g and b are this head's gates, with `heads` floats from one token to the next.
    void set(const float *g, const float *b, int heads, const float *KK, int n, int C) {
        double c[MAX_CHUNK], sum = 0.0;
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

    // A = (I + L)⁻¹ by forward substitution, one vector of columns at a time: A_i = e_i − Σ_(j<i) L_ij A_j.
    void invert(int n, int C) {
        for (int first = 0; first < n; first += LANES) {
            auto columns = [&](int row) { return reinterpret_cast<Vector *>(A + row * C + first); };
            for (int i = 0; i < first; i++) *columns(i) = Vector{};
            for (int i = first; i < n; i++) {
                Vector sums[4] = {};  // four independent chains of additions
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

// rows_i = factors_i · x_i for rows of `width` floats.
void scale_rows(float *rows, const float *factors, const float *x, int n, int width) {
    for (int i = 0; i < n; i++) scale_into(rows + int64_t(i) * width, factors[i], x + int64_t(i) * width, width);
}

// The tensors that the value heads of a key head share in a chunk.
struct Keys {
    float *Q, *K, *q_inverse, *k_inverse;  // [n, dk] of unit length (Q times the scale), and the inverse former length
    float *KK, *QK;                        // [n, C]: K Kᵀ and Q Kᵀ up to the diagonal

    static size_t floats(const ChunkShape &shape) {
        return 2 * shape.keys() + 2 * shape.chunk + 2 * shape.square() + 6 * PADDING;
    }
    Keys(Scratch &scratch, const ChunkShape &shape)
        : Q(scratch.allocate(shape.keys())), K(scratch.allocate(shape.keys())),
          q_inverse(scratch.allocate(shape.chunk)), k_inverse(scratch.allocate(shape.chunk)),
          KK(scratch.allocate(shape.square())), QK(scratch.allocate(shape.square())) {}

    // q and k point to this head in the chunk's first token.
    void set(const ChunkShape &shape, const float *q, const float *k, int n) {
        const int dk = shape.key_dim, C = shape.chunk;
        normalize(q, shape.q_stride, n, dk, shape.scale, Q, q_inverse);
        normalize(k, shape.k_stride, n, dk, 1.0f, K, k_inverse);
        gemm(PLAIN, TRANSPOSED, n, n, dk, K, dk, K, dk, KK, C, 1.0f, 0.0f, LOWER_RESULT);
        gemm(PLAIN, TRANSPOSED, n, n, dk, Q, dk, K, dk, QK, C, 1.0f, 0.0f, LOWER_RESULT);
    }
};

// The tensors with which a value head's chunk meets the state, and the values that result.
struct Link {
    float *W, *Qc, *Kr;  // [n, dk]: A b e^c K, e^c Q, e^(c_C − c) K
    float *N;            // [n, dv]: A b V, and after `carry` A b V − W S
    float *P;            // [n, C]: Q Kᵀ ∘ M, zero above the diagonal
    float whole;         // e^(c_C)

    static size_t floats(const ChunkShape &shape) {
        return 3 * shape.keys() + shape.values() + shape.square() + 5 * PADDING;
    }
    Link(Scratch &scratch, const ChunkShape &shape)
        : W(scratch.allocate(shape.keys())), Qc(scratch.allocate(shape.keys())), Kr(scratch.allocate(shape.keys())),
          N(scratch.allocate(shape.values())), P(scratch.allocate(shape.square())) {}

    // Computes all that does not depend on the state. v points to this head in the chunk's first token; Kc [n, dk] is
    // workspace.
    void prepare(const ChunkShape &shape, const Keys &keys, const Chunk &chunk, const float *v, int n, float *Kc) {
        const int dk = shape.key_dim, dv = shape.value_dim, C = shape.chunk;
        scale_rows(Kc, chunk.before, keys.K, n, dk);
        gemm(PLAIN, PLAIN, n, dk, n, chunk.Ab, C, Kc, dk, W, dk, 1.0f, 0.0f, LOWER_LEFT);
        gemm(PLAIN, PLAIN, n, dv, n, chunk.Ab, C, v, static_cast<int>(shape.v_stride), N, dv, 1.0f, 0.0f, LOWER_LEFT);
        for (int i = 0; i < n; i++) {
#pragma omp simd
            for (int j = 0; j <= i; j++) P[i * C + j] = keys.QK[i * C + j] * chunk.M[i * C + j];
            for (int j = i + 1; j < n; j++) P[i * C + j] = 0.0f;
        }
        scale_rows(Kr, chunk.after, keys.K, n, dk);
        scale_rows(Qc, chunk.before, keys.Q, n, dk);
        whole = chunk.whole;
    }

    // Passes columns `from` to `to` of the state through the chunk: S is saved in `before` and becomes the state after
    // it.
    void carry(const ChunkShape &shape, float *S, float *before, int n, int from, int to) {
        const int dk = shape.key_dim, dv = shape.value_dim;
        for (int d = 0; d < dk; d++)
            std::memcpy(before + d * dv + from, S + d * dv + from, sizeof(float) * (to - from));
        gemm(PLAIN, PLAIN, n, to - from, dk, W, dk, S + from, dv, N + from, dv, -1.0f, 1.0f);
        gemm(TRANSPOSED, PLAIN, dk, to - from, n, Kr, dk, N + from, dv, S + from, dv, 1.0f, whole);
    }

    // out_i = Qc_i S + P_i N for rows that are out_stride floats apart.
    void output(const ChunkShape &shape, const float *before, float *out, int64_t out_stride, int n) const {
        const int dk = shape.key_dim, dv = shape.value_dim;
        gemm(PLAIN, PLAIN, n, dv, dk, Qc, dk, before, dv, out, out_stride);
        gemm(PLAIN, PLAIN, n, dv, n, P, shape.chunk, N, dv, out, out_stride, 1.0f, 1.0f, LOWER_LEFT);
    }
};

// The gradients of a value head's `Link`.
struct LinkGradients {
    float *dN, *dP, *OS;  // [n, dv]; dO Nᵀ [n, C]; dO Sᵀ [n, dk]
    float *dS;            // [dk, dv]: gradient of the state after the chunk

    static size_t floats(const ChunkShape &shape) {
        return shape.values() + shape.square() + shape.keys() + shape.state_size() + 4 * PADDING;
    }
    LinkGradients(Scratch &scratch, const ChunkShape &shape)
        : dN(scratch.allocate(shape.values())), dP(scratch.allocate(shape.square())),
          OS(scratch.allocate(shape.keys())), dS(scratch.allocate(shape.state_size())) {}

    // Computes all that does not depend on the state's gradient, after it has corrected the values in `link` by the
    // state S before the chunk.
    void prepare(const ChunkShape &shape, const Link &link, const float *S, const float *dO, int64_t stride, int n) {
        const int dk = shape.key_dim, dv = shape.value_dim, C = shape.chunk;
        gemm(PLAIN, PLAIN, n, dv, dk, link.W, dk, S, dv, link.N, dv, -1.0f, 1.0f);
        gemm(TRANSPOSED, PLAIN, n, dv, n, link.P, C, dO, stride, dN, dv, 1.0f, 0.0f, UPPER_LEFT);
        gemm(PLAIN, TRANSPOSED, n, n, dv, dO, stride, link.N, dv, dP, C, 1.0f, 0.0f, LOWER_RESULT);
        gemm(PLAIN, TRANSPOSED, n, dk, dv, dO, stride, S, dv, OS, dk);
    }

    // Passes columns `from` to `to` of the state's gradient back through the chunk: dstate is saved in dS and becomes
    // the gradient of the state before it.
    void carry(const ChunkShape &shape, const Link &link, const float *dO, int64_t stride, float *dstate, int n,
               int from, int to) {
        const int dk = shape.key_dim, dv = shape.value_dim, columns = to - from;
        for (int d = 0; d < dk; d++) std::memcpy(dS + d * dv + from, dstate + d * dv + from, sizeof(float) * columns);
        gemm(PLAIN, PLAIN, n, columns, dk, link.Kr, dk, dstate + from, dv, dN + from, dv, 1.0f, 1.0f);
        gemm(TRANSPOSED, PLAIN, dk, columns, n, link.Qc, dk, dO + from, stride, dstate + from, dv, 1.0f, link.whole);
        gemm(TRANSPOSED, PLAIN, dk, columns, n, link.W, dk, dN + from, dv, dstate + from, dv, -1.0f, 1.0f);
    }
};

// The gradients that the value heads of a key head add up in a chunk, and workspace for one of them.
struct KeyGradients {
    float *dQ, *dK, *G, *E;  // [n, dk] twice, [n, C] twice
    float *X, *Y, *NS, *dL;  // [n, dv], [n, dk] twice, [n, C]

    static size_t floats(const ChunkShape &shape) {
        return 4 * shape.keys() + 3 * shape.square() + shape.values() + 8 * PADDING;
    }
    KeyGradients(Scratch &scratch, const ChunkShape &shape)
        : dQ(scratch.allocate(shape.keys())), dK(scratch.allocate(shape.keys())), G(scratch.allocate(shape.square())),
          E(scratch.allocate(shape.square())), X(scratch.allocate(shape.values())), Y(scratch.allocate(shape.keys())),
          NS(scratch.allocate(shape.keys())), dL(scratch.allocate(shape.square())) {}

    void clear(const ChunkShape &shape) {
        std::memset(dQ, 0, sizeof(float) * shape.keys());
        std::memset(dK, 0, sizeof(float) * shape.keys());
        std::memset(G, 0, sizeof(float) * shape.square());
        std::memset(E, 0, sizeof(float) * shape.square());
    }

    // Adds one value head's share. S is the state before the chunk; v, dv_, dg and dbeta point to this head in the
    // chunk's first token.
    void add(const ChunkShape &shape, const Keys &keys, const Chunk &chunk, const Link &link,
             const LinkGradients &grads, const float *S, const float *v, float *dv_, float *dg, float *dbeta, int n) {
        const int dk = shape.key_dim, dv = shape.value_dim, C = shape.chunk, Hv = shape.value_heads();
        gemm(TRANSPOSED, PLAIN, n, dv, n, chunk.A, C, grads.dN, dv, X, dv, 1.0f, 0.0f, UPPER_LEFT);
        gemm(PLAIN, TRANSPOSED, n, dk, dv, X, dv, S, dv, Y, dk, -1.0f);
        gemm(PLAIN, TRANSPOSED, n, n, dv, X, dv, link.N, dv, dL, C, -1.0f, 0.0f, LOWER_RESULT);
        gemm(PLAIN, TRANSPOSED, n, dk, dv, link.N, dv, grads.dS, dv, NS, dk);

        double dc[MAX_CHUNK], tail_sum = 0.0;
        float columns[MAX_CHUNK] = {};
        for (int i = 0; i < n; i++) {
            const float b = chunk.beta[i], decay = chunk.before[i];
            const float *X_i = X + int64_t(i) * dv, *V_i = v + i * shape.v_stride;
            const float *Y_i = Y + int64_t(i) * dk, *K_i = keys.K + int64_t(i) * dk, *NS_i = NS + int64_t(i) * dk;
            const float *OS_i = grads.OS + int64_t(i) * dk;
            float *G_i = G + i * C, *E_i = E + i * C, *dP_i = grads.dP + i * C, *dL_i = dL + i * C;
            const float *M_i = chunk.M + i * C, *KK_i = keys.KK + i * C, *P_i = link.P + i * C, *L_i = chunk.L + i * C;
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
            dbeta[int64_t(i) * Hv] = dot(X_i, V_i, dv) + decay * YK + H_KK;
            dc[i] = double(row) + decay * dot(OS_i, keys.Q + int64_t(i) * dk, dk) + b * decay * YK - tail;
            tail_sum += tail;
            scale_into(dv_ + int64_t(i) * Hv * dv, b, X_i, dv);
            float *dQ_i = dQ + int64_t(i) * dk, *dK_i = dK + int64_t(i) * dk;
#pragma omp simd
            for (int d = 0; d < dk; d++) {
                dQ_i[d] += decay * OS_i[d];
                dK_i[d] += chunk.after[i] * NS_i[d] + b * decay * Y_i[d];
            }
        }
        for (int i = 0; i < n; i++) add_scaled(columns, 1.0f, grads.dP + i * C, i + 1);
        for (int i = 0; i < n; i++) dc[i] -= columns[i];
        dc[n - 1] += tail_sum + double(chunk.whole) * dot(S, grads.dS, static_cast<int>(shape.state_size()));
        double sum = 0.0;
        for (int i = n - 1; i >= 0; i--) dg[int64_t(i) * Hv] = static_cast<float>(sum += dc[i]);
    }

    // Adds what all value heads share, dQ += G K and dK += Gᵀ Q + (E + Eᵀ) K with E = Σ b H, and then computes the
    // gradient of the normalization.
    void finish(const ChunkShape &shape, const Keys &keys, const float *q, const float *k, float *dq, float *dk_,
                int n) {
        const int dk = shape.key_dim, C = shape.chunk;
        gemm(PLAIN, PLAIN, n, dk, n, G, C, keys.K, dk, dQ, dk, 1.0f, 1.0f, LOWER_LEFT);
        gemm(TRANSPOSED, PLAIN, n, dk, n, G, C, keys.Q, dk, dK, dk, 1.0f, 1.0f, UPPER_LEFT);
        gemm(PLAIN, PLAIN, n, dk, n, E, C, keys.K, dk, dK, dk, 1.0f, 1.0f, LOWER_LEFT);
        gemm(TRANSPOSED, PLAIN, n, dk, n, E, C, keys.K, dk, dK, dk, 1.0f, 1.0f, UPPER_LEFT);
        const int64_t stride = int64_t(shape.key_heads) * dk;
        normalize_backward(dQ, q, shape.q_stride, keys.q_inverse, n, dk, shape.scale, dq, stride);
        normalize_backward(dK, k, shape.k_stride, keys.k_inverse, n, dk, 1.0f, dk_, stride);
    }
};

}  // namespace gossamer
