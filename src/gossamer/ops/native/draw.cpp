#include "draw.h"

using namespace gossamer;

extern "C" {

// A token of each row of logits [rows, count], temperatures [rows], keys [rows].
void gossamer_draw(const float *logits, const float *temperatures, const int64_t *keys, int64_t *tokens, int64_t rows,
                   int64_t count) {
    parallel_for(rows, rows > 1 && !is_small(rows * count / 4), [&](int64_t row) {
        tokens[row] = draw_one(logits + row * count, count, temperatures[row], keys[row]);
    });
}

}  // extern "C"
