// How kernels use threads, and how these threads treat subnormal numbers.
//
// Each operation on a subnormal float (below 1.2e-38) costs some processors 150 cycles or more, and the decays of a
// fresh network produce millions of them. While a kernel runs they count as zero in every thread that works for it. The
// mode belongs to a thread (x86: MXCSR, ARM: FPCR), so each thread sets it and afterwards restores what it was before.

#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace gossamer {

// As long as this object lives, the thread that made it reads subnormal numbers as zero and writes zero in their place.
class FlushSubnormals {
  public:
    FlushSubnormals() : before_(mode()) { set(before_ | FLUSH); }
    ~FlushSubnormals() { set(before_); }
    FlushSubnormals(const FlushSubnormals &) = delete;
    FlushSubnormals &operator=(const FlushSubnormals &) = delete;

  private:
    const uint64_t before_;
#if defined(__SSE__)
    static constexpr uint64_t FLUSH = 0x8040;  // flush-to-zero for results, denormals-are-zero for operands
    static uint64_t mode() { return _mm_getcsr(); }
    static void write(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
    static constexpr uint64_t FLUSH = uint64_t(1) << 24;  // FZ: operands and results
    static uint64_t mode() {
        uint64_t value;
        asm volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void write(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
    static constexpr uint64_t FLUSH = 0;  // the mode of this processor is unknown
    static uint64_t mode() { return 0; }
    static void write(uint64_t) {}
#endif
    // Writing the register drains the pipeline, so it is written only if it changes. The memory barriers on both sides
    // keep the compiler from moving the kernel's arithmetic out of the guard's lifetime.
    void set(uint64_t value) {
        asm volatile("" : : : "memory");
        if (value != mode()) write(value);
        asm volatile("" : : : "memory");
    }
};

enum Schedule { STATIC, DYNAMIC };  // equal shares of tasks, or one task after the other to whichever thread is free

// Calls task(i) for every i from 0 to count − 1. It does so on all of OpenMP's threads if `parallel` is set; little
// work stays on the calling thread, because it is done before another thread has woken up.
template <Schedule SCHEDULE = STATIC, typename Task>
inline void parallel_for(int64_t count, bool parallel, const Task &task) {
#pragma omp parallel if (parallel)
    {
        const FlushSubnormals flush;
        if constexpr (SCHEDULE == STATIC) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count; i++) task(i);
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < count; i++) task(i);
        }
    }
}

}  // namespace gossamer
