// The short convolution with SiLU, forward and backward, one pass over memory each.
//
// Documents lie one after the other in x [tokens, channels]; `before` [documents, taps − 1, channels] holds what came
// before each. A thread takes a block of channels through all tokens, so no sum is shared between threads.

#include "kernels.h"

using namespace gossamer;

namespace {

constexpr int BLOCK = 64;     // channels that a thread takes at a time
constexpr int MOST_TAPS = 8;  // Python sends wider convolutions elsewhere

// The input `back` tokens before token t of a document: inside it, or from what came before it.
const float *input(const float *x, const float *before, int64_t start, int t, int back, int taps, int64_t x_stride,
                   int channels, int first) {
    const int at = t - back;
    return at >= 0 ? x + (start + at) * x_stride + first : before + int64_t(taps - 1 + at) * channels + first;
}

}  // namespace

extern "C" {

// x's rows are x_stride floats apart. weight [taps, channels] (transposed, so that channels are contiguous).
// after [documents, taps − 1, channels] gets the last inputs of each document.
void gossamer_short_conv(const float *x, const float *weight, const float *before, const int64_t *lengths, float *y,
                         float *after, int64_t documents, int64_t channels, int64_t taps, int64_t x_stride) {
    const int blocks = (channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int block = 0; block < blocks; block++) {
        const int first = block * BLOCK, width = channels - first < BLOCK ? channels - first : BLOCK;
        int64_t start = 0;
        for (int document = 0; document < documents; document++) {
            const int length = static_cast<int>(lengths[document]);
            const float *past = before + int64_t(document) * (taps - 1) * channels;
            for (int t = 0; t < length; t++) {
                float z[BLOCK] = {};
                for (int back = 0; back < taps; back++) {
                    const float *in = input(x, past, start, t, back, taps, x_stride, channels, first);
                    const float *w = weight + int64_t(taps - 1 - back) * channels + first;
#pragma omp simd
                    for (int i = 0; i < width; i++) z[i] += w[i] * in[i];
                }
                float *out = y + (start + t) * channels + first;
#pragma omp simd
                for (int i = 0; i < width; i++) out[i] = z[i] * sigmoid(z[i]);
            }
            for (int back = 1; back < taps; back++) {
                const float *in = input(x, past, start, length, back, taps, x_stride, channels, first);
                std::memcpy(after + (int64_t(document) * (taps - 1) + taps - 1 - back) * channels + first, in,
                            sizeof(float) * width);
            }
            start += length;
        }
    }
}

// Gradients of x (contiguous), weight [taps, channels] and before. dbefore and dweight must come zeroed.
void gossamer_short_conv_backward(const float *dy, const float *dafter, const float *x, const float *weight,
                                  const float *before, const int64_t *lengths, float *dx, float *dweight,
                                  float *dbefore, int64_t documents, int64_t channels, int64_t taps, int64_t x_stride) {
    const int blocks = (channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int block = 0; block < blocks; block++) {
        const int first = block * BLOCK, width = channels - first < BLOCK ? channels - first : BLOCK;
        float dw[MOST_TAPS][BLOCK] = {};
        int64_t start = 0;
        for (int document = 0; document < documents; document++) {
            const int length = static_cast<int>(lengths[document]);
            const float *past = before + int64_t(document) * (taps - 1) * channels;
            float *dpast = dbefore + int64_t(document) * (taps - 1) * channels;
            // Where the gradient of an input goes: `input`, for writing.
            auto gradient = [&](int at) {
                return at >= 0 ? dx + (start + at) * channels + first
                               : dpast + int64_t(taps - 1 + at) * channels + first;
            };
            for (int t = 0; t < length; t++) {
                const float *g = dy + (start + t) * channels + first;
                float z[BLOCK] = {};
                for (int back = 0; back < taps; back++) {
                    const float *in = input(x, past, start, t, back, taps, x_stride, channels, first);
                    const float *w = weight + int64_t(taps - 1 - back) * channels + first;
#pragma omp simd
                    for (int i = 0; i < width; i++) z[i] += w[i] * in[i];
                }
#pragma omp simd
                for (int i = 0; i < width; i++) {
                    const float open = sigmoid(z[i]);
                    z[i] = g[i] * open * (1.0f + z[i] * (1.0f - open));  // dz = dy · SiLU'(z)
                }
                for (int back = 0; back < taps; back++) {
                    const float *in = input(x, past, start, t, back, taps, x_stride, channels, first);
                    const float *w = weight + int64_t(taps - 1 - back) * channels + first;
                    float *out = gradient(t - back), *sum = dw[taps - 1 - back];
                    if (back == 0) {
#pragma omp simd
                        for (int i = 0; i < width; i++) {
                            out[i] = w[i] * z[i];  // the first to write this token's gradient
                            sum[i] += z[i] * in[i];
                        }
                    } else {
#pragma omp simd
                        for (int i = 0; i < width; i++) {
                            out[i] += w[i] * z[i];
                            sum[i] += z[i] * in[i];
                        }
                    }
                }
            }
            for (int back = 1; back < taps; back++) {
                const float *g = dafter + (int64_t(document) * (taps - 1) + taps - 1 - back) * channels + first;
                add_scaled(gradient(length - back), 1.0f, g, width);
            }
            start += length;
        }
        for (int tap = 0; tap < taps; tap++) std::memcpy(dweight + int64_t(tap) * channels + first, dw[tap], sizeof(float) * width);
    }
}

}  // extern "C"
