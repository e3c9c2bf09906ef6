// Implementation of gemm.h, which is compiled once for all kernels.

#include "gemm.h"

#include <utility>

#include "numbers.h"

namespace gossamer {

namespace {

constexpr int SIDE = LANES < 8 ? LANES : 8;  // side of a square that is transposed in registers
typedef float Side __attribute__((vector_size(SIDE * sizeof(float)), aligned(sizeof(float)), may_alias));

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
// Lane l of a row after one step of `transpose`, numbered over two rows: every second block of WIDTH lanes of each row
// in turn.
template <int WIDTH>
constexpr int from_rows(int l, int upper) {
    return l / (2 * WIDTH) * 2 * WIDTH + l % WIDTH + (l / WIDTH % 2) * SIDE + upper * WIDTH;
}

template <int WIDTH, int... L>
inline void exchange(Side &a, Side &b, std::integer_sequence<int, L...>) {
    const Side upper = __builtin_shufflevector(a, b, from_rows<WIDTH>(L, 1)...);
    a = __builtin_shufflevector(a, b, from_rows<WIDTH>(L, 0)...);
    b = upper;
}

// Exchanges the upper right and lower left quarters of squares of side 2·WIDTH, and then does the same with twice the
// WIDTH.
template <int WIDTH>
inline void exchange_all(Side *rows) {
#pragma GCC unroll 8
    for (int i = 0; i < SIDE; i++)
        if (i / WIDTH % 2 == 0) exchange<WIDTH>(rows[i], rows[i + WIDTH], std::make_integer_sequence<int, SIDE>());
    if constexpr (2 * WIDTH < SIDE) exchange_all<2 * WIDTH>(rows);
}
#endif

// Sets to[p·COLUMNS + j] = from[j·ld + p] for SIDE × SIDE numbers.
void transpose(float *to, const float *from, int64_t ld) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
    Side rows[SIDE];
#pragma GCC unroll 8
    for (int j = 0; j < SIDE; j++) rows[j] = *reinterpret_cast<const Side *>(from + j * ld);
    exchange_all<1>(rows);
#pragma GCC unroll 8
    for (int p = 0; p < SIDE; p++) *reinterpret_cast<Side *>(to + p * COLUMNS) = rows[p];
#else
    for (int p = 0; p < SIDE; p++)
        for (int j = 0; j < SIDE; j++) to[p * COLUMNS + j] = from[j * ld + p];
#endif
}

// Copies `columns` columns of op(B) to a panel [depth, COLUMNS] and fills the rest with zeros.
inline void pack(Form form, const float *b, int64_t ldb, int depth, int columns, float *panel) {
    if (form == PLAIN) {
        for (int p = 0; p < depth; p++) {
            float *row = panel + p * COLUMNS;
            if (columns == COLUMNS) {
                for (int v = 0; v < COLUMNS; v += LANES)
                    *reinterpret_cast<Vector *>(row + v) = *reinterpret_cast<const Vector *>(b + p * ldb + v);
            } else {
                for (int j = 0; j < COLUMNS; j++) row[j] = j < columns ? b[p * ldb + j] : 0.0f;
            }
        }
        return;
    }
    const int whole = columns / SIDE * SIDE;
    int p = 0;
    for (; p + SIDE <= depth; p += SIDE)
        for (int j = 0; j < whole; j += SIDE) transpose(panel + p * COLUMNS + j, b + j * ldb + p, ldb);
    for (int q = 0; q < depth; q++)
        for (int j = q < p ? whole : 0; j < COLUMNS; j++)
            panel[q * COLUMNS + j] = j < columns ? b[j * ldb + q] : 0.0f;
}

// The same for rows of bfloat16 numbers that lie in memory as [columns, depth]: they are widened first.
inline void pack(Form, const BFloat16 *b, int64_t ldb, int depth, int columns, float *panel) {
    alignas(64) thread_local float rows[COLUMNS * DEPTH];
    for (int j = 0; j < columns; j++) widen(rows + j * DEPTH, b + j * ldb, depth);
    pack(TRANSPOSED, rows, DEPTH, depth, columns, panel);
}

// Computes ROWS × COLUMNS of the result; element (i, p) of the left operand lies at a[i·row + p·step].
template <int ROWS>
inline void tile(const float *a, int64_t row, int64_t step, const float *panel, int depth, float *c, int64_t ldc,
                 int columns, float alpha, float beta) {
    Vector sums[ROWS][2] = {};
    for (int p = 0; p < depth; p++) {
        const Vector left = *reinterpret_cast<const Vector *>(panel + p * COLUMNS);
        const Vector right = *reinterpret_cast<const Vector *>(panel + p * COLUMNS + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
            const float x = a[i * row + p * step];
            sums[i][0] += x * left;
            sums[i][1] += x * right;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
        float *out = c + i * ldc;
        if (columns == COLUMNS) {
            for (int half = 0; half < 2; half++) {
                Vector *place = reinterpret_cast<Vector *>(out + half * LANES);
                *place = beta == 0.0f ? alpha * sums[i][half] : alpha * sums[i][half] + beta * *place;
            }
        } else {
            for (int j = 0; j < columns; j++) {
                const float sum = alpha * sums[i][j / LANES][j % LANES];
                out[j] = beta == 0.0f ? sum : sum + beta * out[j];
            }
        }
    }
}

// Calls `tile` for as many rows as are left, which may be fewer than ROWS.
template <int ROWS>
inline void tile_of(int rows, const float *a, int64_t row, int64_t step, const float *panel, int depth, float *c,
                    int64_t ldc, int columns, float alpha, float beta) {
    if (rows == ROWS) return tile<ROWS>(a, row, step, panel, depth, c, ldc, columns, alpha, beta);
    if constexpr (ROWS > 1) tile_of<ROWS - 1>(rows, a, row, step, panel, depth, c, ldc, columns, alpha, beta);
}

template <Form A, typename Number>
void product(Form b_form, int m, int n, int k, const float *a, int64_t lda, const Number *b, int64_t ldb, float *c,
             int64_t ldc, float alpha, float beta, Part part) {
    alignas(64) thread_local float panel[DEPTH * COLUMNS];
    const int64_t row = A == PLAIN ? lda : 1, step = A == PLAIN ? 1 : lda;
    for (int from = 0; from < k; from += DEPTH) {
        const int depth = std::min(DEPTH, k - from);
        const float factor = from == 0 ? beta : 1.0f;  // later parts of the inner dimension are added
        for (int j = 0; j < n; j += COLUMNS) {
            const int columns = std::min(COLUMNS, n - j);
            pack(b_form, b_form == PLAIN ? b + from * ldb + j : b + j * ldb + from, ldb, depth, columns, panel);
            // The rows of a TRANSPOSED operand that are packed next lie too far apart for the hardware to prefetch, so
            // they are prefetched here while this panel is in use.
            const int next_rows = b_form == TRANSPOSED ? std::min(COLUMNS, n - j - columns) : 0;
            const Number *next = b + int64_t(j + columns) * ldb + from;
            int prefetched = 0;
            for (int i = 0; i < m; i += TILE_ROWS) {
                const int rows = std::min(TILE_ROWS, m - i);
                for (const int until = int(int64_t(next_rows) * (i + rows) / m); prefetched < until; prefetched++)
                    for (int p = 0; p < depth; p += 64 / int(sizeof(Number)))
                        __builtin_prefetch(next + prefetched * ldb + p, 0, 2);
                if (part == LOWER_RESULT && j >= i + rows) continue;
                const int first = part == UPPER_LEFT ? i : 0;
                const int last = part == LOWER_LEFT ? std::min(depth, i + rows) : depth;
                tile_of<TILE_ROWS>(rows, a + (from + first) * step + i * row, row, step, panel + first * COLUMNS,
                                   last - first, c + i * ldc + j, ldc, columns, alpha, factor);
            }
        }
    }
}

}  // namespace

void gemm(Form a_form, Form b_form, int m, int n, int k, const float *a, int64_t lda, const float *b, int64_t ldb,
          float *c, int64_t ldc, float alpha, float beta, Part part) {
    if (m <= 2 && a_form == PLAIN && b_form == TRANSPOSED) {  // too few rows to be worth packing
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) {
                const float sum = alpha * dot(a + i * lda, b + j * ldb, k);
                c[i * ldc + j] = beta == 0.0f ? sum : sum + beta * c[i * ldc + j];
            }
        return;
    }
    if (a_form == PLAIN)
        product<PLAIN>(b_form, m, n, k, a, lda, b, ldb, c, ldc, alpha, beta, part);
    else
        product<TRANSPOSED>(b_form, m, n, k, a, lda, b, ldb, c, ldc, alpha, beta, part);
}

void gemm(int m, int n, int k, const float *a, int64_t lda, const BFloat16 *b, int64_t ldb, float *c, int64_t ldc) {
    product<PLAIN>(TRANSPOSED, m, n, k, a, lda, b, ldb, c, ldc, 1.0f, 0.0f, ALL);
}

}  // namespace gossamer
