// Threads that work together through many short stages, and how they wait for each other.

#pragma once

#include <atomic>
#include <cstdint>
#include <sched.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gossamer {

// A barrier at which the threads of a parallel region wait for each other between two stages.
//
// The work between two barriers is too short to sleep, so a waiting thread first spins for about ten microseconds. The
// thread that it waits for may have lost its core, to another program, to the host of a virtual machine, or because the
// container's time is used up. Spinning longer would then keep the core from that thread or use up the container's
// time. The waiting thread therefore yields its core for a while and finally sleeps until it is woken.
class Team {
  public:
    int threads = 1;

    void arrive_and_wait() {
        const int32_t now = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(now + 1, std::memory_order_seq_cst);
            if (asleep_.load(std::memory_order_seq_cst)) wake();
            return;
        }
        const auto is_over = [&] { return phase_.load(std::memory_order_acquire) != now; };
        for (int turn = 0; turn < SPINS; turn++)
            if (is_over()) return;
        for (int turn = 0; turn < YIELDS; turn++) {
            if (is_over()) return;
            sched_yield();
        }
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        while (!is_over()) sleep(now);
        asleep_.fetch_sub(1, std::memory_order_relaxed);
    }

  private:
    static constexpr int SPINS = 20000, YIELDS = 100;
    std::atomic<int32_t> arrived_{0}, phase_{0}, asleep_{0};
#if defined(__linux__)
    static_assert(sizeof(std::atomic<int32_t>) == sizeof(int32_t), "a futex is a word");
    // Returns at once if the phase is no longer `now`.
    void sleep(int32_t now) { syscall(SYS_futex, &phase_, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0); }
    void wake() { syscall(SYS_futex, &phase_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
    void sleep(int32_t) { sched_yield(); }
    void wake() {}
#endif
};

}  // namespace gossamer
