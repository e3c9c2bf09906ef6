// The loss of a block of logits and, in their place, its gradient.

#include <cmath>

#include "kernels.h"

using namespace gossamer;

extern "C" {

// logits [rows, vocab] become softmax − one-hot; a row whose label is negative becomes zero and has no loss.
void gossamer_softmax_loss(float *logits, const int64_t *labels, float *losses, int64_t rows, int64_t vocab) {
    parallel_for(rows, !is_small(rows * vocab), [&](int64_t row) {
        float *x = logits + row * vocab;
        if (labels[row] < 0) {
            std::memset(x, 0, sizeof(float) * vocab);
            losses[row] = 0.0f;
            return;
        }
        const float target = x[labels[row]];
        float most = x[0], sum = 0.0f;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < vocab; i++) most = x[i] > most ? x[i] : most;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < vocab; i++) {
            x[i] = exp_(x[i] - most);
            sum += x[i];
        }
        losses[row] = std::log(sum) + most - target;
        const float share = 1.0f / sum;
#pragma omp simd
        for (int64_t i = 0; i < vocab; i++) x[i] *= share;
        x[labels[row]] -= 1.0f;
    });
}

}  // extern "C"
