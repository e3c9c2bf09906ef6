// The linear-attention layer's step as an operation of its own; see delta_step.h.

#include "delta_step.h"

using namespace gossamer;

extern "C" {

// qkvz [T, Hk, dk | dk | r·dv | r·dv], ba [T, Hk, r | r], y [T, Hv·dv]; the memory's tensors as ops/delta_step describes
// them, `most` tokens a slot; steps [4, sequences]: slots, kept, past, lengths.
void gossamer_delta_step(const float *qkvz, const float *ba, const float *conv_weight, const float *A_log,
                         const float *dt_bias, const float *norm, float *conv, float *recurrent, float *keys,
                         float *updates, float *gates, const int64_t *steps, float *y, int64_t sequences,
                         int64_t key_heads, int64_t repeats, int64_t key_dim, int64_t value_dim, int64_t taps,
                         int64_t most, float eps) {
    const Step s{int(key_heads), int(repeats), int(key_dim), int(value_dim), int(taps), int(most), eps};
    const Memory memory{conv, recurrent, keys, updates, gates};
    const int64_t *slots = steps, *kept = steps + sequences, *lengths = steps + 3 * sequences;
    std::vector<int64_t> starts(1, 0);
    for (int64_t n = 0; n < sequences; n++) starts.push_back(starts.back() + lengths[n]);
    const int64_t work = (sequences + starts.back()) * s.value_heads() * key_dim * value_dim;
#pragma omp parallel for schedule(static) if (!is_small(work / 4))
    for (int64_t task = 0; task < sequences * key_heads; task++) {
        const int64_t n = task / key_heads, at = starts[n];
        step_head(s, memory, slots[n], int(kept[n]), int(lengths[n]), int(task % key_heads),
                  qkvz + at * key_heads * s.projected(), ba + at * 2 * s.value_heads(), conv_weight, A_log, dt_bias, norm,
                  y + at * s.value_heads() * value_dim);
    }
}

}  // extern "C"
