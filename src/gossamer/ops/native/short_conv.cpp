// The short convolution with SiLU, forward and backward, one pass over memory each.
//
// Documents lie one after the other in x [tokens, channels]; `before` [documents, taps − 1, channels] holds what came
// before each. Work is cut into stretches of tokens: each thread takes a share of the stretches, and in a stretch a few
// hundred channels at a time, so that the rows a token needs stay in the nearest cache.

#include <algorithm>
#include <omp.h>

#include "kernels.h"

using namespace gossamer;

namespace {

constexpr int STRETCH = 64;     // tokens
constexpr int CHANNELS = 256;   // that are computed together
constexpr int MOST_TAPS = 8;    // Python sends wider convolutions elsewhere

// Some tokens of one document, and where it lies: its first token in x, its place among the documents.
struct Stretch {
    int64_t document, start, length, from, to;
};

std::vector<Stretch> stretches_of(const int64_t *lengths, int64_t documents) {
    std::vector<Stretch> result;
    int64_t start = 0;
    for (int64_t document = 0; document < documents; document++) {
        // A document without tokens has one stretch, too: it passes on what came before it.
        for (int64_t from = 0; from == 0 || from < lengths[document]; from += STRETCH)
            result.push_back({document, start, lengths[document], from, std::min(lengths[document], from + STRETCH)});
        start += lengths[document];
    }
    return result;
}

// Rows of a tensor over a document's tokens, and of the one with what came before them.
template <typename Float> struct Rows {
    Float *tokens, *before;
    int64_t stride, channels;
    int taps;
    Float *at(const Stretch &s, int64_t t) const {
        return t >= 0 ? tokens + (s.start + t) * stride : before + (s.document * (taps - 1) + taps - 1 + t) * channels;
    }
};

// z_t = Σ_back w[taps − 1 − back] x_(t − back) for `n` channels; w's taps are w_stride floats apart.
template <int TAPS>
void sum_of_taps(const Rows<const float> &x, const Stretch &s, int64_t t, int64_t first, const float *w,
                 int64_t w_stride, float *z, int n) {
    const float *in[TAPS];
    for (int back = 0; back < TAPS; back++) in[back] = x.at(s, t - back) + first;
#pragma omp simd
    for (int i = 0; i < n; i++) {
        float sum = 0.0f;
        for (int back = 0; back < TAPS; back++) sum += w[(TAPS - 1 - back) * w_stride + i] * in[back][i];
        z[i] = sum;
    }
}

template <int TAPS>
void forward(const Rows<const float> &x, const float *weight, float *y, float *after,
             const std::vector<Stretch> &stretches) {
    const int64_t channels = x.channels;
    parallel_for(int64_t(stretches.size()), !is_small(int64_t(stretches.size()) * STRETCH * channels), [&](int64_t number) {
        const Stretch &s = stretches[number];
        for (int64_t first = 0; first < channels; first += CHANNELS) {
            const int n = static_cast<int>(std::min<int64_t>(CHANNELS, channels - first));
            for (int64_t t = s.from; t < s.to; t++) {
                float *out = y + (s.start + t) * channels + first;
                sum_of_taps<TAPS>(x, s, t, first, weight + first, channels, out, n);
#pragma omp simd
                for (int i = 0; i < n; i++) out[i] *= sigmoid(out[i]);
            }
        }
        for (int64_t t = s.length - (TAPS - 1); s.to == s.length && t < s.length; t++)
            std::memcpy(after + (s.document * (TAPS - 1) + t - s.length + TAPS - 1) * channels, x.at(s, t),
                        sizeof(float) * channels);
    });
}

// dz_t = dy_t · SiLU'(z_t) is computed once for each token of a stretch and for the taps − 1 behind it, whose gradients
// reach back into it; a ring holds the newest of them.
template <int TAPS>
void backward(const float *dy, const float *dafter, const Rows<const float> &x, const Rows<float> &dx,
              const float *weight, float *dweight, const std::vector<Stretch> &stretches) {
    const int64_t channels = x.channels;
    const int64_t most = is_small(int64_t(stretches.size()) * STRETCH * channels) ? 1 : omp_get_max_threads();
    const int parts = static_cast<int>(std::min<int64_t>(most, stretches.size()));
    std::vector<float> sums(size_t(parts) * TAPS * channels, 0.0f);
    const float none[CHANNELS] = {};
    parallel_for(parts, parts > 1, [&](int64_t part) {
        float ring[TAPS][CHANNELS];
        float *own = sums.data() + size_t(part) * TAPS * channels;
        for (size_t number = stretches.size() * part / parts; number < stretches.size() * (part + 1) / parts; number++) {
            const Stretch &s = stretches[number];
            for (int64_t first = 0; first < channels; first += CHANNELS) {
                const int n = static_cast<int>(std::min<int64_t>(CHANNELS, channels - first));
                const float *w = weight + first;
                float *dw = own + first;
                int64_t next = s.from;  // the token whose dz is to be computed next
                for (int64_t t = s.from == 0 ? 1 - TAPS : s.from; t < s.to; t++) {
                    for (; next < std::min(s.length, t + TAPS); next++) {
                        const float *g = dy + (s.start + next) * channels + first;
                        float *dz = ring[next % TAPS];
                        sum_of_taps<TAPS>(x, s, next, first, w, channels, dz, n);
#pragma omp simd
                        for (int i = 0; i < n; i++) {
                            const float open = sigmoid(dz[i]);
                            dz[i] = g[i] * open * (1.0f + dz[i] * (1.0f - open));
                        }
                        if (next >= s.to) continue;  // its share of dw is its own stretch's
                        for (int back = 0; back < TAPS; back++) {
                            const float *in = x.at(s, next - back) + first;
                            float *sum = dw + (TAPS - 1 - back) * channels;
#pragma omp simd
                            for (int i = 0; i < n; i++) sum[i] += dz[i] * in[i];
                        }
                    }
                    const float *dz[TAPS];
                    for (int ahead = 0; ahead < TAPS; ahead++) {
                        const bool inside = t + ahead >= 0 && t + ahead < s.length;
                        dz[ahead] = inside ? ring[(t + ahead) % TAPS] : none;
                    }
                    const bool last = t >= s.length - (TAPS - 1);  // one of the document's last inputs
                    const float *more =
                        last ? dafter + (s.document * (TAPS - 1) + t - s.length + TAPS - 1) * channels + first : none;
                    float *out = dx.at(s, t) + first;
#pragma omp simd
                    for (int i = 0; i < n; i++) {
                        float sum = more[i];
                        for (int ahead = 0; ahead < TAPS; ahead++)
                            sum += w[(TAPS - 1 - ahead) * channels + i] * dz[ahead][i];
                        out[i] = sum;
                    }
                }
            }
        }
    });
    const FlushSubnormals flush;
    std::memset(dweight, 0, sizeof(float) * TAPS * channels);
    for (int part = 0; part < parts; part++)
        add_scaled(dweight, 1.0f, sums.data() + size_t(part) * TAPS * channels, static_cast<int>(TAPS * channels));
}

// Calls a function template for the number of taps at hand.
template <template <int> class Kernel, int TAPS = 1, typename... Arguments>
void with_taps(int64_t taps, const Arguments &...arguments) {
    if (taps == TAPS) {
        Kernel<TAPS>::run(arguments...);
    } else if constexpr (TAPS < MOST_TAPS) {
        with_taps<Kernel, TAPS + 1>(taps, arguments...);
    }
}

template <int TAPS> struct Forward {
    template <typename... Arguments> static void run(const Arguments &...arguments) { forward<TAPS>(arguments...); }
};

template <int TAPS> struct Backward {
    template <typename... Arguments> static void run(const Arguments &...arguments) { backward<TAPS>(arguments...); }
};

}  // namespace

extern "C" {

// x's rows are x_stride floats apart. weight [taps, channels] (transposed, so that channels are contiguous).
// after [documents, taps − 1, channels] gets the last inputs of each document.
void gossamer_short_conv(const float *x, const float *weight, const float *before, const int64_t *lengths, float *y,
                         float *after, int64_t documents, int64_t channels, int64_t taps, int64_t x_stride) {
    const Rows<const float> inputs{x, before, x_stride, channels, static_cast<int>(taps)};
    with_taps<Forward>(taps, inputs, weight, y, after, stretches_of(lengths, documents));
}

// Gradients of x (contiguous), weight [taps, channels] and before.
void gossamer_short_conv_backward(const float *dy, const float *dafter, const float *x, const float *weight,
                                  const float *before, const int64_t *lengths, float *dx, float *dweight,
                                  float *dbefore, int64_t documents, int64_t channels, int64_t taps,
                                  int64_t x_stride) {
    const Rows<const float> inputs{x, before, x_stride, channels, static_cast<int>(taps)};
    const Rows<float> gradients{dx, dbefore, channels, channels, static_cast<int>(taps)};
    with_taps<Backward>(taps, dy, dafter, inputs, gradients, weight, dweight, stretches_of(lengths, documents));
}

}  // extern "C"
