#include "draw.h"

extern "C" {

// A token of each row of logits [rows, count], temperatures [rows], keys [rows].
void gossamer_draw(const float *logits, const float *temperatures, const int64_t *keys, int64_t *tokens, int64_t rows,
                   int64_t count) {
#pragma omp parallel for schedule(static) if (rows > 1 && !gossamer::is_small(rows * count / 4))
    for (int64_t row = 0; row < rows; row++)
        tokens[row] = gossamer::draw_one(logits + row * count, count, temperatures[row], keys[row]);
}

}  // extern "C"
