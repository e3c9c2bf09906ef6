// Code shared by the CPU kernels: a vectorizable exp, per-thread memory and operations on small rows; see also gemm.h.
//
// Every kernel is a plain C function on pointers to float32 (and int64) data that Python has made contiguous, so the
// library needs no header from PyTorch and builds in seconds. Loops are written so that the compiler can vectorize
// them. OpenMP runs heads, experts or channels in parallel; the products within them are single-threaded.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <queue>
#include <vector>

#include "gemm.h"
#include "parallel.h"

namespace gossamer {

// e^x to 2 units in the last place, in arithmetic that the compiler can vectorize: 2^n times a polynomial on
// |r| <= ln(2) / 2 (with the coefficients of Cephes' expf). Below −87 the result is 0 within float32's normal range,
// above 88 it is practically infinite (1.7e38), and a NaN stays a NaN.
inline float exp_(float x) {
    const float clamped = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
    const float n = __builtin_floorf(clamped * 1.44269504088896341f + 0.5f);
    const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } scale;
    scale.bits = (static_cast<int32_t>(n) + 127) << 23;
    return p * scale.value;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_(-x)); }

// How much longer the threads take for tasks of these amounts of work, starting with the largest, than they would if
// the work could be divided evenly; 1 means that it is even already.
inline double imbalance(std::vector<double> tasks, int threads) {
    std::sort(tasks.begin(), tasks.end(), std::greater<double>());
    std::priority_queue<double, std::vector<double>, std::greater<double>> busy;  // until when each thread is busy
    for (int i = 0; i < threads; i++) busy.push(0.0);
    double all = 0.0, last = 0.0;
    for (const double work : tasks) {
        const double until = busy.top() + work;
        busy.pop();
        busy.push(until);
        last = std::max(last, until);
        all += work;
    }
    return all > 0.0 ? last * threads / all : 1.0;
}

// Whether there are so few numbers that one thread is done before another has woken up.
inline bool is_small(int64_t numbers) { return numbers < 1 << 15; }

constexpr int PADDING = 16;  // floats in a cache line, to which tensors are aligned

inline float *aligned(float *memory) {
    return memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64 / sizeof(float);
}

// Uninitialized floats that all threads share, aligned to a cache line.
class Block {
  public:
    explicit Block(size_t count) : memory_(new float[count + PADDING]) {}
    float *floats() { return aligned(memory_.get()); }

  private:
    std::unique_ptr<float[]> memory_;
};

// Floats for one thread, aligned to a cache line. A thread keeps its memory for the next kernel, because fresh pages
// would cost more than the work on a short text. A thread can use only one Scratch at a time.
class Scratch {
  public:
    // Room for `total` floats in all and for the padding of up to 64 tensors.
    explicit Scratch(size_t total) {
        thread_local std::vector<float> memory;
        if (memory.size() < total + 65 * PADDING) memory.resize(total + 65 * PADDING);
        next_ = aligned(memory.data());
    }
    // Memory that somebody else owns.
    explicit Scratch(float *memory) : next_(memory) {}
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    float *allocate(size_t count) {
        float *memory = next_;
        next_ += (count + PADDING - 1) / PADDING * PADDING;
        return memory;
    }

  private:
    float *next_;
};

// y += a · x
inline void add_scaled(float *y, float a, const float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

// y = a · x
inline void scale_into(float *y, float a, const float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = a * x[i];
}

}  // namespace gossamer
