// The short convolution with SiLU, forward and backward, one pass over memory each.
//
// Documents lie one after the other in x [tokens, channels]; `before` [documents, kernel_size − 1, channels] holds the
// inputs before each of them. Work is cut into segments of tokens: each thread takes a share of the segments, and
// within a segment a few hundred channels at a time, so that the rows a token needs stay in the nearest cache.

#include <algorithm>
#include <omp.h>

#include "kernels.h"

using namespace gossamer;

namespace {

constexpr int SEGMENT = 64;         // tokens in a segment
constexpr int CHANNELS = 256;       // channels that are computed together
constexpr int MAX_KERNEL_SIZE = 8;  // Python computes wider convolutions without this file

// Tokens `from` to `to` of a document, the document's number, its first token in x, and its length.
struct Segment {
    int64_t document, start, length, from, to;
};

std::vector<Segment> segments_of(const int64_t *lengths, int64_t documents) {
    std::vector<Segment> result;
    int64_t start = 0;
    for (int64_t document = 0; document < documents; document++) {
        // A document without tokens has one segment as well, which passes on the inputs before it.
        for (int64_t from = 0; from == 0 || from < lengths[document]; from += SEGMENT)
            result.push_back({document, start, lengths[document], from, std::min(lengths[document], from + SEGMENT)});
        start += lengths[document];
    }
    return result;
}

// Rows of a tensor over all tokens, and of the tensor with the inputs before each document.
template <typename Float> struct Rows {
    Float *tokens, *before;
    int64_t stride, channels;
    int kernel_size;
    Float *at(const Segment &s, int64_t t) const {
        return t >= 0 ? tokens + (s.start + t) * stride
                      : before + (s.document * (kernel_size - 1) + kernel_size - 1 + t) * channels;
    }
};

// z_t = Σ_back w[K − 1 − back] x_(t − back) for `n` channels; w's rows are w_stride floats apart.
template <int K>
void convolve(const Rows<const float> &x, const Segment &s, int64_t t, int64_t first, const float *w, int64_t w_stride,
              float *z, int n) {
    const float *in[K];
    for (int back = 0; back < K; back++) in[back] = x.at(s, t - back) + first;
#pragma omp simd
    for (int i = 0; i < n; i++) {
        float sum = 0.0f;
        for (int back = 0; back < K; back++) sum += w[(K - 1 - back) * w_stride + i] * in[back][i];
        z[i] = sum;
    }
}

template <int K>
void forward(const Rows<const float> &x, const float *weight, float *y, float *after,
             const std::vector<Segment> &segments) {
    const int64_t channels = x.channels;
    const int64_t count = int64_t(segments.size());
    parallel_for(count, !is_small(count * SEGMENT * channels), [&](int64_t number) {
        const Segment &s = segments[number];
        for (int64_t first = 0; first < channels; first += CHANNELS) {
            const int n = static_cast<int>(std::min<int64_t>(CHANNELS, channels - first));
            for (int64_t t = s.from; t < s.to; t++) {
                float *out = y + (s.start + t) * channels + first;
                convolve<K>(x, s, t, first, weight + first, channels, out, n);
#pragma omp simd
                for (int i = 0; i < n; i++) out[i] *= sigmoid(out[i]);
            }
        }
        for (int64_t t = s.length - (K - 1); s.to == s.length && t < s.length; t++)
            std::memcpy(after + (s.document * (K - 1) + t - s.length + K - 1) * channels, x.at(s, t),
                        sizeof(float) * channels);
    });
}

// dz_t = dy_t · SiLU'(z_t) is computed once for each token of a segment and for the K − 1 tokens after it, whose
// gradients reach back into it; a ring buffer holds the newest of them.
template <int K>
void backward(const float *dy, const float *dafter, const Rows<const float> &x, const Rows<float> &dx,
              const float *weight, float *dweight, const std::vector<Segment> &segments) {
    const int64_t channels = x.channels;
    const int64_t max_parts = is_small(int64_t(segments.size()) * SEGMENT * channels) ? 1 : omp_get_max_threads();
    const int parts = static_cast<int>(std::min<int64_t>(max_parts, segments.size()));
    std::vector<float> sums(size_t(parts) * K * channels, 0.0f);
    const float zeros[CHANNELS] = {};
    parallel_for(parts, parts > 1, [&](int64_t part) {
        float ring[K][CHANNELS];
        float *own = sums.data() + size_t(part) * K * channels;
        for (size_t number = segments.size() * part / parts; number < segments.size() * (part + 1) / parts; number++) {
            const Segment &s = segments[number];
            for (int64_t first = 0; first < channels; first += CHANNELS) {
                const int n = static_cast<int>(std::min<int64_t>(CHANNELS, channels - first));
                const float *w = weight + first;
                float *dw = own + first;
                int64_t next = s.from;  // the token whose dz is to be computed next
                for (int64_t t = s.from == 0 ? 1 - K : s.from; t < s.to; t++) {
                    for (; next < std::min(s.length, t + K); next++) {
                        const float *g = dy + (s.start + next) * channels + first;
                        float *dz = ring[next % K];
                        convolve<K>(x, s, next, first, w, channels, dz, n);
#pragma omp simd
                        for (int i = 0; i < n; i++) {
                            const float s = sigmoid(dz[i]);
                            dz[i] = g[i] * s * (1.0f + dz[i] * (1.0f - s));
                        }
                        if (next >= s.to) continue;  // its own segment adds its share of dw
                        for (int back = 0; back < K; back++) {
                            const float *in = x.at(s, next - back) + first;
                            float *sum = dw + (K - 1 - back) * channels;
#pragma omp simd
                            for (int i = 0; i < n; i++) sum[i] += dz[i] * in[i];
                        }
                    }
                    const float *dz[K];
                    for (int ahead = 0; ahead < K; ahead++) {
                        const bool exists = t + ahead >= 0 && t + ahead < s.length;
                        dz[ahead] = exists ? ring[(t + ahead) % K] : zeros;
                    }
                    const bool is_last = t >= s.length - (K - 1);  // one of the document's last inputs
                    const float *dlast =
                        is_last ? dafter + (s.document * (K - 1) + t - s.length + K - 1) * channels + first : zeros;
                    float *out = dx.at(s, t) + first;
#pragma omp simd
                    for (int i = 0; i < n; i++) {
                        float sum = dlast[i];
                        for (int ahead = 0; ahead < K; ahead++)
                            sum += w[(K - 1 - ahead) * channels + i] * dz[ahead][i];
                        out[i] = sum;
                    }
                }
            }
        }
    });
    const FlushSubnormals flush;
    std::memset(dweight, 0, sizeof(float) * K * channels);
    for (int part = 0; part < parts; part++)
        add_scaled(dweight, 1.0f, sums.data() + size_t(part) * K * channels, static_cast<int>(K * channels));
}

// Calls a function template for the given kernel size.
template <template <int> class Kernel, int K = 1, typename... Arguments>
void with_kernel_size(int64_t kernel_size, const Arguments &...arguments) {
    if (kernel_size == K) {
        Kernel<K>::run(arguments...);
    } else if constexpr (K < MAX_KERNEL_SIZE) {
        with_kernel_size<Kernel, K + 1>(kernel_size, arguments...);
    }
}

template <int K> struct Forward {
    template <typename... Arguments> static void run(const Arguments &...arguments) { forward<K>(arguments...); }
};

template <int K> struct Backward {
    template <typename... Arguments> static void run(const Arguments &...arguments) { backward<K>(arguments...); }
};

}  // namespace

extern "C" {

// x's rows are x_stride floats apart. weight [kernel_size, channels] is transposed so that channels are contiguous.
// after [documents, kernel_size − 1, channels] receives the last inputs of each document.
void gossamer_short_conv(const float *x, const float *weight, const float *before, const int64_t *lengths, float *y,
                         float *after, int64_t documents, int64_t channels, int64_t kernel_size, int64_t x_stride) {
    const Rows<const float> inputs{x, before, x_stride, channels, static_cast<int>(kernel_size)};
    with_kernel_size<Forward>(kernel_size, inputs, weight, y, after, segments_of(lengths, documents));
}

// Gradients of x (contiguous), weight [kernel_size, channels] and before.
void gossamer_short_conv_backward(const float *dy, const float *dafter, const float *x, const float *weight,
                                  const float *before, const int64_t *lengths, float *dx, float *dweight,
                                  float *dbefore, int64_t documents, int64_t channels, int64_t kernel_size,
                                  int64_t x_stride) {
    const Rows<const float> inputs{x, before, x_stride, channels, static_cast<int>(kernel_size)};
    const Rows<float> gradients{dx, dbefore, channels, channels, static_cast<int>(kernel_size)};
    with_kernel_size<Backward>(kernel_size, dy, dafter, inputs, gradients, weight, dweight,
                               segments_of(lengths, documents));
}

}  // extern "C"
