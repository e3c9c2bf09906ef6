// The loss of a block of logits, which are replaced by its gradient.

#include <cmath>

#include "kernels.h"

using namespace gossamer;

extern "C" {

// Replaces logits [rows, vocab] by softmax − one-hot. A row with a negative label becomes zero and has no loss.
void gossamer_softmax_loss(float *logits, const int64_t *labels, float *losses, int64_t rows, int64_t vocab) {
    parallel_for(rows, !is_small(rows * vocab), [&](int64_t row) {
        float *x = logits + row * vocab;
        if (labels[row] < 0) {
            std::memset(x, 0, sizeof(float) * vocab);
            losses[row] = 0.0f;
            return;
        }
        const float target = x[labels[row]];
        float largest = x[0], sum = 0.0f;
#pragma omp simd reduction(max : largest)
        for (int64_t i = 0; i < vocab; i++) largest = x[i] > largest ? x[i] : largest;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < vocab; i++) {
            x[i] = exp_(x[i] - largest);
            sum += x[i];
        }
        losses[row] = std::log(sum) + largest - target;
        const float scale = 1.0f / sum;
#pragma omp simd
        for (int64_t i = 0; i < vocab; i++) x[i] *= scale;
        x[labels[row]] -= 1.0f;
    });
}

}  // extern "C"
