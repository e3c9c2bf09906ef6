// How kernels use threads, and what those threads do with subnormal numbers.
//
// A subnormal float (below 1.2e-38) costs some processors 150 cycles or more each time it is computed with; decays of a
// fresh network make them by the million. While a kernel runs they count as zero, in every thread that works for it.
// The mode belongs to a thread (x86: MXCSR, ARM: FPCR), so each thread sets it and restores what its owner had chosen.

#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace gossamer {

// While it lives, the thread that made it reads subnormal numbers as zero and writes zero in their place.
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
    static constexpr uint64_t FLUSH = 0;  // this processor's mode is not known here
    static uint64_t mode() { return 0; }
    static void write(uint64_t) {}
#endif
    // Writing the register empties the pipeline, so it is not written in vain. Memory is a barrier on both sides: no
    // arithmetic of the kernel's on what it reads may move out of the guard's life.
    void set(uint64_t value) {
        asm volatile("" : : : "memory");
        if (value != mode()) write(value);
        asm volatile("" : : : "memory");
    }
};

enum Shares { STATIC, DYNAMIC };  // equal shares of pieces, or one piece after the other to whoever is free

// Calls piece(i) for every i from 0 to count − 1, on all of OpenMP's threads if the work is `worth` waking them. A small
// piece of work stays on the calling thread, because it is done before another thread has woken up.
template <Shares SHARES = STATIC, typename Piece>
inline void parallel_for(int64_t count, bool worth, const Piece &piece) {
#pragma omp parallel if (worth)
    {
        const FlushSubnormals flush;
        if constexpr (SHARES == STATIC) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count; i++) piece(i);
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < count; i++) piece(i);
        }
    }
}

}  // namespace gossamer
