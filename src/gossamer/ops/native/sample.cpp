// Sampling as an operation of its own; see sample.h.

#include "sample.h"

using namespace gossamer;

extern "C" {

// Samples a token from each row of logits [rows, count] with temperatures [rows] and keys [rows].
void gossamer_sample_tokens(const float *logits, const float *temperatures, const int64_t *keys, int64_t *tokens,
                            int64_t rows, int64_t count) {
    parallel_for(rows, rows > 1 && !is_small(rows * count / 4), [&](int64_t row) {
        tokens[row] = sample_token(logits + row * count, count, temperatures[row], keys[row]);
    });
}

}  // extern "C"
